"""Density networks against quadrature and exact marginals, and where they fail; explicit densities are exact."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from parts import CONDITIONAL_PRIORS, PRIORS, WIDTH

from ppgen import decoders, nn, priors
from ppgen.inference import elbo, fit, impute, iwae, log_likelihood, log_weights, sample
from ppgen.models import DensityNetwork, ExplicitDensity, FactorAnalysis

X = 9


def binary(n=30):
    return torch.bernoulli(torch.full((n, X), 0.4))


def network(latent_dim=1):
    """A decoder whose logits are far from zero, so that the latent matters."""
    net = nn.MLP(latent_dim, 16, X)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    return DensityNetwork(priors.StandardNormal(latent_dim), decoders.Bernoulli(net))


def by_quadrature(pair, x, mask=None):
    """The logarithm of ∫ p(z) p(x | z) dz over a fine grid of a latent of one dimension."""
    z = torch.linspace(-8, 8, 4001).unsqueeze(-1)
    scores = dist.Bernoulli(logits=pair.decoder.net(z)).log_prob(x.unsqueeze(1))  # (N, grid, X)
    log_joint = (scores if mask is None else scores * mask.unsqueeze(1)).sum(-1) + pair.prior().log_prob(z)
    return (log_joint.logsumexp(-1) + math.log(16 / 4000)).detach()


@pytest.mark.parametrize("incomplete", [False, True])
def test_many_samples_are_the_integral(incomplete):
    pair, x = network(), binary()
    mask = torch.rand(x.shape) < 0.5 if incomplete else None
    estimate = log_likelihood(pair, x, mask=mask, num_samples=20_000)
    assert estimate.reliable_fraction > 0.7
    error = (estimate.values - by_quadrature(pair, x, mask)).abs()
    assert (error < 5 * estimate.mc_standard_error)[estimate.reliable].all() and error.mean() < 0.05


def test_the_weights_are_the_decoders_density():
    pair, x = network(2), binary()
    torch.manual_seed(3)
    log_w = log_weights(pair, x, num_samples=7)
    torch.manual_seed(3)
    with pyro.plate("particles", 7, dim=-2):
        z = pair.guide(x)
    torch.testing.assert_close(log_w, pair.decoder(z).log_prob(x))
    loss = iwae(7)
    torch.manual_seed(3)
    value = loss(pair.model, pair.guide, x)
    assert value.item() == pytest.approx(-(log_w.logsumexp(0) - math.log(7)).mean().item())


@pytest.mark.parametrize("conditional", [False, True])
def test_every_parameter_trains(conditional):
    y = (torch.randn(30, WIDTH),) if conditional else ()
    prior = CONDITIONAL_PRIORS["mog"](2) if conditional else priors.Flow.nsf(2, hidden=(8,))
    pair = DensityNetwork(prior, decoders.Bernoulli(nn.MLP(2 + WIDTH * conditional, 16, X)))
    before = {n: p.detach().clone() for n, p in pair.named_parameters()}
    fit(pair, (binary(), *y), loss=iwae(5), epochs=3, batch_size=10, seed=0, progress=False)
    assert not [n for n, p in pair.named_parameters() if torch.equal(p, before[n])]
    assert sample(pair, 4, *(c[:4] for c in y), seed=0).shape == (4, X)


def test_training_finds_a_curve():
    angle = 1.5 * math.pi * torch.rand(1000, 1)
    x = torch.cat([angle.cos(), angle.sin()], -1) + 0.1 * torch.randn(1000, 2)
    pair = DensityNetwork(priors.StandardNormal(1), decoders.Normal(nn.MLP(1, 32, 32, 2), scale=0.5, learn_scale=True))
    fit(pair, x, loss=iwae(100), epochs=40, seed=0, progress=False, optimizer=lambda p: torch.optim.Adam(p, 1e-2))
    line = FactorAnalysis(2, 1)
    line.initialize(x)
    assert log_likelihood(pair, x, num_samples=2000).mean > line.score(x) + 0.5
    drawn = sample(pair, 500, mean=True, seed=0)
    assert (drawn.norm(dim=-1) - 1).abs().median() < 0.1


def linear(latent_dim):
    """A linear decoder, whose likelihood is known, as a density network; and data of it."""
    exact = FactorAnalysis(20, latent_dim)
    with torch.no_grad():
        exact.log_scale.fill_(-1)
    net = torch.nn.Linear(latent_dim, 20)
    net.weight, net.bias = exact.loadings, exact.loc
    pair = DensityNetwork(priors.StandardNormal(latent_dim), decoders.Normal(net, scale=math.exp(-1)))
    return pair, exact, sample(exact, 60, seed=2)


def test_it_fails_as_the_latent_grows():
    gaps, shares = [], []
    for latent_dim in (1, 3, 10):
        pair, exact, x = linear(latent_dim)
        estimate = log_likelihood(pair, x, num_samples=2000)
        gaps.append(exact.score(x) - estimate.mean)
        shares.append(estimate.ess.mean().item() / 2000)
    assert gaps[0] < 0.1 and gaps[0] < gaps[1] < gaps[2] and gaps[2] > 3
    assert shares[0] > 10 * shares[2] and shares[0] > shares[1] > shares[2]
    assert estimate.reliable_fraction < 0.1  # and it says so


def test_the_elbo_is_no_objective_here():
    pair, x = network(), torch.eye(X)[torch.randint(X, (300,))]
    options = {"epochs": 60, "seed": 0, "progress": False, "optimizer": lambda p: torch.optim.Adam(p, 1e-2)}
    z = torch.linspace(-2, 2, 50).unsqueeze(-1)
    fit(pair, x, loss=elbo(), **options)
    assert pair.decoder(z).mean.std(0).max() < 0.1  # the decoder ignores z
    fit(pair, x, loss=iwae(50), **options)
    assert pair.decoder(z).mean.std(0).max() > 0.2


@pytest.mark.parametrize("part", ["prior", "decoder"])
def test_parts_that_are_no_modules(part):
    parts = {"prior": priors.StandardNormal(2), "decoder": decoders.Bernoulli(nn.MLP(2, X))} | {part: 3}
    with pytest.raises(TypeError, match=rf"DensityNetwork: {part} must be a module .* got int"):
        DensityNetwork(**parts)
    with pytest.raises(TypeError, match=r"ExplicitDensity: density must be a module .* got Normal"):
        ExplicitDensity(dist.Normal(0.0, 1.0))


D = 3
MASKABLE = ["standard", "diagonal", "mog", "vamp", "vamp, learned weights", "vamp, full covariance"]


@pytest.mark.parametrize("name", PRIORS)
def test_explicit_densities_are_exact(name):
    pair, x = ExplicitDensity(PRIORS[name](D)).eval(), torch.randn(40, D)
    expected = pair.density().log_prob(x).detach()
    for num_samples in (1, 30):
        estimate = log_likelihood(pair, x, num_samples=num_samples)
        torch.testing.assert_close(estimate.values, expected, check_dtype=False)
        assert torch.equal(estimate.values, estimate.elbo)
        assert estimate.reliable.all() and estimate.mean_mc_standard_error == 0
    assert sample(pair, 5, seed=0).shape == (5, D)
    for loss in (elbo(), elbo(num_particles=3), iwae(4)):
        assert loss(pair.model, pair.guide, x).item() == pytest.approx(-expected.mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", CONDITIONAL_PRIORS)
def test_conditional_densities_are_exact(name):
    pair = ExplicitDensity(CONDITIONAL_PRIORS[name](2)).eval()
    x, y = torch.randn(20, 2), torch.randn(20, WIDTH)
    expected = pair.density(y).log_prob(x).detach()
    torch.testing.assert_close(log_likelihood(pair, x, y, num_samples=1).values, expected, check_dtype=False)
    before = {n: p.detach().clone() for n, p in pair.named_parameters()}
    fit(pair, (x, y), epochs=2, seed=0, progress=False)
    assert not [n for n, p in pair.named_parameters() if torch.equal(p, before[n])]
    assert sample(pair, 20, y, seed=0).shape == x.shape


def test_fit_is_maximum_likelihood():
    x = torch.randn(500, D) * torch.tensor([0.5, 1.0, 2.0]) + torch.tensor([1.0, 0.0, -1.0])
    pair = ExplicitDensity(priors.DiagNormal(D))
    for lr in (0.1, 0.01):
        adam = torch.optim.Adam(pair.parameters(), lr)
        fit(pair, x, epochs=150, batch_size=500, optimizer=adam, seed=0, progress=False)
    best = dist.Normal(x.mean(0), x.std(0, correction=0)).to_event(1).log_prob(x)
    torch.testing.assert_close(
        log_likelihood(pair, x, num_samples=1).values, best, check_dtype=False, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("name", MASKABLE)
def test_what_is_missing_is_integrated_out(name):
    """Against the integral over the missing coordinate on a grid."""
    pair, x = ExplicitDensity(PRIORS[name](2)).eval(), torch.randn(6, 2)
    mask = torch.tensor([[True, False]]).expand(6, 2)
    grid = torch.linspace(-12, 12, 2401)
    whole = torch.stack([x[:, :1].expand(-1, len(grid)), grid.expand(6, -1)], -1)
    expected = (pair.density().log_prob(whole).double().logsumexp(-1) + math.log(0.01)).detach()
    holes = torch.where(mask, x, torch.nan)
    estimate = log_likelihood(pair, holes, mask=mask, num_samples=1)
    torch.testing.assert_close(estimate.values, expected, check_dtype=False, atol=1e-4, rtol=1e-4)
    filled = impute(pair, holes, mask=mask, num_samples=200)
    assert torch.equal(filled[:, 0], x[:, 0]) and filled.isfinite().all()


@pytest.mark.parametrize("name", sorted(set(PRIORS) - set(MASKABLE)))
def test_densities_that_cannot_be_marginalised_refuse_masks_with_the_reason(name):
    pair, x = ExplicitDensity(PRIORS[name](D)).eval(), torch.randn(20, D)
    mask, before = torch.rand(x.shape) < 0.5, {n: p.detach().clone() for n, p in pair.named_parameters()}
    reason = "has no exact marginal, since its elements depend on each other .* Take a decoder that factorises"
    with pytest.raises(ValueError, match=reason):
        log_likelihood(pair, x, mask=mask, num_samples=1)
    with pytest.raises(ValueError, match=reason):
        fit(pair, x, mask=mask, epochs=1, progress=False)
    assert all(torch.equal(p, before[n]) for n, p in pair.named_parameters())
