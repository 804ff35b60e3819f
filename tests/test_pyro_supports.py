"""Proposals that are not of what the model draws: another support, another mask."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppgen.inference import elbo, iwae, log_likelihood
from ppgen.models import Custom

X = torch.tensor([0.5, -1.0, 2.0])


def proposing(prior, proposal):
    """A latent that one distribution is the model's of, and another one the guide's."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", proposal)

    return Custom(model, guide)


HALF = torch.tensor(0.5)


@pytest.mark.parametrize(
    ("prior", "proposal", "words"),
    [
        (
            dist.Bernoulli(0.3),
            dist.RelaxedBernoulliStraightThrough(HALF, HALF),
            "one is a probability",
        ),
        (dist.Normal(0.0, 1.0), dist.HalfNormal(1.0), "only a part of its range"),
        (dist.Normal(0.0, 1.0), dist.Uniform(-5.0, 5.0), "only a part of its range"),
        (dist.Uniform(0.0, 1.0), dist.Uniform(torch.tensor([0.0, 0.2, 0.0]), 1.0), "only a part of its range"),
        (dist.Poisson(3.0), dist.Binomial(5, HALF), "only a part of its range"),
        (dist.VonMises(0.0, 1.0), dist.Normal(0.0, 2.0), "one period of an angle"),
    ],
    ids=str,
)
def test_what_does_not_reach_all_that_the_model_draws_gives_no_weight(prior, proposal, words):
    pair = proposing(prior, proposal)
    names = f"'z' is {type(prior).__name__} in the model and {type(proposal).__name__} in the guide: .*"
    for ask in (lambda: log_likelihood(pair, X, num_samples=30), lambda: iwae(3)(pair.model, pair.guide, X)):
        with pytest.raises(ValueError, match=names + words):
            ask()


def test_a_bound_may_be_of_a_part_of_the_range():
    """The ELBO of a proposal that reaches a part is one of log p(x), and lower."""
    torch.manual_seed(0)
    pair = proposing(dist.Normal(0.0, 1.0), dist.HalfNormal(1.0))
    exact = -dist.Normal(0.0, 2**0.5).log_prob(X).mean()
    assert elbo(num_particles=1000)(pair.model, pair.guide, X) > exact


@pytest.mark.parametrize(
    ("prior", "proposal"),
    [
        (dist.Uniform(0.0, 1.0), dist.Beta(HALF + 1, HALF + 1)),
        (dist.LogNormal(0.0, 1.0), dist.Gamma(HALF + 2, HALF + 1)),
        (dist.VonMises(0.0, 1.0), dist.VonMises(0.0, 0.5)),
        (dist.Uniform(0.2, 0.8), dist.Uniform(0.0, 1.0)),  # more than all of it is all of it
    ],
    ids=str,
)
def test_another_distribution_of_the_same_range_is_right(prior, proposal):
    torch.manual_seed(0)
    grid = torch.linspace(1e-5, 1 - 1e-5, 200_001, dtype=torch.float64)
    low, high = {"Uniform": (0.2, 0.8) if "0.2" in str(prior) else (0.0, 1.0), "VonMises": (-torch.pi, torch.pi)}.get(
        type(prior).__name__, (0.0, 40.0)
    )
    z = low + (high - low) * grid
    joint = prior.log_prob(z) + dist.Normal(z, 1.0).log_prob(X[:, None].double())
    exact = (joint.exp().mean(-1) * (high - low)).log()
    pair = proposing(prior, proposal)
    with pyro.validation_enabled(False):
        estimate = log_likelihood(pair, X, num_samples=20_000)
    assert torch.allclose(estimate.values, exact, atol=0.05)


def test_a_delta_may_hand_on_a_draw_of_any_kind():
    """A class drawn from a uniform number, whose probability the Delta brings."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Uniform(0.0, 1.0), infer={"is_auxiliary": True})
            k = (u < 0.4).float()
            pyro.sample("k", dist.Delta(k, log_density=torch.where(k > 0, math.log(0.4), math.log(0.6))))

    torch.manual_seed(0)
    values = log_likelihood(Custom(model, guide), X, num_samples=20_000).values.float()
    of_k = torch.stack([dist.Bernoulli(0.3).log_prob(k) + dist.Normal(k, 1.0).log_prob(X) for k in torch.arange(2.0)])
    assert torch.allclose(values, of_k.logsumexp(0), atol=0.02)


def masked(of_model, of_guide, by="program"):
    def hidden(fn, mask):
        return fn.mask(mask) if by == "distribution" else fn

    def scope(mask):
        return poutine.mask(mask=mask if by == "program" else True)

    def model(x):
        with pyro.plate("data", len(x)):
            with scope(of_model):
                z = pyro.sample("z", hidden(dist.Normal(0.0, 1.0).expand((len(x),)), of_model))
            pyro.sample("x", dist.Normal(torch.where(of_both, z, 0.0), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), scope(of_guide):
            pyro.sample("z", hidden(dist.Normal(x / 2, 0.5**0.5), of_guide))

    of_both = SEEN
    return Custom(model, guide)


SEEN, ALL = torch.tensor([True, False, True]), torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize("by", ["program", "distribution"])
@pytest.mark.parametrize(("of_model", "of_guide"), [(SEEN, ALL), (ALL, SEEN), (SEEN, ~SEEN)])
def test_a_mask_of_one_program_alone_is_refused(of_model, of_guide, by):
    pair = masked(of_model, of_guide, by)
    for ask in (
        lambda: log_likelihood(pair, X, num_samples=3),
        lambda: elbo()(pair.model, pair.guide, X),
        lambda: elbo(analytic_kl=True)(pair.model, pair.guide, X),
    ):
        with pytest.raises(ValueError, match=r"'z' is masked in the .* under the same mask in both programs"):
            ask()


@pytest.mark.parametrize("by", ["program", "distribution"])
def test_what_both_mask_is_left_out(by):
    values = log_likelihood(masked(SEEN, SEEN.clone(), by), X, num_samples=3).values.float()
    exact = torch.where(SEEN, dist.Normal(0.0, 2**0.5).log_prob(X), dist.Normal(0.0, 1.0).log_prob(X))
    assert torch.allclose(values, exact, atol=1e-5)


def test_a_prior_that_is_masked_altogether_is_a_flat_one():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).mask(False))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    values = log_likelihood(Custom(model, guide), X, num_samples=3).values
    assert values.abs().max() < 1e-5  # the integral of the likelihood over z is 1
    assert elbo()(model, guide, X).item() == pytest.approx(0.0, abs=1e-5)
