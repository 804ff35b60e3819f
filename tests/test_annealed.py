"""Annealed importance sampling and bidirectional Monte Carlo: exact cases, unbiasedness, and what is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from parts import POSTERIORS, PRIORS
from torch import nn

from ppgen import decoders, models, posteriors, priors
from ppgen import nn as nets
from ppgen.inference.evaluation import annealed
from ppgen.inference.evaluation.annealed import ais
from ppgen.inference.evaluation.bidirectional import bdmc
from ppgen.inference.evaluation.paths import Path
from ppgen.models import Custom, FactorAnalysis
from ppgen.pair import data_plate

STARTS = ["guide", "prior"]


class Loose(nn.Module):
    """Factor analysis with a guide that is not exact: diagonal, with the standard deviations that SVI learns."""

    def __init__(self, dim=20, latent_dim=4, shift=0.0):
        super().__init__()
        self.exact, self.shift = FactorAnalysis(dim, latent_dim), shift

    def model(self, x=None, mask=None):
        return self.exact.model(x, mask)

    def guide(self, x, mask=None):
        q = self.exact.posterior(x, mask)
        scale = q.precision_matrix.diagonal(dim1=-1, dim2=-2) ** -0.5
        with data_plate(x):
            pyro.sample("z", dist.Normal(q.mean + self.shift * scale, scale).to_event(1))


@pytest.fixture
def loose():
    pair = Loose()
    return pair, pair.exact.marginal().sample((40,)).detach()


@pytest.mark.parametrize("start", STARTS)
def test_factor_analysis(loose, start):
    pair, x = loose
    estimate = ais(pair, x, start=start, num_temperatures=100, num_leapfrog=5)
    exact = pair.exact.log_prob(x).double()
    assert (estimate.values - exact).square().mean().sqrt() < (0.04 if start == "guide" else 0.25)
    z = (estimate.values - exact) / estimate.mc_standard_error
    assert 0.6 < z.square().mean().sqrt() < 1.6  # the stated error is the error
    assert (estimate.elbo <= estimate.values).all()
    assert estimate.acceptance.min() > 0.6 and estimate.acceptance.max() < 0.95  # what the pilot aimed at
    assert estimate.values.dtype == torch.float64 and not estimate.values.requires_grad
    assert f"annealed importance sampling from the {start}, 100 temperatures" in str(estimate)
    assert estimate.summary()["method"] == estimate.method


@pytest.mark.parametrize("start", STARTS)
def test_the_mean_weight_is_unbiased(start):
    """With few temperatures and steps too: over 20 seeds, each with a pilot of its own, within four standard errors."""
    pair = Loose(6, 2, shift=0.5)
    x = pair.exact.marginal().sample((10,)).detach()
    exact = pair.exact.log_prob(x).double()
    options = {"num_temperatures": 5, "num_leapfrog": 2, "num_chains": 200, "start": start}
    ratios = torch.stack([(ais(pair, x, seed=seed, **options).values - exact).exp() for seed in range(20)])
    error = ratios.std(0) / math.sqrt(len(ratios))
    assert error.max() < 0.15  # enough to see a bias that matters
    assert ((ratios.mean(0) - 1).abs() < 4 * error).all()
    assert abs(ratios.mean() - 1) < 4 * error.square().sum().sqrt() / 10


def decoder_pair():
    net = nets.MLP(2, 16, 12)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)
    return models.VAE(priors.StandardNormal(2), decoders.Bernoulli(net), posteriors.DiagNormal(nets.MLP(12, 4)))


@pytest.mark.parametrize("start", STARTS)
def test_a_neural_decoder_by_quadrature(start):
    vae = decoder_pair()
    with torch.no_grad(), pyro.plate("n", 20):
        x = vae.model()
        axis = torch.linspace(-7, 7, 201)
        z = torch.cartesian_prod(axis, axis)
        log_joint = vae.prior().log_prob(z) + torch.stack([vae.decoder(z).log_prob(row) for row in x])
        exact = log_joint.double().logsumexp(1) + 2 * math.log(14 / 200)
    estimate = ais(vae, x, start=start, num_temperatures=100, num_leapfrog=5)
    error = estimate.values - exact
    assert error.square().mean().sqrt() < 0.1
    assert (error.abs() < 4 * estimate.mc_standard_error + 0.01).all()


@pytest.mark.parametrize("start", STARTS)
def test_bounds_hold_the_truth_between_them(start):
    pair = Loose()
    bounds = bdmc(pair, 120, start=start, num_temperatures=20, num_leapfrog=5, num_chains=8)
    exact = pair.exact.log_prob(*bounds.data).double().detach()
    below, above = exact - bounds.lower, bounds.upper - exact
    for side in (below, above):
        assert side.mean() > -2 * side.std() / math.sqrt(len(side))
    assert bounds.gap == pytest.approx((below + above).mean().item())
    assert bounds.gap > 3 * bounds.gap_standard_error or start == "guide"
    assert bounds.data[0].shape == (120, 20) and "nats, gap" in str(bounds)
    assert bounds.summary()["num_data"] == 120


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prior", "posterior"),
    [*(("standard", kind) for kind in POSTERIORS), *((kind, "diagonal") for kind in PRIORS)],
)
def test_bounds_of_any_prior_and_posterior(prior, posterior):
    vae = models.VAE(PRIORS[prior](2), decoders.Bernoulli(nets.MLP(2, 16, 3)), POSTERIORS[posterior](2))
    start = "guide" if prior == "standard" else "prior"
    bounds = bdmc(vae, 20, start=start, num_temperatures=20, num_leapfrog=3, num_chains=8)
    assert abs(bounds.gap) < max(0.05, 3 * bounds.gap_standard_error) and bounds.gap_standard_error < 0.1


def test_the_gap_closes_on_the_easy_case():
    bounds = bdmc(Loose(), 40, num_temperatures=50, num_leapfrog=5, num_chains=16)
    assert abs(bounds.gap) < 0.05 and bounds.gap_standard_error < 0.02


def test_the_gap_shows_chains_that_are_too_short():
    hard = Loose(20, 10)
    with torch.no_grad():
        hard.exact.log_scale.fill_(-2.0)
    bounds = bdmc(hard, 20, start="prior", num_temperatures=5, num_leapfrog=2, num_chains=8)
    exact = hard.exact.log_prob(*bounds.data).detach()
    assert bounds.gap > 5 and (bounds.lower.mean() < exact.mean() < bounds.upper.mean())


def test_one_temperature_is_importance_sampling(loose):
    pair, x = loose
    short = ais(pair, x, num_temperatures=1, num_chains=3000)
    exact = pair.exact.log_prob(x).double()
    assert (short.values - exact).abs().median() < 0.1
    assert (short.acceptance == 1).all()


def test_an_exact_guide_is_exact_and_known_to_be():
    fa = FactorAnalysis(8, 3)
    x = fa.marginal().sample((5,)).detach()
    estimate = ais(fa, x, num_temperatures=10, num_leapfrog=2)
    assert (estimate.values - fa.log_prob(x)).abs().max() < 1e-4
    assert estimate.reliable.all() and not estimate.is_lower_bound


def test_blocks_do_not_depend_on_what_else_is_evaluated():
    pair = Loose(5, 2)
    x = torch.randn(130, 5)
    options = {"num_temperatures": 5, "num_leapfrog": 2, "num_chains": 4}
    whole, part = ais(pair, x, **options), ais(pair, x[:100], **options)
    assert torch.equal(whole.values[:100], part.values) and whole.values.shape == (130,)
    assert not torch.equal(ais(pair, x[:100], seed=1, **options).values, part.values)
    assert torch.equal(bdmc(pair, 130, **options).lower[:100], bdmc(pair, 100, **options).lower)


def test_nothing_adapts_in_the_chains_that_are_weighed(loose):
    """A chain's weight does not change with where the other chains are."""
    pair, x = loose
    betas = annealed.temperatures(8)
    with torch.no_grad():
        path = Path(pair, (x,), "prior")
        kernel = annealed.pilot(path, betas, 3)
        u = path.draw(10)
        other = torch.cat([u[:5], 4 * u[5:]])
        weights = []
        for begin in (u, other):
            torch.manual_seed(1)
            weights.append(annealed.forward(path, begin, betas, kernel)[0])
    assert torch.equal(weights[0][:5], weights[1][:5]) and not torch.equal(weights[0][5:], weights[1][5:])


def test_a_diverging_trajectory_is_refused_and_poisons_nothing(loose):
    pair, x = loose
    with torch.no_grad(), pyro.validation_enabled(False):
        path = Path(pair, (x,), "prior")
        state = annealed._state(path, path.draw(6))
        steps = torch.full((40,), 0.3)
        steps[:20] = 1e30
        new, p = annealed._transition(path, state, 0.5, steps, torch.ones(40, 4), 3)
    assert (p[:, :20] == 0).all() and torch.equal(new.u[:, :20], state.u[:, :20])
    assert p[:, 20:].mean() > 0.1 and all(part.isfinite().all() for part in new)


def test_several_latents_with_constrained_supports():
    """Gamma-Poisson and Beta-binomial: the marginals are a negative binomial's and a Beta-binomial's."""

    def model(n=None, k=None):
        with data_plate(n, k):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.5))
            p = pyro.sample("p", dist.Beta(2.0, 3.0))
            pyro.sample("n", dist.Poisson(rate), obs=n)
            pyro.sample("k", dist.Binomial(10, p), obs=k)

    def guide(n, k):
        with data_plate(n):
            pyro.sample("rate", dist.LogNormal(((2 + n) / 2.5).log(), 0.7))
            pyro.sample("p", dist.Beta(1 + k / 2, 6 - k / 2))

    n, k = torch.tensor([0.0, 1.0, 5.0, 9.0]), torch.tensor([0.0, 3.0, 5.0, 10.0])
    exact = dist.GammaPoisson(2.0, 1.5).log_prob(n) + dist.BetaBinomial(2.0, 3.0, 10).log_prob(k)
    for start in STARTS:
        estimate = ais(Custom(model, guide), n, k, start=start, num_temperatures=100, num_leapfrog=3, num_chains=64)
        assert ((estimate.values - exact).abs() < 4 * estimate.mc_standard_error).all(), start
        assert estimate.mc_standard_error.max() < 0.2, start


def test_plates_inside_the_data_plate_and_a_simplex():
    """Three groups per datum, each with a latent; and shares whose prior is all that is left of them."""

    def model(x):
        with pyro.plate("data", len(x)):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
            with pyro.plate("groups", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x.movedim(0, 1))
            pyro.sample("c", dist.Categorical(shares), obs=torch.zeros(len(x)))

    x = torch.randn(6, 3, 2)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum((1, 2)) - math.log(3)
    estimate = ais(Custom(model, lambda x: None), x, start="prior", num_temperatures=100, num_leapfrog=5)
    assert (estimate.values - exact).abs().max() < 0.3
    assert (estimate.values - exact).mean().abs() < 0.1


@pytest.mark.parametrize("n", [3, 5])
def test_data_drawn_in_a_plate_inside_the_data_plate_are_rows(n):
    """Also where there are as many data as the plate has places, and nothing but the numbers tells the two apart."""

    def model(x=None):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("groups", 3, dim=-2):
                pyro.sample("x", dist.Normal(z, 0.5), obs=None if x is None else x.T)

    bounds = bdmc(Custom(model, lambda x: None), n, start="prior", num_temperatures=50, num_leapfrog=5)
    covariance = torch.ones(3, 3) + 0.25 * torch.eye(3)
    exact = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(bounds.data[0])
    assert (bounds.lower - exact).abs().max() < 0.4 and (bounds.upper - exact).abs().max() < 0.4

    def untransposed(x=None):
        with data_plate(x), pyro.plate("groups", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    with pytest.raises(ValueError, match=r"draws 'x' of shape \(3, \d\).*in rows, \(\d, 3\).*x\.movedim\(0, -1\)"):
        bdmc(Custom(untransposed, lambda x: None), n, start="prior")


def test_a_mask_and_a_context():
    pair = Loose(10, 2)
    x = pair.exact.marginal().sample((20,)).detach()
    mask = torch.rand(20, 10) < 0.6
    exact = pair.exact.log_prob(x, mask)
    x[~mask] = math.nan
    estimate = ais(pair, x, mask=mask, num_temperatures=50, num_leapfrog=5)
    assert (estimate.values - exact).square().mean().sqrt() < 0.1

    def model(x=None, y=None):
        with data_plate(x, y):
            z = pyro.sample("z", dist.Normal(y, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    y = torch.arange(30.0)
    bounds = bdmc(Custom(model, lambda x, y: None), 30, y, start="prior", num_temperatures=50, num_leapfrog=5)
    exact = dist.Normal(y, math.sqrt(2)).log_prob(bounds.data[0])
    assert (bounds.lower - exact).abs().mean() < 0.1 and (bounds.upper - exact).abs().mean() < 0.1
    with pytest.raises(ValueError, match="context has 30 rows, and n=20"):
        bdmc(Custom(model, lambda x, y: None), 20, y, start="prior")


def test_the_pair_and_the_process_are_given_back(loose):
    pair, x = loose
    pair.train()
    state = torch.get_rng_state()
    first = ais(pair, x, num_temperatures=3, num_leapfrog=1, num_chains=2)
    bdmc(pair, 3, num_temperatures=3, num_leapfrog=1, num_chains=2)
    assert torch.equal(torch.get_rng_state(), state) and pair.training
    assert all(p.grad is None and p.requires_grad for p in pair.parameters())
    assert torch.equal(ais(pair, x, num_temperatures=3, num_leapfrog=1, num_chains=2).values, first.values)


def observing(draw, scale=1.0):
    def model(x=None):
        with data_plate(x):
            z = draw()
            return pyro.sample("x", dist.Normal(z, scale), obs=x)

    return model


def quiet(x):
    return None


def of_normal(x):
    with data_plate(x):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


def through_a_delta(x):
    with data_plate(x):
        e = pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(e, log_density=torch.ones_like(e)))


def outside(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with data_plate(x):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def moving():
    low = pyro.sample("low", dist.Normal(0.0, 1.0))
    return pyro.sample("z", dist.Uniform(low, low + 1))


class Detached(dist.Normal):
    """A prior that was computed without torch, say."""

    def log_prob(self, value):
        return super().log_prob(value).detach()


@pytest.mark.parametrize(
    ("model", "guide", "start", "fact"),
    [
        (observing(lambda: pyro.sample("k", dist.Bernoulli(0.5))), quiet, "prior", "'k' is discrete.*log_likelihood"),
        (
            observing(lambda: pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})),
            quiet,
            "guide",
            "'k' is discrete",
        ),
        (outside, quiet, "prior", "latent site 'z' has no per-datum axis"),
        (observing(lambda: torch.zeros(())), quiet, "prior", "no latents.*log_likelihood is exact"),
        (observing(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))), quiet, "guide", r"model draws \['z'\]"),
        (observing(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))), through_a_delta, "guide", "start='prior'"),
        (observing(moving), quiet, "prior", "support of the latent 'z'.*moves with another latent"),
        (
            observing(lambda: pyro.sample("z", Detached(0.0, 1.0))),
            quiet,
            "prior",
            r"prior's log-density has no gradient",
        ),
        (observing(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))), of_normal, "posterior", "'guide' or 'prior'"),
    ],
)
def test_what_cannot_be_annealed_is_refused(model, guide, start, fact):
    with pytest.raises(ValueError, match=fact):
        ais(Custom(model, guide), torch.randn(4), start=start, num_temperatures=3, num_chains=2)


@pytest.mark.parametrize("name", ["num_chains", "num_temperatures", "num_leapfrog"])
def test_bad_numbers_are_named(loose, name):
    with pytest.raises(ValueError, match=f"{name} must be a positive whole number, got 0"):
        ais(*loose, **{name: 0})


def test_bounds_need_a_model_that_draws():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(TypeError, match="could not be run without data"):
        bdmc(Custom(model, of_normal), 3)


def test_infinite_weights_are_named():
    def model(x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("f", torch.where(x > 1, math.inf, 0.0) + 0 * z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="datum 2"):
        ais(Custom(model, of_normal), torch.tensor([0.0, 0.5, 2.0]), num_temperatures=2, num_chains=2)


def test_data_that_a_factor_weighs_are_no_draws_of_the_posterior():
    def model(x=None):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("tilt", 3 * z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(ValueError, match=r"\['tilt'\] also when it is run without data .* bdmc does not"):
        bdmc(Custom(model, guide), 20)
