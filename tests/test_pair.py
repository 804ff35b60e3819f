"""Pairs of every kind under Pyro's own machinery and under ours."""

import copy
import functools
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch import nn

from ppgen import decoders, inference, models, posteriors, priors
from ppgen import nn as networks
from ppgen.distributions._zuko import zuko
from ppgen.inference import elbo, fit, log_likelihood, log_weights
from ppgen.models import Custom
from ppgen.pair import adapt, data_plate, sample


def vae():
    return models.VAE(
        priors.MixtureOfGaussians(3, 2),
        decoders.Bernoulli(networks.MLP(2, 8, 6)),
        posteriors.DiagNormal(networks.MLP(6, 8, 4)),
    )


X = torch.bernoulli(torch.full((30, 6), 0.4), generator=torch.Generator().manual_seed(0))


def changed(pair, before):
    return [bool((p != q).any()) for p, q in zip(pair.parameters(), before, strict=True)]


def test_pyros_svi_trains_every_parameter_of_every_instance(global_param_store):
    first, second = vae(), vae()
    for pair in (first, second, copy.deepcopy(first)):
        before = [p.detach().clone() for p in pair.parameters()]
        svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        svi.step(X)
        assert all(changed(pair, before))
    assert len(global_param_store) == 3 * len(before)


def test_predictive_and_trace_work_on_a_pair():
    pair = vae()
    draws = Predictive(pair.model, guide=pair.guide, num_samples=5)(X)
    assert draws["z"].shape == (5, 30, 2)
    trace = pyro.poutine.trace(pair.model).get_trace(X)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (30,)


@pytest.mark.parametrize(
    "base",
    [
        torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), 1.0), 1),
        torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        zuko.distributions.DiagNormal(torch.zeros(3), torch.ones(3)),
    ],
)
def test_distributions_of_other_libraries_stand_at_sample_sites(base):
    with pyro.plate("particles", 4, dim=-2), data_plate(torch.zeros(5)):
        z = sample("z", base)
    assert z.shape == (4, 5, 3)
    assert torch.allclose(adapt(base).expand((4, 5)).log_prob(z), base.log_prob(z))


def test_what_is_no_distribution_is_named():
    with pytest.raises(TypeError, match=r"returned Tensor where a distribution was expected"):
        sample("z", torch.zeros(3))


class Undeclared(nn.Module):
    """A prior whose latent is no event."""

    def forward(self, *context):
        return dist.Normal(torch.zeros(4), 1.0)


def undeclared(part):
    prior = Undeclared() if part == "prior" else priors.StandardNormal(4)
    net = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(-1, (1, 8, 8)))
    decoder = decoders.Bernoulli(networks.MLP(4, (1, 8, 8)) if part == "prior" else net)
    return models.VAE(prior, decoder, posteriors.DiagNormal(networks.MLP((1, 8, 8), 8)))


@pytest.mark.parametrize(
    ("part", "sizes"), [("prior", "at site z dim -1, 10 vs 4"), ("decoder", "at site x dim -1, 10 vs 8")]
)
def test_axes_of_a_datum_that_are_no_event_are_named_with_what_declares_them(part, sizes):
    facts = rf"{sizes}.*Independent\(d, n\).*to_event\(n\).*net.out_shape = \(1, 8, 8\)"
    pair, x = undeclared(part), torch.zeros(10, 1, 8, 8)
    for use in (
        lambda: fit(pair, x, epochs=1, batch_size=10, progress=False),
        lambda: log_likelihood(Custom(pair.model, pair.guide), x),
        lambda: inference.sample(pair, 10),
    ):
        with pytest.raises(ValueError, match=facts):
            use()


def test_functions_too_are_told_what_declares_an_event():
    def model(x):
        with data_plate(x):
            pyro.sample("x", dist.Normal(torch.zeros(6), 1.0), obs=x)

    with pytest.raises(ValueError, match=r"at site x .*30 vs 6.*to_event\(n\)"):
        log_likelihood(Custom(model, lambda x: None), X)


def test_a_latent_of_as_many_numbers_as_there_are_rows_is_not_taken_for_them():
    facts = r"model's site 'z' has the batch shape \(4, 4\).*declare the rest an event"
    for use in (lambda pair, x: fit(pair, x, epochs=1, batch_size=4, progress=False), log_likelihood):
        with pytest.raises(ValueError, match=facts):
            use(undeclared("prior"), torch.zeros(4, 1, 8, 8))


def test_a_network_that_states_its_output_is_a_decoders():
    pair = undeclared("decoder")
    pair.decoder.net.out_shape = (1, 8, 8)
    assert log_likelihood(pair, torch.zeros(10, 1, 8, 8), num_samples=2).values.shape == (10,)


def scaled_pair():
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def model(x=None):
        width = pyro.param("width", lambda: torch.tensor(2.0), constraint=dist.constraints.positive)
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, width))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.module("net", net)
        with data_plate(x):
            pyro.sample("z", dist.Normal(net(x.unsqueeze(-1)).squeeze(-1), 0.7))

    return Custom(model, guide), net


def test_custom_owns_parameters_networks_and_modes():
    pair, net = scaled_pair()
    x = 1 + torch.randn(50)
    fit(pair, x, epochs=1, progress=False)
    names = {name for name, _ in pair.named_parameters()}
    assert "sites.width" in names and len(names) == 1 + len(list(net.parameters()))
    assert net.training and pair.training
    assert pair.state_dict().keys() >= {"sites.width", "net.1.running_mean"}
    pair.eval()
    assert not net.training


@pytest.mark.parametrize(
    "wrap",
    [pyro.infer.config_enumerate, lambda f: pyro.poutine.scale(f, 1.0), lambda f: pyro.poutine.scale(f, 2.0)],
    ids=["enumerated", "scaled by 1", "scaled"],
)
def test_networks_behind_a_handler_are_found_trained_and_put_in_eval_mode(wrap):
    encoder = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))

    def model(x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + torch.zeros(3), 1.0).to_event(1), obs=x)

    def guide(x):
        with data_plate(x):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    pair = Custom(model, wrap(guide))
    before = encoder[1].weight.detach().clone()
    fit(pair, torch.randn(20, 3), epochs=1, progress=False)
    assert not torch.equal(encoder[1].weight, before)
    pair.eval()
    assert not encoder[0].training


def test_an_optimiser_given_as_a_function_has_the_sites_that_no_run_has_shown_yet():
    pair, net = scaled_pair()
    early = torch.optim.Adam(pair.parameters())
    late = []
    fit(
        pair, torch.randn(20), epochs=1, optimizer=lambda p: late.append(torch.optim.Adam(p)) or late[0], progress=False
    )
    held = [{id(p) for p in optimizer.param_groups[0]["params"]} for optimizer in (early, late[0])]
    assert held[0] == {id(p) for p in net.parameters()}
    assert held[1] == {id(p) for p in pair.parameters()} == held[0] | {id(pair.sites["width"])}


def test_custom_state_goes_into_one_that_never_ran():
    pair, _ = scaled_pair()
    x = 1 + torch.randn(50)
    fit(pair, x, epochs=2, progress=False)
    fresh, _ = scaled_pair()
    fresh.load_state_dict(pair.state_dict())
    first, second = (log_likelihood(p, x, num_samples=10).values for p in (pair, fresh))
    assert torch.equal(first, second)


def test_constrained_params_train_within_their_constraint():
    pair, _ = scaled_pair()
    x = 0.01 * torch.randn(100)
    fit(pair, x, epochs=30, optimizer=lambda p: torch.optim.Adam(p, 0.1), progress=False)
    width = pair.sites["width"].exp()
    assert 0 < width < 1


def test_custom_under_pyros_svi(global_param_store):
    pair, net = scaled_pair()
    x = torch.randn(20)
    before = [p.detach().clone() for p in net.parameters()]
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(x)
    start = pair.sites["width"].item()
    svi.step(x)
    assert pair.sites["width"].item() != start
    assert all(changed(net, before))
    assert len(global_param_store) == 0


def test_an_autoguides_auxiliary_site_is_weighed():
    def model(x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    pair = Custom(model, pyro.infer.autoguide.AutoNormal(model))
    x = torch.randn(8)
    step = inference.SVI(pair, optimizer=lambda p: torch.optim.Adam(p, 0.02))
    for _ in range(300):  # its parameters belong to rows: no shuffling
        step.step(x)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    assert (log_likelihood(pair, x, num_samples=2000).values - exact).abs().max() < 0.05


def linear(x):
    loc = pyro.param("loc", torch.tensor(0.3))
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(loc, 2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def widened(x):
    width = pyro.param("width", torch.tensor(2.0), constraint=dist.constraints.positive)
    with data_plate(x):
        pyro.sample("z", dist.Normal(x / 2, width))


@pytest.mark.parametrize("first", ["guide", "model"])
@pytest.mark.parametrize("auto", [AutoNormal, AutoDiagonalNormal, AutoDelta])
def test_an_autoguide_of_a_model_with_param_sites_is_trained_with_them(auto, first, global_param_store):
    pair = Custom(linear, auto(linear))
    x = 3 + torch.randn(20)
    for run in (pair.guide, pair.model) if first == "guide" else (pair.model, pair.guide):
        run(x)  # by now all parameters are there
    before = [p.detach().clone() for p in pair.parameters()]
    history = fit(pair, x, epochs=3, batch_size=20, progress=False)
    assert all(changed(pair, before))
    assert "sites.loc" in dict(pair.named_parameters())
    assert all(torch.isfinite(torch.tensor(history.loss))) and len(global_param_store) == 0


class Programs(nn.Module):
    """Model and guide as methods, which bring their networks along."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def model(self, x):
        linear(x)

    def guide(self, x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(self.net(x[:, None])[:, 0], 1.0))


def given_net(net, x):
    with data_plate(x):
        pyro.sample("z", dist.Normal(net(x[:, None])[:, 0], 1.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Custom(linear, widened),
        lambda: Custom(linear, AutoNormal(linear)),
        lambda: Custom((owner := Programs()).model, owner.guide),
        lambda: Custom(linear, functools.partial(given_net, nn.Linear(1, 1))),
        lambda: Custom(linear, pyro.poutine.scale(Programs().guide, 2.0)),
    ],
    ids=["param sites", "an autoguide", "methods", "a partial", "a handler"],
)
def test_a_copy_is_a_pair_of_its_own(make):
    pair, x = make(), torch.randn(20)
    fit(pair, x, epochs=1, batch_size=20, progress=False)
    copied = copy.deepcopy(pair)
    kept = [copy.deepcopy(pair.state_dict()), log_likelihood(copied, x, num_samples=10).values]
    assert torch.equal(kept[1], log_likelihood(pair, x, num_samples=10).values)
    fit(pair, x, epochs=3, batch_size=20, progress=False)
    assert torch.equal(kept[1], log_likelihood(copied, x, num_samples=10).values)
    before = [p.detach().clone() for p in copied.parameters()]
    fit(copied, x, epochs=1, batch_size=20, progress=False)
    assert all(changed(copied, before)) and list(copied.state_dict()) == list(kept[0])


def by_name(net, model=linear):
    return Custom(model, lambda x: given_net(net, x))


def by_hand(net):
    networks = [net]
    return Custom(linear, lambda x: given_net(networks[0], x), net=net)


def half_owned(net):
    """The guide is a method of the network's owner, and the model refers to the network by name."""
    owner = Programs()
    owner.net = net

    def model(x):
        net(x[:, None])
        linear(x)

    return Custom(model, owner.guide)


@pytest.mark.parametrize(
    "make",
    [by_name, by_hand, half_owned, lambda net: Custom(linear, pyro.infer.config_enumerate(by_name(net)._functions[1]))],
    ids=["a name", "a list", "a method and a name", "a handler"],
)
def test_no_copy_is_made_that_would_run_the_same_networks(make):
    pair = make(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"this Custom use .*net, and a copy .*load pair.state_dict\(\).*methods of an"):
        copy.deepcopy(pair)
    pair.guide(torch.randn(3))


def test_a_layer_without_a_state_may_be_shared_by_a_copy():
    pair = by_name(nn.Softplus())
    copied = copy.deepcopy(pair)
    assert copied is not pair and copied._functions == pair._functions


def test_any_object_with_model_and_guide_is_a_pair():
    class Mine:
        def __init__(self):
            self.net = nn.Linear(6, 4)

        def model(self, x):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("latent", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample(
                    "obs", dist.Bernoulli(logits=z.sum(-1, keepdim=True)).expand_by([]).to_event(1), obs=x[:, :1]
                )

        def guide(self, x):
            with pyro.plate("rows", len(x)):
                loc, log_scale = self.net(x).chunk(2, -1)
                pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))

    pair = Mine()
    before = [p.detach().clone() for p in pair.net.parameters()]
    fit(pair, X, loss=elbo(), epochs=1, progress=False)
    assert all(changed(pair.net, before))
    assert log_weights(pair, X, num_samples=3).shape == (3, 30)


class Encoder(nn.Linear):
    """A network with a name of its own."""


class Listed(nn.Module):
    """A pair whose networks are in a plain list, where torch does not look."""

    def __init__(self, *networks):
        super().__init__()
        self.networks, self.loc = list(networks), nn.Parameter(torch.zeros(3))

    def model(self, x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + self.loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with data_plate(x):
            loc, log_scale = self.encode(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def encode(self, x):
        return self.networks[0](x)


def in_functions(pair):
    """The same as two functions: the encoder is now an attribute of something that is no module."""
    held = SimpleNamespace(encode=pair.encode, model=pair.model, guide=pair.guide)

    def model(x):
        pyro.param("unused", torch.zeros(1))
        return held.model(x)

    def guide(x):
        return held.guide(x)

    return Custom(model, guide, loc=nn.ParameterList([pair.loc]))


@pytest.mark.parametrize("wrap", [lambda pair: pair, in_functions], ids=["a list", "a namespace"])
def test_a_network_that_the_pair_does_not_hold_is_named_before_anything_is_trained(wrap):
    net = Encoder(3, 2)
    pair = wrap(Listed(net))
    before = copy.deepcopy(pair.state_dict())
    with pytest.raises(ValueError, match=r"run Encoder, which the pair does not hold.*net=net.*nn.ModuleList"):
        fit(pair, torch.randn(20, 3), epochs=1, progress=False)
    assert all(torch.equal(value, pair.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("how", ["held", "frozen", "no_grad", "detached"])
def test_a_network_outside_the_pair_may_be_frozen_or_without_a_gradient(how):
    net = Encoder(3, 2)

    class Pair(Listed):
        def encode(self, x):
            if how == "no_grad":
                with torch.no_grad():
                    return net(x)
            return net(x).detach() if how == "detached" else net(x)

    pair = Pair()
    if how == "held":
        pair.net = net
    net.requires_grad_(how != "frozen")
    before = net.weight.detach().clone()
    fit(pair, torch.randn(20, 3), epochs=1, progress=False)
    assert pair.loc.abs().min() > 0
    assert torch.equal(net.weight, before) == (how != "held")


def test_a_pair_without_parameters_says_how_to_hand_networks_over():
    def model(x):
        with data_plate(x):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"no parameters to train.*Custom\(model, guide, net=net\)"):
        fit(Custom(model, lambda x: None), torch.randn(20), epochs=1, progress=False)


def test_custom_refuses_what_cannot_be_called():
    with pytest.raises(TypeError, match="guide must be a function of the batch, got int"):
        Custom(lambda x: None, 3)
