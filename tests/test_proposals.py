"""Repaired proposals: what k-hat does not see is found, on fresh draws, and the estimate says what was done."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from parts import POSTERIORS
from pyro.infer.autoguide import AutoNormal
from torch import nn

from ppgen import decoders, models, priors
from ppgen import nn as nets
from ppgen.inference import log_likelihood
from ppgen.inference.evaluation.moves import Moved
from ppgen.inference.evaluation.proposals import repaired_log_likelihood
from ppgen.models import Custom, FactorAnalysis
from ppgen.pair import data_plate

CORRELATION = 0.98


def correlated():
    """A posterior with a correlation of 0.98, and the diagonal guide that the ELBO likes best: far narrower."""
    covariance = torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]])

    def model(x):
        with data_plate(x):
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), covariance))
            pyro.sample("x", dist.Normal(0 * z[..., 0], 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(torch.zeros(2), math.sqrt(1 - CORRELATION**2)).to_event(1))

    return Custom(model, guide)


def test_what_k_hat_does_not_see_is_repaired():
    x = torch.randn(200)
    exact = dist.Normal(0.0, 1.0).log_prob(x).double()
    plain = log_likelihood(correlated(), x, num_samples=1000)
    trusted = plain.reliable
    assert trusted.sum() >= 10
    assert (plain.values - exact)[trusted].mean() < -1  # k-hat says reliable, and it is off by a nat
    estimate = repaired_log_likelihood(correlated(), x)
    error = estimate.values - exact
    assert estimate.reliable.double().mean() > 0.9
    assert (error.abs() < 4 * estimate.mc_standard_error).all()
    z = error / estimate.mc_standard_error
    assert abs(z.mean()) < 0.3 and 0.8 < z.std() < 1.25
    assert (estimate.scales == 5).all() and not estimate.refined.any()
    assert "widened on a pilot of 7 × 250 draws (median scale 5.00)" in str(estimate)
    assert estimate.summary()["median_scale"] == 5 and estimate.summary()["method"] == estimate.method


class Amortised(nn.Module):
    """Factor analysis with a diagonal guide of its own making."""

    def __init__(self, dim=20, latent_dim=4, shrink=1.0, shift=0.0, scale=None):
        super().__init__()
        self.exact, self.shrink, self.shift, self.scale = FactorAnalysis(dim, latent_dim), shrink, shift, scale

    def model(self, x=None, mask=None):
        return self.exact.model(x, mask)

    def guide(self, x, mask=None):
        q = self.exact.posterior(x, mask)
        scale = self.scale or q.precision_matrix.diagonal(dim1=-1, dim2=-2) ** -0.5
        with data_plate(x):
            pyro.sample("z", dist.Normal(q.mean * self.shrink + self.shift, scale).to_event(1))


def drawn(pair, n=100):
    return pair.exact.marginal().sample((n,)).detach()


def test_a_diagonal_guide_is_widened_a_little():
    pair = Amortised(25, 10)
    with torch.no_grad():
        pair.exact.log_scale.fill_(-2.0)
    x = drawn(pair)
    exact = pair.exact.log_prob(x)
    plain, repaired = log_likelihood(pair, x), repaired_log_likelihood(pair, x)
    assert repaired.reliable_fraction > 0.9 > plain.reliable_fraction + 0.1
    assert abs((repaired.values - exact).mean()) < 0.02 < -(plain.values - exact).mean()
    assert ((repaired.scales > 1) & (repaired.scales <= 2)).all()


def test_refinement_mends_a_poor_encoder():
    pair = Amortised(shrink=0.3, shift=0.5, scale=0.05)
    x = drawn(pair)
    exact = pair.exact.log_prob(x)
    plain = log_likelihood(pair, x)
    refined = repaired_log_likelihood(pair, x, scales=(1.0,), num_steps=100)
    assert (plain.values - exact).mean() < -5
    assert (refined.elbo - exact).mean() > -0.5
    assert (refined.values - exact).abs().max() < 0.3
    assert refined.refined.all() and "refined by 100 steps a datum" in str(refined)
    both = repaired_log_likelihood(pair, x, num_steps=100)
    assert both.reliable_fraction > 0.95 and "refined by 100 steps a datum and widened" in both.method
    assert all(p.grad is None for p in pair.parameters())


def test_a_good_guide_is_left_as_it_is():
    """An exact guide's refinement is not taken on most data, and a scale of 1 gives the plain estimate's numbers."""
    pair = Amortised()
    x = drawn(pair)
    plain, same = log_likelihood(pair, x), repaired_log_likelihood(pair, x, scales=(1.0,))
    assert torch.allclose(plain.values, same.values, atol=1e-4)
    assert (same.scales == 1).all() and same.method.endswith("as it is")
    exact = FactorAnalysis(20, 4)
    x = exact.marginal().sample((50,)).detach()
    estimate = repaired_log_likelihood(exact, x, num_steps=10)
    assert (estimate.values - exact.log_prob(x)).abs().max() < 0.05
    assert (estimate.scales == 1).all()


def test_blocks_do_not_depend_on_what_else_is_evaluated():
    pair = Amortised(6, 2, shift=1.0)
    x = drawn(pair, 130)
    options = {"num_steps": 5, "num_pilot": 30, "num_samples": 50}
    state = torch.get_rng_state()
    whole, part = (repaired_log_likelihood(pair.train(), data, **options) for data in (x, x[:100]))
    assert torch.equal(torch.get_rng_state(), state) and pair.training
    assert torch.equal(whole.scales[:100], part.scales) and torch.equal(whole.refined[:100], part.refined)
    assert torch.allclose(whole.values[:100], part.values, atol=1e-4)


@pytest.mark.parametrize(
    ("base", "grid"),
    [
        (dist.Normal(1.0, 0.5), torch.linspace(-30, 30, 60001)),
        (dist.Gamma(3.0, 2.0), torch.linspace(1e-4, 80, 160001)),
        (dist.Beta(2.0, 5.0), torch.linspace(1e-6, 1 - 1e-6, 60001)),
        (dist.StudentT(3.0), torch.linspace(-900, 900, 900001)),
    ],
    ids=["real", "positive", "unit interval", "heavy tails"],
)
def test_a_moved_density_integrates_to_one(base, grid):
    moved = Moved(base, torch.tensor(0.3), torch.tensor(1.7))
    mass = torch.trapezoid(moved.log_prob(grid).double().exp(), grid.double())
    assert mass == pytest.approx(1, abs=2e-3)
    z = moved.rsample((50,))
    own, foreign = moved.log_prob(z), moved.log_prob(z.clone())
    assert torch.allclose(own, foreign, atol=1e-4)
    assert moved.support.check(z).all()


def test_a_moved_simplex_agrees_with_its_weights():
    """E[w] = 1 for w of the original density to the moved one, on a support whose coordinates are fewer."""
    base = dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0]))
    moved = Moved(base, torch.zeros(2), torch.tensor(1.5)).expand((20000,))
    z = moved.rsample()
    w = (base.log_prob(z) - moved.log_prob(z)).exp()
    assert z.shape == (20000, 3) and abs(w.mean() - 1) < 4 * w.std() / math.sqrt(20000)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_any_posterior_is_repaired(kind):
    """Of a neural decoder with two latents, against quadrature."""
    vae = models.VAE(priors.StandardNormal(2), decoders.Bernoulli(nets.MLP(2, 16, 3)), POSTERIORS[kind](2))
    with torch.no_grad():
        x = vae.decoder(torch.randn(6, 2)).sample()
        axis = torch.linspace(-7, 7, 141)
        z = torch.cartesian_prod(axis, axis)
        log_joint = vae.prior().log_prob(z) + torch.stack([vae.decoder(z).log_prob(row) for row in x])
        exact = log_joint.double().logsumexp(1) + 2 * math.log(0.1)
    estimate = repaired_log_likelihood(vae, x, num_steps=20, num_pilot=50, num_samples=500)
    assert ((estimate.values - exact).abs() < 5 * estimate.mc_standard_error + 1e-3).all()
    assert estimate.mc_standard_error.max() < 0.3


def test_several_latents_plates_and_an_enumerated_site():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
            with pyro.plate("groups", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                loc = z + 2 * k.unsqueeze(-1)
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x.movedim(0, 1))
            pyro.sample("n", dist.Poisson(rate), obs=torch.ones(len(x)))

    def narrow(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal(0.0, 0.3))
            with pyro.plate("groups", 3, dim=-2):
                pyro.sample("z", dist.Normal(x.movedim(0, 1) / 2, 0.2).to_event(1))

    x = torch.randn(8, 3, 2)
    terms = [dist.Normal(2.0 * k, math.sqrt(2)).log_prob(x).sum((1, 2)) + math.log((0.7, 0.3)[k]) for k in (0, 1)]
    exact = torch.stack(terms).logsumexp(0) + dist.GammaPoisson(2.0, 2.0).log_prob(torch.tensor(1.0))
    estimate = repaired_log_likelihood(Custom(model, narrow), x, num_steps=100, num_samples=5000)
    assert estimate.refined.all() and (estimate.values - exact).abs().max() < 0.2


def test_an_autoguide_a_mask_and_a_context():
    def model(x, y):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.LogNormal(y, 1.0))
            pyro.sample("x", dist.Normal(z.log(), 1.0), obs=x)

    x, y = torch.randn(3), torch.tensor([0.0, 1.0, 2.0])
    auto = AutoNormal(model, init_scale=0.05)
    pair = Custom(model, auto)
    estimate = repaired_log_likelihood(pair, x, y, num_steps=100, num_samples=3000)
    assert (estimate.values - dist.Normal(y, math.sqrt(2)).log_prob(x)).abs().max() < 0.1

    pair = Amortised(10, 2, shift=0.5)
    x = drawn(pair, 20)
    mask = torch.rand(20, 10) < 0.6
    estimate = repaired_log_likelihood(pair, torch.where(mask, x, math.nan), mask=mask)
    assert (estimate.values - pair.exact.log_prob(x, mask)).abs().max() < 0.3


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"scales": ()}, r"scales must be positive finite numbers, .* got \(\)"),
        ({"scales": (1.0, -2.0)}, r"scales must be positive finite numbers, .* got \(1.0, -2.0\)"),
        ({"num_pilot": 0}, "num_pilot must be a positive whole number, got 0"),
        ({"num_steps": -1}, "num_steps must be a whole number that is not negative, got -1"),
    ],
)
def test_bad_numbers_are_named(options, fact):
    with pytest.raises(ValueError, match=fact):
        repaired_log_likelihood(correlated(), torch.zeros(3), **options)


def test_what_cannot_be_repaired_is_refused():
    def model(x):
        with data_plate(x):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="draws nothing continuous"):
        repaired_log_likelihood(Custom(model, lambda x: None), torch.zeros(3))

    def mixed(x):
        with data_plate(x):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(rate + k, 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="not reparameterised"):
        repaired_log_likelihood(Custom(mixed, guide), torch.zeros(3), num_steps=5)
    estimate = repaired_log_likelihood(Custom(mixed, guide), torch.zeros(3), num_samples=3000)
    exact = log_likelihood(Custom(mixed, guide), torch.zeros(3), num_samples=20000).values
    assert (estimate.values - exact).abs().max() < 0.2
