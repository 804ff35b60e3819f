"""Pathwise objectives: the values and gradients of what they stand for, with the variance that they promise."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroParam
from torch import nn

from ppgen import decoders, posteriors, priors
from ppgen import nn as networks
from ppgen.distributions import Mixture
from ppgen.inference import dreg, elbo, fit, iwae, renyi, sticking_the_landing, stratified, warmup
from ppgen.models import VAE, Custom
from ppgen.pair import data_plate, sample


class Decoder(nn.Module):
    def forward(self, z):
        return dist.Normal(z, 1.0).to_event(1)


class Posterior(nn.Module):
    """q(z | x) = N(weight · x, exp(log_scale)²); exact for p(z) = N(0, 1), p(x | z) = N(z, 1) at (½, ½ log ½)."""

    def __init__(self, weight=0.5, log_scale=0.5 * math.log(0.5)):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.log_scale = nn.Parameter(torch.tensor(log_scale))

    def forward(self, x):
        return dist.Normal(self.weight * x, self.log_scale.exp()).to_event(1)


def pair(**start):
    return VAE(priors.MixtureOfGaussians(2, 3), Decoder(), Posterior(**start))


def gradients(loss, vae, x):
    vae.zero_grad()
    loss(vae.model, vae.guide, x).backward()
    return torch.cat([p.grad.flatten() for p in vae.parameters()])


def mean_and_error(loss, vae, x, repeats=400):
    draws = torch.stack([gradients(loss, vae, x) for _ in range(repeats)])
    return draws.mean(0), draws.std(0) / math.sqrt(repeats)


def test_the_gradient_vanishes_where_the_guide_is_exact():
    vae = VAE(priors.StandardNormal(3), Decoder(), Posterior())
    x = torch.randn(20, 3)
    assert gradients(sticking_the_landing(), vae, x).abs().max() < 1e-5
    assert gradients(dreg(8), vae, x).abs().max() < 1e-5
    assert gradients(elbo(), vae, x).abs().max() > 1e-2  # the score's noise


@pytest.mark.parametrize("loss", [sticking_the_landing(), dreg(8)])
def test_the_gradient_vanishes_for_what_only_a_site_shows(loss, global_param_store):
    """A scale of ``pyro.param``, a network of ``pyro.module``, and one that is the pair's."""
    shift = nn.Linear(1, 1)

    class Exact:
        def __init__(self):
            self.net = nn.Linear(1, 1)

        def model(self, x):
            with data_plate(x):
                sample("x", dist.Normal(sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

        def guide(self, x):
            pyro.module("shift", shift)
            scale = pyro.param("scale", torch.tensor(0.5).sqrt(), constraint=dist.constraints.positive)
            with data_plate(x):
                sample("z", dist.Normal((self.net(x.unsqueeze(-1)) + shift(x.unsqueeze(-1))).squeeze(-1), scale))

    exact, x = Exact(), torch.randn(20)
    for parameter in (*exact.net.parameters(), *shift.parameters()):
        nn.init.zeros_(parameter)
    nn.init.constant_(exact.net.weight, 0.5)
    loss(exact.model, exact.guide, x).backward()
    scale = pyro.param("scale").unconstrained()
    for parameter in (*exact.net.parameters(), *shift.parameters(), scale):
        assert parameter.requires_grad and parameter.grad.abs().max() < 1e-5


def by_logarithm(x):
    """A positive latent, of which log z is N(x / 2, ½) given x."""
    with data_plate(x):
        z = sample("z", dist.LogNormal(0.0, 1.0))
        sample("x", dist.Normal(z.log(), 1.0), obs=x)


def of_a_fixed_map(how):
    """A pair whose guide draws log z, from the exact posterior, and gives z with the Jacobian of the logarithm."""
    q = Posterior()

    def guide(x):
        with data_plate(x):
            u = sample("u", dist.Normal(q.weight * x, q.log_scale.exp()), infer={"is_auxiliary": True})
            sample("z", dist.Delta(u.exp(), log_density=-u if how == "log_density" else 0.0))
            if how == "factor":
                pyro.factor("jacobian", -u, has_rsample=True)

    return Custom(by_logarithm, guide, q=q)


def automatic(x):
    guide = AutoNormal(by_logarithm)
    guide(x)
    guide.locs.z = nn.Parameter(x / 2)
    guide.scales.z = PyroParam(torch.full_like(x, math.sqrt(0.5)), dist.constraints.positive)
    return Custom(by_logarithm, guide)


@pytest.mark.parametrize("loss", [sticking_the_landing(), dreg(8)])
@pytest.mark.parametrize("how", ["log_density", "factor", "AutoNormal"])
def test_the_gradient_vanishes_for_what_a_fixed_map_makes_of_a_draw(how, loss):
    """The parameters reach the Jacobian by the draw alone."""
    x = torch.randn(20)
    exact = automatic(x) if how == "AutoNormal" else of_a_fixed_map(how)
    loss(exact.model, exact.guide, x).backward()
    assert len(list(exact.parameters())) == 2
    for parameter in exact.parameters():
        assert parameter.grad.abs().max() < 1e-5


@pytest.mark.parametrize("how", ["log_density", "factor"])
@pytest.mark.parametrize("loss", [sticking_the_landing(), dreg(3)])
def test_a_map_with_parameters_is_refused_where_its_jacobian_would_be_held(loss, how):
    """Held, log|T'| has no gradient, and eps, in place of z, no parameters: the entropy would have no say."""
    q = Posterior()

    def model(x):
        with data_plate(x):
            sample("x", dist.Normal(sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            eps = sample("eps", dist.Normal(torch.zeros(len(x)), 1.0), infer={"is_auxiliary": True})
            density = -q.log_scale.expand(len(x))
            sample(
                "z",
                dist.Delta(
                    q.weight * x + q.log_scale.exp() * eps, log_density=density if how == "log_density" else 0.0
                ),
            )
            if how == "factor":
                pyro.factor("jacobian", density, has_rsample=True)

    pair, x = Custom(model, guide, q=q), torch.randn(20)
    name = {"log_density": "z", "factor": "jacobian"}[how]
    with pytest.raises(ValueError, match=f"guide's site '{name}' has .* use elbo or iwae, or draw"):
        loss(pair.model, pair.guide, x)
    with pytest.raises(ValueError, match="TransformedDistribution"):
        fit(pair, x, loss=copy.deepcopy(loss), epochs=1)
    assert q.weight.item() == 0.5


@pytest.mark.parametrize(
    ("ours", "reference"),
    [(sticking_the_landing(2), elbo(num_particles=2)), (dreg(5), iwae(5)), (renyi(0.0, 5), iwae(5))],
)
def test_value_and_gradient_have_the_mean_of_the_plain_objective(ours, reference):
    vae, x = pair(weight=0.3, log_scale=-0.2), torch.randn(10, 3)
    mean, error = mean_and_error(ours, vae, x)
    expected, other = mean_and_error(reference, vae, x)
    assert ((mean - expected).abs() < 4.5 * (error.square() + other.square()).sqrt() + 1e-6).all()
    assert (mean != 0).all()  # the prior's parameters, too
    values = [torch.stack([loss(vae.model, vae.guide, x) for _ in range(400)]).detach() for loss in (ours, reference)]
    gap = values[0].mean() - values[1].mean()
    assert gap.abs() < 4.5 * ((values[0].var() + values[1].var()) / 400).sqrt()


def test_dreg_has_less_variance_than_iwae():
    vae, x = pair(weight=0.3, log_scale=-0.2), torch.randn(10, 3)
    _, ours = mean_and_error(dreg(20), vae, x, 100)
    _, plain = mean_and_error(iwae(20), vae, x, 100)
    assert ours[-2:].square().sum() < 0.5 * plain[-2:].square().sum()


def test_renyi_lies_between_its_limits():
    vae, x = pair(weight=0.3, log_scale=-0.2), torch.randn(200, 3)

    def value(loss):
        torch.manual_seed(1)
        return loss(vae.model, vae.guide, x).item()

    values = [value(renyi(alpha, 50)) for alpha in (0.0, 0.5, 0.9999)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(value(iwae(50)), abs=1e-5)
    assert values[-1] == pytest.approx(value(elbo(num_particles=50)), abs=1e-2)


def test_two_layers_of_latents():
    def model(x):
        with data_plate(x):
            top = sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z = sample("z1", dist.Normal(top, 1.0).to_event(1))
            sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    first, second = Posterior(0.2, -0.1), Posterior(0.4, -0.3)

    def guide(x):
        with data_plate(x):
            top = sample("z2", first(x))
            sample("z1", second(x + top))

    hierarchy, x = Custom(model, guide), torch.randn(10, 1)
    mean, error = mean_and_error(dreg(5), hierarchy, x)
    expected, other = mean_and_error(iwae(5), hierarchy, x)
    assert ((mean - expected).abs() < 4.5 * (error.square() + other.square()).sqrt() + 1e-6).all()


@pytest.mark.parametrize("loss", [sticking_the_landing(), dreg(3), renyi(0.5, 3)])
@pytest.mark.parametrize("kind", ["diagonal", "iaf", "vamp"])
def test_the_parts_train_under_every_objective(loss, kind):
    if kind == "iaf":
        q = posteriors.IAF(networks.MLP(6, 8, posteriors.IAF.num_outputs(2)), 2)
    else:
        q = posteriors.DiagNormal(networks.MLP(6, 8, 4))
    x = torch.bernoulli(torch.full((40, 6), 0.3))
    prior = priors.VampPrior(q, x[:5]) if kind == "vamp" else priors.StandardNormal(2)
    vae = VAE(prior, decoders.Bernoulli(networks.MLP(2, 8, 6)), q)
    before = copy.deepcopy(vae)
    history = fit(vae, x, loss=copy.deepcopy(loss), epochs=2, batch_size=20, progress=False)
    assert all(math.isfinite(value) for value in history.loss)
    assert all((a != b).any() for a, b in zip(vae.parameters(), before.parameters(), strict=True))
    assert all(p.requires_grad for p in vae.parameters())


def test_what_cannot_be_done_is_refused():
    def model(x):
        with data_plate(x):
            k = sample("k", dist.Bernoulli(0.5))
            sample("x", dist.Normal(k, 1.0), obs=x)

    weight = nn.Linear(1, 1)

    def guide(x):
        with data_plate(x):
            sample("k", dist.Bernoulli(logits=weight(x.unsqueeze(-1)).squeeze(-1)))

    discrete, x = Custom(model, guide), torch.randn(5)
    for loss in (sticking_the_landing(), dreg(2), renyi(0.5, 2)):
        with pytest.raises(ValueError, match="reparameterised"):
            loss(discrete.model, discrete.guide, x)
    assert all(p.requires_grad for p in discrete.parameters())
    with pytest.raises(ValueError, match="alpha must be a finite number"):
        renyi(1.0, 5)
    with pytest.raises(ValueError, match="num_particles must be a positive whole number, got 0"):
        dreg(0)


def mixture_pair():
    net = networks.MLP(3, 8, posteriors.MixtureOfGaussians.num_outputs(3, num_components=3))
    return VAE(priors.StandardNormal(3), Decoder(), posteriors.MixtureOfGaussians(net, 3, num_components=3))


def test_strata_have_the_mean_of_the_elbo_and_less_variance():
    vae, x = mixture_pair(), torch.randn(10, 3)
    mean, error = mean_and_error(stratified(), vae, x)
    expected, other = mean_and_error(elbo(num_particles=3), vae, x)
    assert ((mean - expected).abs() < 4.5 * (error.square() + other.square()).sqrt() + 1e-6).all()
    assert error.square().sum() < other.square().sum()


@pytest.mark.slow
def test_weighted_strata_lie_between_the_elbo_and_the_likelihood():
    vae, x = mixture_pair(), torch.randn(10, 3)
    with torch.no_grad():
        draws = torch.stack([stratified(importance_weighted=True)(vae.model, vae.guide, x) for _ in range(800)])
        lower = torch.stack([stratified()(vae.model, vae.guide, x) for _ in range(800)])
        weights = torch.stack(
            [(-stratified(importance_weighted=True)(vae.model, vae.guide, x[:1])).exp() for _ in range(4000)]
        )
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum(-1)
    assert -lower.mean() < -draws.mean() < exact.mean() + 4 * draws.std() / math.sqrt(800)
    error = weights.std() / math.sqrt(4000)
    assert (weights.mean() - exact[0].exp()).abs() < 4 * error  # the weighted sum is unbiased for p(x)


def test_strata_need_a_mixture():
    vae = pair()
    with pytest.raises(ValueError, match="draws its one latent from a mixture"):
        stratified()(vae.model, vae.guide, torch.randn(4, 3))


def test_strata_of_weights_that_rows_share():
    """Three components and three data: an axis of one could be taken for the other."""
    logits = torch.tensor([1.0, 0.0, -1.0])

    class Shared(nn.Module):
        def __init__(self, expanded):
            super().__init__()
            self.net, self.expanded = nn.Linear(2, 6), expanded

        def forward(self, x):
            components = dist.Normal(self.net(x).unflatten(-1, (3, 2)), 0.5).to_event(1)
            return Mixture(logits.expand(len(x), 3) if self.expanded else logits, components)

    torch.manual_seed(0)
    own = Shared(expanded=True)
    other = Shared(expanded=False)
    other.load_state_dict(own.state_dict())
    for x in (torch.randn(3, 2), torch.randn(5, 2)):
        found = []
        for q in (own, other):
            torch.manual_seed(1)
            vae = VAE(priors.StandardNormal(2), Decoder(), q)
            found.append(stratified()(vae.model, vae.guide, x).item())
        assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("loss", [sticking_the_landing(), dreg(3)])
def test_a_guide_with_dropout_is_refused_while_it_drops(loss):
    """It would draw by one mask and be scored by another: no bound, which pays for masks that differ."""
    net = nn.Sequential(nn.Linear(3, 32), nn.Dropout(0.5), nn.Linear(32, 6))
    vae, x = VAE(priors.StandardNormal(3), Decoder(), posteriors.DiagNormal(net)), torch.randn(20, 3)
    vae.eval()
    assert loss(vae.model, vae.guide, x).isfinite()
    vae.train()
    with pytest.raises(ValueError, match=r"draw of 'z' another density in each run.*dropout in train mode"):
        loss(vae.model, vae.guide, x)
    assert all(p.requires_grad for p in vae.parameters())
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(ValueError, match="dropout in train mode"):
        fit(vae, x, loss=copy.deepcopy(loss), epochs=1)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    vae.eval()
    assert loss(vae.model, vae.guide, x).isfinite()


@pytest.mark.parametrize("loss", [sticking_the_landing(), dreg(3), stratified()])
def test_programs_that_take_particles_for_data_are_refused(loss):
    class AlongAxisOne(nn.Module):
        def forward(self, z):
            return dist.Normal(3 * torch.softmax(z, 1), 1.0).to_event(1)

    vae = mixture_pair() if isinstance(loss, type(stratified())) else pair()
    vae = VAE(vae.prior, AlongAxisOne(), vae.posterior)
    with pytest.raises(ValueError, match="draws many particles at once, and this pair indexes or reshapes"):
        loss(vae.model, vae.guide, torch.randn(6, 3))


def test_the_score_function_has_a_signal_where_draws_weigh_nothing():
    """Some classes are impossible under the prior: of log weights −∞ no difference may be taken."""
    prior = torch.tensor([0.0, 0.0, -math.inf])
    free = nn.Embedding.from_pretrained(torch.zeros(10_000, 3), freeze=False)  # a row of logits, and so a draw, a datum

    def model(x):
        with data_plate(x):
            k = sample("k", dist.Categorical(logits=prior))
            sample("x", dist.Normal(k.float(), 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            sample("k", dist.Categorical(logits=free.weight))

    torch.manual_seed(0)
    x = torch.tensor([0.3, 1.2]).repeat(5000)
    draws = gradients(iwae(5), Custom(model, guide, net=free), x).view(-1, 3)
    finite = draws[draws.isfinite().all(-1)]
    assert len(finite) > 0.97 * len(draws)  # a bound is −∞ only where all five draws of a datum weigh nothing
    assert finite[:, -1].mean() > 4 * finite[:, -1].std() / len(finite) ** 0.5  # away from what is impossible


def test_a_schedule_must_be_a_coefficient():
    with pytest.raises(ValueError, match=r"beta must not be negative, got a schedule from 0\.0 to -1\.0"):
        elbo(beta=warmup(steps=1, end=-1.0))
    for name in ("start", "end"):
        with pytest.raises(ValueError, match=f"warmup: {name} must be a finite number, got nan"):
            warmup(3, **{name: math.nan})
