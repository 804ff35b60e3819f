"""The ladder of exact cases, that each rung notices what is broken, and the verdict on a user's own run."""

import itertools
import json
import shutil
from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.rings import MapRing
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from ppgen import cli
from ppgen.catalogue import MODELS
from ppgen.check import RUNGS, Rung, climb, trust
from ppgen.files import write_manifest
from ppgen.inference.evaluation import annealed, bidirectional, likelihood, weigher
from ppgen.inference.programs import weights
from ppgen.models import Custom, FactorAnalysis, GaussianMixture
from ppgen.nn.masked import MaskedConv2d
from ppgen.pair import data_plate
from ppgen.runs import SCHEMA

LONG = ("bidirectional", "bracketed", "num_processes")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in RUNGS])
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
        drawn = pair.model(x)
        if x is not None:
            with pyro.plate("rest", len(x), dim=-1):
                pyro.sample("factor", dist.Normal(0.0, 1.0), obs=torch.zeros(len(x)))
        return drawn

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
    "bracketed": with_a_factor,
    "num_processes": lambda x: 1 - x,
}


SLOW = ("num_processes", "flow_priors", "bidirectional", "bracketed", "quadrature")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in BROKEN])
def test_the_rung_notices_what_is_broken(name):
    rung = climb(name, BROKEN[name])
    assert not rung.passed and str(rung).startswith("FAILED"), rung


def test_a_scale_left_in_the_weights_is_noticed(monkeypatch):
    monkeypatch.setattr(weights, "log_prob", partial(weights.log_prob, scaled=True))
    assert climb("plate_scale").measured > 1


def test_a_maximum_in_the_place_of_a_sum_over_values_is_noticed(monkeypatch):
    monkeypatch.setattr(weights, "LogRing", MapRing)
    assert not climb("enumerable").passed


def first_samples_again(self, values, size):
    """Every slice of a cell has the draws of the first."""
    number = [min(self.slice_samples, size - start) for start in range(0, size, self.slice_samples)]
    return [
        (n, [v if at.axis is None else v.narrow(at.axis, 0, n) for v, at in zip(values, self._latents, strict=True)])
        for n in number
    ]


def noise_of_the_call(calls):
    return lambda seed, block, cell: next(calls)


@pytest.mark.parametrize("bug", ["slices of the first draws", "noise that belongs to the call"])
def test_an_estimate_that_depends_on_how_the_work_is_divided_is_noticed(bug, monkeypatch):
    if bug == "slices of the first draws":
        monkeypatch.setattr(weigher.Weigher, "_slices", first_samples_again)
    else:
        monkeypatch.setattr(likelihood, "derived_seed", noise_of_the_call(itertools.count()))
    assert not climb("chunking").passed


def weighed_after_the_step(path, u, betas, kernel):
    """Forward chains whose weights are taken where a step ends, and not where it begins."""
    state = annealed._state(path, u)
    log_w = torch.zeros_like(state.joint)
    for t in range(1, len(betas)):
        if t < len(betas) - 1:
            state, _ = annealed._transition(path, state, betas[t], kernel.steps[t - 1], kernel.scale, 5)
        log_w = log_w + (betas[t] - betas[t - 1]) * state.log_ratio
    return log_w, None


@pytest.mark.slow
def test_weights_of_the_wrong_end_of_a_step_are_noticed_by_the_exact_value(monkeypatch):
    monkeypatch.setattr(bidirectional, "forward", weighed_after_the_step)
    assert climb("bracketed").measured > 0.05


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run on digits."""
    folder = tmp_path_factory.mktemp("runs") / "vae"
    settings = ["--data", "digits", "--epochs", "15", "--latent-dim", "4", "--hidden", "32"]
    assert CliRunner().invoke(cli.app, ["train", "vae", *settings, "--out", str(folder)]).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def spoiled(run, tmp_path_factory):
    """The same with a guide that is narrow and beside the posterior."""
    folder = tmp_path_factory.mktemp("runs") / "spoiled"
    shutil.copytree(run, folder)
    state = load_file(folder / "model.safetensors")
    bias = state["posterior.net.output.bias"]
    bias[:4] += 1.0
    bias[4:] -= 3.0
    save_file(state, folder / "model.safetensors")
    files = ("config.json", "model.safetensors", "history.json")
    write_manifest(folder, {name: (folder / name).read_bytes() for name in files}, SCHEMA)
    return folder


def checked(folder):
    result = CliRunner().invoke(cli.app, ["check", str(folder), "--num-data", "60", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.slow
def test_the_verdict_on_a_run_and_on_one_whose_guide_is_spoiled(run, spoiled):
    good, bad = checked(run), checked(spoiled)
    assert good["verdict"] in ("believed", "lower bound only")
    assert bad["verdict"] == "not to be believed" and bad["advice"]
    assert bad["gap"] > 1 > good["gap"] - 2 * good["gap_standard_error"]
    assert bad["log_likelihood"] < good["log_likelihood"]
    assert max(good["chunking"], bad["chunking"]) < 1e-4
    assert min(bad["calibration"]["outermost"]) > 0.5 > max(good["calibration"]["outermost"])
    assert json.loads((run / "check.json").read_text()) == good


def test_a_guide_that_misses_a_mode_is_found_out_by_the_gap_alone():
    """Weights hardly vary, and k-hat is good: half of the posterior is never drawn."""

    def model(x=None):
        with data_plate(x) if x is not None else nullcontext():
            z = pyro.sample("z", dist.Normal(0.0, 3.0))
            return pyro.sample("x", dist.Normal(z.abs(), 0.1), obs=x)

    def guide(x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(x, 0.11))

    pair = Custom(model, guide)
    x = torch.rand(100) * 2 + 1
    found = trust(pair, x, num_temperatures=20)
    assert not found.estimate.is_lower_bound
    assert found.gap > 0.5 and found.verdict == "not to be believed"


def test_an_exact_guide_is_believed_and_calibrated():
    torch.manual_seed(0)
    exact = FactorAnalysis(8, 2)
    found = trust(exact, torch.randn(50, 8), num_temperatures=10)
    assert found.verdict == "believed" and not found.advice
    assert abs(found.gap) < 1e-3
    assert str(found.calibration).startswith("too narrow in 0, too wide in 0, off to one side in 0 of 2")
    assert str(found).endswith("Verdict: believed.")


def test_calibration_is_by_coordinate_in_whatever_plates_they_stand():
    """The guide is exact for two of three items and twenty times too narrow for the third."""
    width = torch.tensor([1.0, 1.0, 0.05]) * 0.5**0.5

    def model(x=None):
        with data_plate(x), pyro.plate("items", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=None if x is None else x.T)

    def guide(x):
        with data_plate(x), pyro.plate("items", 3, dim=-2):
            pyro.sample("z", dist.Normal(x.T / 2, width.unsqueeze(-1)))

    x = 2**0.5 * torch.randn(40, 3)
    found = trust(Custom(model, guide), x, num_simulated=2, num_temperatures=5, num_chains=2, num_samples=50)
    outermost = found.calibration.outermost
    assert (outermost[:2] < 0.2).all() and outermost[2] > 0.8, outermost


def test_one_datum_has_no_gap_to_judge_by():
    with pytest.raises(ValueError, match=r"num_simulated must be at least 2.*got 1"):
        trust(FactorAnalysis(3, 1), torch.randn(5, 3), num_simulated=1)


def test_discrete_latents_have_no_bounds_and_say_why():
    torch.manual_seed(0)
    found = trust(GaussianMixture(3, 2), torch.randn(50, 2))
    assert found.bounds is None and "'k' is discrete" in str(found)
    assert found.verdict == "believed"


def test_a_guide_that_cannot_be_widened_says_why():
    """Draws of a class that are seldom right: nothing is continuous, and no chain moves."""

    def model(x):
        with data_plate(x):
            k = pyro.sample("k", dist.Categorical(torch.ones(200)))
            pyro.sample("x", dist.Normal(k.float(), 0.05), obs=x)

    def guide(x):
        with data_plate(x):
            pyro.sample("k", dist.Categorical(torch.ones(200)))

    found = trust(Custom(model, guide), torch.arange(20.0) * 5, num_samples=500)
    assert found.verdict != "believed" and found.reasons[0].startswith("k-hat is")
    assert found.repaired is None and "draws nothing continuous" in found.not_repaired
    assert f"the guide cannot be widened: {found.not_repaired}" in str(found)
    assert "not applicable" in str(found) and found.summary()["not_repaired"] == found.not_repaired


def test_bounds_start_from_the_prior_where_the_guide_is_far_from_the_models_own_data():
    torch.manual_seed(0)
    exact = FactorAnalysis(6, 2)

    def far(x, mask=None):
        with data_plate(x):
            pyro.sample("z", dist.Normal(torch.full((len(x), 2), 30.0), 0.01).to_event(1))

    found = trust(Changed(exact, guide=far), torch.randn(20, 6), num_simulated=5, num_temperatures=60, num_samples=100)
    assert found.start == "prior" and found.bounds.gap < 1 < found.gap
    assert found.verdict == "not to be believed" and 'start="prior"' in found.advice[0]


def test_the_ladder_as_a_command(monkeypatch):
    failing = Rung("a case", "error (nats)", 2.0, 1.0)
    for name in list(RUNGS):
        if name != "mixture":
            monkeypatch.delitem(RUNGS, name)
    assert CliRunner().invoke(cli.app, ["check"], standalone_mode=False).return_value == 0
    monkeypatch.setitem(RUNGS, "failing", lambda: failing)
    result = CliRunner().invoke(cli.app, ["check"], standalone_mode=False)
    assert result.return_value == 1
    assert "FAILED  a case: error (nats) 2, at most 1" in result.stdout


def test_no_likelihood_and_a_bad_number(run, monkeypatch):
    with pytest.raises(ValueError, match="--num-data must be a positive whole number, got 0"):
        CliRunner().invoke(cli.app, ["check", str(run), "--num-data", "0"], catch_exceptions=False)
    monkeypatch.setitem(MODELS, "vae", MODELS["vae"]._replace(scores=False))
    result = CliRunner().invoke(cli.app, ["check", str(run)])
    assert result.exit_code == 0 and "vae has no likelihood" in result.stdout
