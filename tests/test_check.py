"""The ladder of exact cases, that each rung notices what is broken, and the verdict on a user's own run."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppgen.check import RUNGS, Rung, climb
from ppgen.inference import weights
from ppgen.nn.masked import MaskedConv2d
from ppgen.pair import data_plate


@pytest.mark.parametrize("name", RUNGS)
def test_the_rung_holds(name):
    before = torch.get_rng_state()
    rung = climb(name)
    assert rung.passed, rung
    assert str(rung).startswith("passed") and rung.name in str(rung)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_no_number_does_not_pass():
    for at_least in (True, False):
        assert not Rung("case", "error", float("nan"), 1.0, at_least).passed


class Changed:
    """A pair with another model or guide."""

    def __init__(self, pair, **programs):
        self.model, self.guide = programs.get("model", pair.model), programs.get("guide", pair.guide)


def with_a_factor(pair):
    """A likelihood with a factor left in."""

    def model(x=None):
        pair.model(x)
        with pyro.plate("rest", len(x), dim=-1):
            pyro.sample("factor", dist.Normal(0.0, 1.0), obs=torch.zeros(len(x)))

    return Changed(pair, model=model)


def with_half_the_scale(factor_analysis):
    """A guide narrower than the posterior."""

    def guide(x, mask=None):
        q = factor_analysis.posterior(x, mask)
        with data_plate(x):
            pyro.sample("z", dist.MultivariateNormal(q.mean, scale_tril=0.5 * q.scale_tril))

    return Changed(factor_analysis, guide=guide)


def without_its_determinant(prior):
    """A flow of which only the noise is scored."""
    flow = prior()

    class Missing:
        def log_prob(self, value):
            return flow.base.log_prob(flow.transform.inv(value))

    return Broken(Missing())


class Broken(nn.Module):
    def __init__(self, distribution):
        super().__init__()
        self.distribution = distribution

    def forward(self):
        return self.distribution


class Shifted:
    """A distribution of levels whose bins are one too far to the right."""

    def __init__(self, distribution):
        self.distribution = distribution

    def log_prob(self, x):
        return self.distribution.log_prob((x + 1).clamp(max=3))


def seeing_all(decoder):
    """A PixelCNN without masks."""
    for module in decoder.modules():
        if isinstance(module, MaskedConv2d):
            module.mask.fill_(1.0)
    return decoder


def far_away(proposed):
    return type(proposed)(proposed.exact, scale=0.02, shift=500.0, diagonal=True)


BROKEN = {
    "exact_guide": with_a_factor,
    "constant_weights": with_half_the_scale,
    "perturbed_guide": with_a_factor,
    "coverage": 0.3,
    "mixture": with_a_factor,
    "quadrature": with_a_factor,
    "flow_priors": without_its_determinant,
    "discretized": Shifted,
    "autoregressive": seeing_all,
    "bidirectional": far_away,
    "num_processes": lambda x: 1 - x,
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_rung_notices_what_is_broken(name):
    rung = climb(name, BROKEN[name])
    assert not rung.passed and str(rung).startswith("FAILED"), rung


def test_a_scale_left_in_the_weights_is_noticed(monkeypatch):
    monkeypatch.setattr(weights, "log_prob", partial(weights.log_prob, scaled=True))
    assert climb("plate_scale").measured > 1
