"""Losses against Pyro's and closed forms, and what a loss must be."""

import dataclasses
import functools
import gc
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from parts import small_vae
from torch import nn

from ppgen.inference import SVI, dreg, elbo, fit, iwae, log_likelihood
from ppgen.inference.losses.loss import as_loss
from ppgen.models import Custom
from ppgen.pair import data_plate

X = torch.bernoulli(torch.full((60, 16), 0.4), generator=torch.Generator().manual_seed(0))


def at_seed(loss, pair, *batch):
    torch.manual_seed(5)
    return loss(pair.model, pair.guide, *batch).item()


def test_the_elbo_is_pyros_per_datum():
    pair = small_vae()
    pyros = pyro.infer.Trace_ELBO()
    assert at_seed(elbo(), pair, X) == pytest.approx(at_seed(pyros.differentiable_loss, pair, X) / 60, rel=1e-6)
    several = pyro.infer.Trace_ELBO(num_particles=3, vectorize_particles=True)
    at_seed(several.differentiable_loss, pair, X)  # Pyro's first call draws more, to learn the plates
    ours = at_seed(elbo(num_particles=3), pair, X)
    assert ours == pytest.approx(at_seed(several.differentiable_loss, pair, X) / 60, rel=1e-6)


def test_one_sample_of_the_importance_weighted_bound_is_the_elbo():
    pair = small_vae()
    values = torch.tensor([[loss(pair.model, pair.guide, X).item() for _ in range(300)] for loss in (elbo(), iwae(1))])
    error = (values.var(1).sum() / 300).sqrt()
    assert (values[0].mean() - values[1].mean()).abs() < 4 * error
    assert iwae(50)(pair.model, pair.guide, X) < values[0].mean() - 2 * values[0].std()


def test_beta_weighs_the_divergence_and_free_bits_spare_it():
    pair = small_vae()
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
        fit(small_vae(), X, loss=pyro.infer.RenyiELBO(num_particles=2), epochs=1)


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
        fit(small_vae(), X, epochs=1, progress=False, loss=loss)


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
        fit(small_vae(), X, epochs=1, progress=False, loss=mine, compile=compile)


def test_an_error_in_a_loss_of_ones_own_is_raised_as_it_is():
    with pytest.raises(RuntimeError, match="size of tensor a"):
        fit(small_vae(), X, epochs=1, progress=False, loss=lambda model, guide, x: torch.ones(2) + torch.ones(3))


@dataclasses.dataclass
class AsData:
    """A pair that is equal to others and so has no hash."""

    net: torch.nn.Module

    def model(self, x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(self.net(x[:, None])[:, 0], 0.8))


class WithSlots:
    """A pair that no weak reference can be made of."""

    __slots__ = ("net",)
    model, guide = AsData.model, AsData.guide

    def __init__(self, net):
        self.net = net


@pytest.mark.parametrize("make", [AsData, WithSlots])
@pytest.mark.parametrize("loss", [elbo(), iwae(3), dreg(3)])
def test_a_pair_need_not_be_hashable(make, loss):
    pair, x = make(torch.nn.Linear(1, 1)), torch.randn(20)
    if make is WithSlots:  # whose networks are not among its attributes
        with pytest.raises(ValueError, match=r"which the pair does not hold|a pair that owns its networks"):
            fit(pair, x, epochs=1, loss=loss, progress=False)
    else:
        fit(pair, x, epochs=1, loss=loss, progress=False)
    assert log_likelihood(pair, x, num_samples=5).values.isfinite().all()
