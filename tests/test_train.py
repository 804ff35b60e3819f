"""Losses against Pyro's and closed forms, the training loop, and what stops it."""

import functools
import gc
import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ppgen import decoders, models, posteriors, priors
from ppgen import nn as networks
from ppgen.inference import SVI, elbo, fit, iwae, train, warmup
from ppgen.inference.execution.batches import Rows, Shuffled
from ppgen.inference.losses.loss import as_loss
from ppgen.models import Custom
from ppgen.pair import data_plate

X = torch.bernoulli(torch.full((60, 6), 0.4), generator=torch.Generator().manual_seed(0))


def vae():
    torch.manual_seed(0)
    return models.VAE(
        priors.StandardNormal(2),
        decoders.Bernoulli(networks.MLP(2, 8, 6)),
        posteriors.DiagNormal(networks.MLP(6, 8, 4)),
    )


def at_seed(loss, pair, *batch):
    torch.manual_seed(5)
    return loss(pair.model, pair.guide, *batch).item()


def test_the_elbo_is_pyros_per_datum():
    pair = vae()
    pyros = pyro.infer.Trace_ELBO()
    assert at_seed(elbo(), pair, X) == pytest.approx(at_seed(pyros.differentiable_loss, pair, X) / 60, rel=1e-6)
    several = pyro.infer.Trace_ELBO(num_particles=3, vectorize_particles=True)
    at_seed(several.differentiable_loss, pair, X)  # Pyro's first call draws more, to learn the plates
    ours = at_seed(elbo(num_particles=3), pair, X)
    assert ours == pytest.approx(at_seed(several.differentiable_loss, pair, X) / 60, rel=1e-6)


def test_one_sample_of_the_importance_weighted_bound_is_the_elbo():
    pair = vae()
    values = torch.tensor([[loss(pair.model, pair.guide, X).item() for _ in range(300)] for loss in (elbo(), iwae(1))])
    error = (values.var(1).sum() / 300).sqrt()
    assert (values[0].mean() - values[1].mean()).abs() < 4 * error
    assert iwae(50)(pair.model, pair.guide, X) < values[0].mean() - 2 * values[0].std()


def test_beta_weighs_the_divergence_and_free_bits_spare_it():
    pair = vae()
    zero, one, two = (at_seed(elbo(beta=beta), pair, X) for beta in (0.0, 1.0, 2.0))
    assert two - one == pytest.approx(one - zero, rel=1e-4)
    kl = one - zero
    assert at_seed(elbo(free_bits=kl / 2), pair, X) == pytest.approx(one, rel=1e-6)
    assert at_seed(elbo(free_bits=kl + 3), pair, X) == pytest.approx(zero + kl + 3, rel=1e-6)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"analytic_kl": True}, {"free_bits": 5.0}], ids=str)
def test_the_gradient_of_a_discrete_latent_is_that_of_the_loss(settings, particles):
    """Of a draw k without a reparameterised sampler, and one z below it that has: by the sum over k."""

    class TwoLevels(nn.Module):
        def __init__(self):
            super().__init__()
            self.logit, self.gap = (nn.Parameter(torch.tensor(value)) for value in (0.7, 0.6))

        def model(self, x):
            with data_plate(x):
                k = pyro.sample("k", dist.Bernoulli(0.2))
                z = pyro.sample("z", dist.Normal(2 * k, 1.0))
                pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)

        def guide(self, x):
            with data_plate(x):
                k = pyro.sample("k", dist.Bernoulli(logits=self.logit))
                pyro.sample("z", dist.Normal(self.gap * k, 0.8))

    pair, k = TwoLevels(), torch.tensor([0.0, 1.0])
    q, p = dist.Bernoulli(logits=pair.logit), dist.Bernoulli(0.2)
    fit_to_x = dist.Normal((1 + pair.gap) * k, 1.0).log_prob(torch.tensor(1.5)) - 0.5 * 0.8**2
    below = torch.distributions.kl_divergence(dist.Normal(pair.gap * k, 0.8), dist.Normal(2 * k, 1.0))
    kl = below if "free_bits" not in settings else torch.zeros(2)
    exact = (q.log_prob(k).exp() * (kl - fit_to_x)).sum()
    if "free_bits" not in settings:
        exact = exact + torch.distributions.kl_divergence(q, p)
    wanted = torch.stack(torch.autograd.grad(exact, list(pair.parameters())))
    elbo(num_particles=particles, **settings)(pair.model, pair.guide, torch.full((100_000,), 1.5)).backward()
    found = torch.stack([parameter.grad for parameter in pair.parameters()])
    assert torch.allclose(found, wanted, atol=0.03), (found, wanted)


def test_a_global_latent_is_weighed_by_the_full_size():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0.3, 1e-4))

    x = torch.randn(10)
    w = dist.Normal(0.3, 1e-4)
    prior, entropy = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.3)), w.entropy()
    expected = -(dist.Normal(0.3, 1.0).log_prob(x).sum() * 100 + prior + entropy) / 1000
    pair = Custom(model, guide)
    values = [elbo()(pair.model, pair.guide, x).item() for _ in range(50)]
    assert sum(values) / 50 == pytest.approx(expected.item(), abs=2e-3)
    assert at_seed(elbo(), pair, x) == pytest.approx(
        at_seed(pyro.infer.Trace_ELBO().differentiable_loss, pair, x) / 1000, rel=1e-6
    )


@pytest.mark.parametrize("stated", [lambda x: 100, len], ids=["of all data", "of the batch"])
@pytest.mark.parametrize("loss", [elbo, pyro.infer.Trace_ELBO])
def test_each_batch_is_divided_by_the_size_that_its_plate_states(stated, loss):
    """A first batch as long as all data does not say how long the plate is at the next."""

    def model(x):
        with pyro.plate("data", stated(x), subsample_size=len(x), dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    pair, x, found = Custom(model, lambda x: None), torch.randn(100), as_loss(loss())
    for batch in (x, x[:20]):
        exact = -dist.Normal(0.0, 1.0).log_prob(batch).mean().item()
        with torch.no_grad():
            assert found(pair.model, pair.guide, batch).item() == pytest.approx(exact, rel=1e-5)


def discrete():
    logits, locs = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.tensor([-1.0, 0.0, 1.0]))
    owner = nn.Module()
    owner.logits, owner.locs = logits, locs

    def model(x):
        with data_plate(x):
            k = pyro.sample("k", dist.Categorical(logits=owner.logits), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(owner.locs[k], 0.5), obs=x)

    return Custom(model, lambda x: None, owner=owner), owner


@pytest.mark.parametrize("loss", [elbo(), iwae(3), pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)])
def test_enumerated_sites_give_the_exact_gradient(loss):
    pair, owner = discrete()
    x = torch.randn(20)
    step = SVI(pair, loss, lambda p: torch.optim.SGD(p, lr=0.0))
    value = step.step(x)
    gradient = owner.locs.grad.clone()
    byhand = -(owner.logits.log_softmax(-1) + dist.Normal(owner.locs, 0.5).log_prob(x[:, None])).logsumexp(-1).mean()
    owner.zero_grad()
    byhand.backward()
    assert value.item() == pytest.approx(byhand.item(), rel=1e-5)
    assert torch.allclose(owner.locs.grad, gradient, atol=1e-5)


@pytest.mark.parametrize(
    "loss, fact",
    [
        (elbo(analytic_kl=True), "analytic_kl=True cannot be combined"),
        (elbo(beta=0.5), r"beta=0.5 .*\['k'\] are summed out"),
    ],
)
def test_what_enumeration_has_no_place_for_is_refused(loss, fact):
    pair, _ = discrete()
    with pytest.raises(ValueError, match=fact):
        loss(pair.model, pair.guide, torch.randn(5))


def test_a_loss_without_a_tensor_is_refused_by_name():
    with pytest.raises(TypeError, match=r"RenyiELBO has no differentiable_loss.*iwae"):
        fit(vae(), X, loss=pyro.infer.RenyiELBO(num_particles=2), epochs=1)


@pytest.mark.parametrize("bound", [False, True])
def test_a_loss_knows_each_guide_of_a_model_apart(bound):
    """A point, of which one draw stands for all, and then what draws: its bound is near log p(x)."""

    class Two:
        calls = 0

        def model(self, x):
            with data_plate(x):
                k = pyro.sample("k", dist.Bernoulli(0.5))
                pyro.sample("x", dist.Normal(k, 1.0), obs=x)

        def point(self, x):
            with data_plate(x):
                pyro.sample("k", dist.Delta(torch.ones(len(x))))

        def guide(self, x):
            self.calls += 1
            with data_plate(x):
                pyro.sample("k", dist.Bernoulli(0.5))

    pair, x, loss = Two(), torch.randn(20), iwae(2000)
    model, point, guide = pair.model, pair.point, pair.guide
    if not bound:
        model, point, guide = (functools.partial(function) for function in (model, point, guide))
    loss(model, point, x)
    exact = -torch.logaddexp(dist.Normal(0.0, 1.0).log_prob(x), dist.Normal(1.0, 1.0).log_prob(x)) - math.log(0.5)
    assert loss(model, guide, x).item() == pytest.approx(exact.mean().item(), abs=0.02)
    before = pair.calls
    loss(pair.model if bound else model, pair.guide if bound else guide, x)
    assert pair.calls == before + 1  # no first run again
    del pair, model, point, guide
    gc.collect()
    assert not loss._measured.known


@pytest.mark.parametrize("loss", [elbo, iwae, pyro.infer.Trace_ELBO])
def test_a_loss_that_was_not_called_is_told_to_be(loss):
    with pytest.raises(TypeError, match=rf"loss is the class {loss.__name__}: call it, as in elbo\(\)"):
        fit(vae(), X, epochs=1, progress=False, loss=loss)


@pytest.mark.parametrize(
    ("after", "what"),
    [
        (lambda value: value.item(), "a value of type float"),
        (lambda value: (value, {}), "a value of type tuple"),
        (lambda value: None, "a value of type NoneType"),
        (lambda value: value.expand(5), r"a tensor of shape \(5,\): take its mean"),
        (lambda value: value.detach(), "a tensor without one"),
    ],
)
@pytest.mark.parametrize("compile", [False, True])
def test_what_a_loss_of_ones_own_must_give_is_said_at_the_first_step(after, what, compile):
    def mine(model, guide, x):
        return after(elbo()(model, guide, x))

    with pytest.raises(TypeError, match=rf"loss must give a scalar tensor with a gradient, and \S*mine gave {what}"):
        fit(vae(), X, epochs=1, progress=False, loss=mine, compile=compile)


def test_an_error_in_a_loss_of_ones_own_is_raised_as_it_is():
    with pytest.raises(RuntimeError, match="size of tensor a"):
        fit(vae(), X, epochs=1, progress=False, loss=lambda model, guide, x: torch.ones(2) + torch.ones(3))


def test_schedules_count_steps_and_epochs():
    loss = elbo(beta=warmup(2))
    fit(vae(), X, loss=loss, epochs=1, batch_size=20, progress=False)
    assert loss.beta.value.item() == pytest.approx(0.5)
    other = elbo(beta=warmup(2))
    other.beta.bind(3)
    other.load_state_dict(loss.state_dict())
    assert int(other.beta.count) == 3 and not other.beta.done
    pair, before = vae(), vae().state_dict()
    with pytest.raises(ValueError, match=r"warmup\(epochs=2\) does not know"):
        SVI(pair, elbo(beta=warmup(2))).step(X)
    assert all(torch.equal(before[name], value) for name, value in pair.state_dict().items())
    with pytest.raises(ValueError, match="got epochs=1, steps=2"):
        warmup(1, steps=2)


annealed = elbo(beta=warmup(steps=4))  # of this module


def test_a_warm_up_that_would_stand_still_is_refused_and_one_in_use_goes_on_aloud(caplog):
    objective, beta = elbo(beta=warmup(steps=4)), warmup(steps=4)

    def by_a_loss(model, guide, *batch):
        return objective(model, guide, *batch)

    def by_itself(model, guide, *batch):
        return beta() * elbo()(model, guide, *batch)

    def of_the_same_name(model, guide, *batch):
        found = SimpleNamespace(annealed=elbo()(model, guide, *batch))  # an attribute called as a global is
        return found.annealed + later

    assert as_loss(of_the_same_name) is of_the_same_name
    later = 0  # bound only now
    assert math.isfinite(at_seed(of_the_same_name, vae(), X))
    for loss, name in ((by_a_loss, "objective"), (by_itself, "beta")):
        with pytest.raises(ValueError, match=rf"{loss.__name__} uses the warm-up in '{name}'.*nn\.Module"):
            fit(vae(), X, loss=loss, epochs=1, progress=False)
    fit(vae(), X, loss=objective, epochs=1, batch_size=20, progress=False)
    assert not caplog.records
    fit(vae(), X, loss=objective, epochs=1, batch_size=20, progress=False)
    assert "0.0 to 1.0 in 4 steps has been through 3 steps, and goes on there" in caplog.text
    assert objective.beta().item() == 1.0


def test_validation_looks_at_the_unannealed_objective_with_fixed_noise():
    pair = vae()
    step = SVI(pair, elbo(beta=warmup(steps=100)))
    first = step.evaluate(X)
    assert torch.equal(first, step.evaluate(X)) and step.loss.beta.value.item() == 0.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert first.item() == pytest.approx(elbo()(pair.model, pair.guide, X).item(), rel=1e-6)


def test_early_stopping_gives_the_best_parameters_back():
    class Worse:
        """Wanders off: validation gets worse after the second epoch."""

        def __init__(self):
            self.pair = nn.Linear(1, 1, bias=False)
            self.pair.weight.data.fill_(-1.0)

        def step(self, *batch):
            self.pair.weight.data += 0.5
            return torch.zeros(())

        def evaluate(self, *batch, seed):
            return self.pair.weight.detach().abs().squeeze()

    step = Worse()
    history = train(step, torch.zeros(4, 1), epochs=20, validation=torch.zeros(4, 1), patience=3, progress=False)
    assert history.validation[:3] == [0.5, 0.0, 0.5] and history.stopped_early
    assert len(history.loss) == 5 and history.best_epoch == 1
    assert step.pair.weight.item() == 0.0


def test_patience_waits_for_the_schedule():
    history = fit(
        vae(), X, loss=elbo(beta=warmup(5)), epochs=8, validation=X, patience=1, progress=False, seed=0
    )  # fmt: skip
    assert len(history.loss) > 5 or history.best_epoch >= 4


def test_the_same_seed_gives_the_same_result_and_the_generators_back():
    state = torch.get_rng_state()
    pairs = [vae(), vae()]
    torch.set_rng_state(state)
    first = fit(pairs[0], X, epochs=2, seed=3, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    second = fit(pairs[1], X, epochs=2, seed=3, progress=False)
    assert first.loss == second.loss
    assert all(torch.equal(p, q) for p, q in zip(pairs[0].parameters(), pairs[1].parameters(), strict=True))


@pytest.mark.parametrize("data", [X, X.numpy(), (X,), DataLoader(TensorDataset(X), 20, shuffle=True)])
def test_data_of_every_kind(data):
    history = fit(vae(), data, epochs=30, batch_size=20, progress=False, optimizer=lambda p: torch.optim.Adam(p, 1e-2))
    assert history.loss[-1] < history.loss[0]


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (torch.full((60, 6), 0.5), ["datum 0", "'x'", "Bernoulli", "Binarise"]),
        (torch.where(torch.arange(60) == 59, math.nan, 0.0).unsqueeze(-1).expand(60, 6), ["nan", "(59, 0)"]),
        (torch.zeros(60, 5), ["5", "6"]),
        (torch.zeros(0, 6), ["empty"]),
        ((X, torch.zeros(3, 2)), ["differ in length", "[60, 3]"]),
        (DataLoader(TensorDataset(torch.full((60, 6), 0.5)), 20), ["'x'", "Bernoulli"]),
        ([[1, 2], [3, 4]], ["list"]),
    ],
)
def test_bad_data_leave_the_parameters_as_they_were(data, facts):
    pair = vae()
    before = [p.detach().clone() for p in pair.parameters()]
    with pytest.raises((ValueError, TypeError)) as error:
        fit(pair, data, epochs=1, progress=False)
    for fact in facts:
        assert fact in str(error.value)
    assert all(torch.equal(p, q) for p, q in zip(pair.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"epochs": 0}, "epochs must be a positive whole number, got 0"),
        ({"epochs": 1, "batch_size": 1.5}, "batch_size must be a positive whole number, got 1.5"),
        ({"epochs": 1, "patience": 3}, "patience=3 needs validation data"),
        ({"epochs": 1, "optimizer": 0.1}, "optimizer must be a torch optimiser"),
        ({"epochs": 1, "loss": "elbo"}, "loss must be a function"),
    ],
)
def test_bad_settings_are_named(options, fact):
    with pytest.raises((ValueError, TypeError), match=fact):
        fit(vae(), X, progress=False, **options)


def test_a_loss_that_is_not_finite_updates_nothing_and_names_the_site():
    pair = vae()
    with torch.no_grad():
        pair.posterior.net.output.bias[0] = math.nan
    before = [p.detach().clone() for p in pair.parameters()]
    with pyro.validation_enabled(False), pytest.raises(FloatingPointError, match="the guide's site 'z'"):
        SVI(pair).step(X)
    assert all(torch.equal(p, q) or p.isnan().any() for p, q in zip(pair.parameters(), before, strict=True))


def test_a_parameter_that_appears_late_is_an_error():
    calls = []

    def model(x):
        calls.append(1)
        loc = pyro.param("late", torch.tensor(0.0)) if len(calls) > 2 else pyro.param("early", torch.tensor(0.0))
        with data_plate(x):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    step = SVI(Custom(model, lambda x: None))
    with pytest.raises(ValueError, match="'late' appeared only after the first step"):
        for _ in range(3):
            step.step(torch.randn(5))


def test_the_order_of_rows_is_where_they_are_before_the_first_batch():
    """On a GPU an index of the host's would be copied batch by batch, and each copy waits for the device."""

    class Member:
        def __init__(self):
            self.places = []

        def __len__(self):
            return 25

        def __getitem__(self, index):
            self.places.append(index.device.type)
            return torch.zeros(len(index))

    member = Member()
    rows = Rows((member,))
    order = torch.Generator().manual_seed(0)
    assert len(list(Shuffled(rows, 10, order))) == 3 and member.places == ["cpu"] * 3
    rows.place = torch.device("meta")
    list(Shuffled(rows, 10, order))
    assert member.places[3:] == ["meta"] * 3


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def by_hand(x):
    loc = pyro.param("loc", torch.zeros(len(x)))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.5))


def subsampled(x):
    with pyro.plate("data", 40, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def by_index(x):
    loc = pyro.param("loc", torch.zeros(40))
    with pyro.plate("data", 40, subsample_size=len(x)) as i:
        pyro.sample("z", dist.Normal(loc[i], 0.5))


PER_ROW = [(local, functools.partial(guide, local)) for guide in (AutoNormal, AutoDelta, AutoDiagonalNormal)]
PER_ROW += [(local, lambda: by_hand), (subsampled, lambda: by_index)]


@pytest.mark.parametrize("model, guide", PER_ROW)
def test_parameters_of_each_row_are_trained_in_one_batch_and_refused_in_several(model, guide):
    x = 2 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    pair = Custom(model, guide())
    fit(pair, x, epochs=40, batch_size=40, optimizer=lambda p: torch.optim.Adam(p, lr=0.1), seed=0, progress=False)
    trace = pyro.poutine.trace(pair.guide).get_trace(x)
    z = trace.nodes["z"]["value"] if model is local else trace.nodes["z"]["fn"].mean
    assert torch.corrcoef(torch.stack([z, x]))[0, 1] > 0.8
    for data in (x, DataLoader(TensorDataset(x), batch_size=20)):
        with pytest.raises(ValueError, match=r"parameters for each row of the data \(.*batch_size=len\(data\)"):
            fit(Custom(model, guide()), data, epochs=1, batch_size=20, progress=False)


def test_parameters_that_are_as_many_as_rows_by_chance_are_trained():
    """Units of a hidden layer, classes of an embedding and components of a mixture."""
    net, embedding = networks.MLP(1, 20, 1), nn.Embedding(20, 1)
    x = torch.randn(40)

    def of_classes(x, k):
        local(x)

    def amortised(x, k=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((net(x[:, None]) if k is None else embedding(k))[:, 0], 1.0))

    def mixture(x):
        with pyro.plate("components", 20):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean.mean(), 1.0), obs=x)

    pairs = [
        (Custom(local, amortised, net=net), x),
        (Custom(of_classes, amortised, net=embedding), (x, torch.arange(40) % 20)),
        (Custom(mixture, AutoNormal(mixture)), x),
        (Custom(mixture, AutoDiagonalNormal(mixture)), x),
    ]
    pairs = [(pair, data, 20) for pair, data in pairs] + [(Custom(local, amortised, net=net), x[:3], 1)]
    for pair, data, batch_size in pairs:
        fit(pair, data, epochs=1, batch_size=batch_size, progress=False)
        before = [p.detach().clone() for p in pair.parameters()]
        fit(pair, data, epochs=1, batch_size=batch_size, progress=False)
        assert any(not torch.equal(old, new) for old, new in zip(before, pair.parameters(), strict=True))
