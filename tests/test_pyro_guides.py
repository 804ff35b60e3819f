"""Guides that run the model (Pyro's messengers): what they observe on their way is no part of the proposal."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormalMessenger
from pyro.poutine.guide import GuideMessenger

from ppgen.inference import (
    ais,
    dreg,
    elbo,
    fit,
    iwae,
    latent_report,
    log_likelihood,
    repaired_log_likelihood,
    sticking_the_landing,
)
from ppgen.inference.losses.loss import as_loss
from ppgen.models import Custom
from ppgen.pair import data_plate

X = torch.linspace(-2.0, 2.0, 30)
EXACT = dist.Normal(0.0, 2**0.5).log_prob(X).double()


def model(x=None):
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Exact(GuideMessenger):
    def get_posterior(self, name, prior):
        return dist.Normal(0.5 * self.args_kwargs[0][0], 0.5**0.5)


class Amortised(GuideMessenger):
    def get_posterior(self, name, prior):
        slope, log_scale = (pyro.param(n, torch.zeros(())) for n in ("slope", "log_scale"))
        return dist.Normal(slope * self.args_kwargs[0][0], log_scale.exp())


def observing(x):
    """The same posterior by hand, with the model's observation behind it."""
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("guide", [Exact(model), observing], ids=["messenger", "function"])
def test_the_likelihood_does_not_cancel(guide):
    pair = Custom(model, guide)
    estimate = log_likelihood(pair, X, num_samples=50)
    assert torch.allclose(estimate.values, EXACT, atol=1e-5) and estimate.reliable.all()
    for loss in (elbo(), iwae(5)):
        assert loss(pair.model, pair.guide, X).item() == pytest.approx(-EXACT.mean().item(), abs=1e-4)
    assert list(latent_report(pair, X).kl) == ["z"]
    assert torch.allclose(repaired_log_likelihood(pair, X, num_samples=30).values, EXACT, atol=1e-4)
    chains = ais(pair, X[:5], start="guide", num_chains=30, num_temperatures=20)
    assert torch.allclose(chains.values, EXACT[:5], atol=1e-4)


@pytest.mark.parametrize("loss", [elbo(), iwae(5), sticking_the_landing(), dreg(5)])
def test_a_messenger_learns_the_posterior(loss):
    pair = Custom(model, Amortised(model))
    fit(pair, X, loss=loss, epochs=150, optimizer=lambda p: torch.optim.Adam(p, lr=0.05), seed=0, progress=False)
    assert pair.sites["slope"].item() == pytest.approx(0.5, abs=0.1)
    assert log_likelihood(pair, X, num_samples=500).values.sub(EXACT).abs().max() < 0.1


def test_parameters_that_pyro_expands_can_be_trained():
    """Those of an AutoNormalMessenger are one number in memory for all of their elements."""
    pair = Custom(model, AutoNormalMessenger(model))
    x = torch.full((8,), 1.0)
    fit(pair, x, epochs=200, optimizer=lambda p: torch.optim.Adam(p, lr=0.05), seed=0, progress=False)
    found = log_likelihood(pair, x, num_samples=500).values
    assert found.mean().item() == pytest.approx(-0.25 - 0.5 * math.log(4 * math.pi), abs=0.05)


def tilted(x=None):
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("tilt", -0.5 * z**2)
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class ExactOfTilted(GuideMessenger):
    def get_posterior(self, name, prior):
        return dist.Normal(self.args_kwargs[0][0] / 3, 3**-0.5)


def test_nor_does_a_factor_of_the_model():
    """∫ N(z; 0, 1) exp(−z²/2) N(x; z, 1) dz, the same for every draw of the exact posterior."""
    exact = dist.Normal(0.0, 1.5**0.5).log_prob(X) - 0.5 * math.log(2)
    pair = Custom(tilted, ExactOfTilted(tilted))
    assert torch.allclose(log_likelihood(pair, X, num_samples=30).values.float(), exact, atol=1e-5)
    for loss in (elbo(), iwae(5)):
        assert loss(pair.model, pair.guide, X).item() == pytest.approx(-exact.mean().item(), abs=1e-4)
    assert list(latent_report(pair, X).kl) == ["z"]


@config_enumerate
def mixture(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.4, 0.6])))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + c, 1.0), obs=x)


def of_latent(x, observes=False):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x / 2, pyro.param("scale", torch.tensor(0.7))))
        if observes:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(("program", "loss"), [(mixture, elbo()), (model, Trace_ELBO())], ids=["enumerated", "Pyro's"])
def test_objectives_of_pyro_see_no_observation_of_the_guide(program, loss):
    values = []
    for observes in (False, True):
        torch.manual_seed(0)
        pair = Custom(program, functools.partial(of_latent, observes=observes))
        values.append(as_loss(loss)(pair.model, pair.guide, X).item())
    assert values[0] == pytest.approx(values[1], abs=1e-5)
