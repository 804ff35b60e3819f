"""The ELBO with closed-form divergences: the same value, and only where a closed form holds."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppgen import decoders, models, posteriors, priors
from ppgen import nn as networks
from ppgen.inference import elbo
from ppgen.models import Custom
from ppgen.pair import data_plate, sample


def vae(posterior):
    return models.VAE(priors.StandardNormal(3), decoders.Bernoulli(networks.MLP(3, 8, 6)), posterior)


def test_equals_pyros_mean_field_elbo_at_one_seed():
    pair, x = vae(posteriors.DiagNormal(networks.MLP(6, 8, 6))), torch.rand(50, 6).round()
    values = []
    for objective in (elbo(analytic_kl=True), pyro.infer.TraceMeanField_ELBO().differentiable_loss):
        torch.manual_seed(3)
        values.append(objective(pair.model, pair.guide, x).item())
    assert values[0] == pytest.approx(values[1] / 50, rel=1e-6)


@pytest.mark.parametrize("kind", [posteriors.DiagNormal, posteriors.FullNormal, posteriors.Householder, posteriors.IAF])
def test_has_the_value_of_the_monte_carlo_form(kind):
    net = networks.MLP(6, 8, kind.num_outputs(3))
    pair = vae(kind(net) if kind is posteriors.DiagNormal else kind(net, 3))
    x = torch.rand(20, 6).round()
    with torch.no_grad():
        plain, closed = (
            torch.stack([loss(pair.model, pair.guide, x) for _ in range(500)])
            for loss in (elbo(num_particles=4), elbo(num_particles=4, analytic_kl=True))
        )
    error = ((plain.var() + closed.var()) / 500).sqrt()
    assert (plain.mean() - closed.mean()).abs() < 4 * error
    if kind is posteriors.DiagNormal:
        assert closed.std() < plain.std()


@pytest.mark.parametrize("top_first", [True, False])
def test_a_guide_in_another_order_gets_no_wrong_closed_form(top_first):
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)

    def model(x):
        with data_plate(x):
            top = sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z = sample("z1", dist.Normal(2 * top, 1.0).to_event(1))
            sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        names = ("z2", "z1") if top_first else ("z1", "z2")
        with data_plate(x):
            z = sample(names[0], dist.Normal(first(x), 0.8).to_event(1))
            sample(names[1], dist.Normal(second(x + z), 0.5).to_event(1))

    pair, x = Custom(model, guide), torch.randn(20, 1)
    with torch.no_grad():
        plain, closed = (
            torch.stack([loss(pair.model, pair.guide, x) for _ in range(1000)])
            for loss in (elbo(), elbo(analytic_kl=True))
        )
    assert (plain.mean() - closed.mean()).abs() < 4 * ((plain.var() + closed.var()) / 1000).sqrt()


def test_masked_data_have_no_divergence():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.ones(()))

        def model(self, x):
            with data_plate(x), pyro.poutine.mask(mask=torch.tensor([True, False])):
                z = sample("z", dist.Normal(0.0, 1.0))
                sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with data_plate(x), pyro.poutine.mask(mask=torch.tensor([True, False])):
                sample("z", dist.Normal(self.loc, torch.tensor(1e-6)))

    pair, x = Masked(), torch.tensor([1.0, 50.0])
    value = elbo(analytic_kl=True)(pair.model, pair.guide, x).item()
    kl = torch.distributions.kl_divergence(dist.Normal(1.0, 1e-6), dist.Normal(0.0, 1.0))
    expected = (kl - dist.Normal(1.0, 1.0).log_prob(torch.tensor(1.0))) / 2  # of two data, one is masked
    assert value == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("event", [0, 1])
def test_a_point_that_hands_on_a_draw_keeps_its_density(event):
    """A log-normal guide, and the same by an auxiliary normal draw, as the autoguides have it."""

    def model(x):
        with data_plate(x):
            z = sample("z", dist.Gamma(2 * torch.ones(1), 1.0).to_event(1) if event else dist.Gamma(2.0, 1.0))
            sample("x", dist.Normal(z, 1.0).to_event(event), obs=x)

    def directly(x):
        with data_plate(x):
            sample("z", dist.LogNormal(0.5 * torch.ones(x.shape[1:]), 0.3).to_event(event))

    def handed_on(x):
        with data_plate(x):
            u = sample(
                "u", dist.Normal(0.5 * torch.ones(x.shape[1:]), 0.3).to_event(event), infer={"is_auxiliary": True}
            )
            sample("z", dist.Delta(u.exp(), log_density=-u).to_event(event))

    x, values = torch.tensor([1.0, 2.0, 3.0])[(..., *(None,) * event)], []
    for guide, loss in ((directly, elbo()), (handed_on, elbo()), (handed_on, elbo(analytic_kl=True))):
        torch.manual_seed(0)
        values.append(loss(model, guide, x).item())
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-5)


@pytest.mark.parametrize("weight", ["scale", "scale tensor"])
def test_terms_that_are_weighed_otherwise_are_no_divergence(weight):
    """A scale of the model's site alone: the flag changes the variance, and not what is minimised."""
    of_model = {
        "scale": pyro.poutine.scale(scale=0.3),
        "scale tensor": pyro.poutine.scale(scale=torch.tensor([1.0, 0.3, 1.0])),
    }[weight]

    def model(x):
        with data_plate(x):
            with of_model:
                z = sample("z", dist.Normal(0.0, 1.0))
            sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            sample("z", dist.Normal(0.4 * x, torch.tensor(0.6)))

    x = torch.tensor([0.5, -1.0, 2.0])
    torch.manual_seed(0)
    closed, sampled = (
        torch.stack([loss(model, guide, x) for _ in range(30)]).mean()
        for loss in (elbo(num_particles=1000, analytic_kl=True), elbo(num_particles=1000))
    )
    assert closed.item() == pytest.approx(sampled.item(), abs=0.02)
