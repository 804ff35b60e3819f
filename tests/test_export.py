"""What ArviZ reads: estimates as its ELPDData, draws of pairs in its groups."""

import builtins
import math
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_compare import linear_gaussian

from ppgen.compare import compare
from ppgen.inference import log_likelihood, to_arviz
from ppgen.models import Custom, FactorAnalysis
from ppgen.pair import data_plate

az = pytest.importorskip("arviz")


def table(result):
    """ArviZ's comparison, unrounded, with the column of the log-likelihoods under one name for 0.x and 1.x."""
    settings = {} if az.__version__.startswith("0.") else {"round_to": "none"}
    return az.compare(result.to_arviz(), **settings).rename(columns={"elpd_loo": "elpd"})


def test_az_compare_gives_the_sums_and_paired_errors_of_a_comparison(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    x = math.sqrt(2) * torch.randn(300, 2)
    result = compare({"one": linear_gaussian(1.0), "two": linear_gaussian(2.0)}, x, num_samples=50)
    found = table(result)
    assert list(found.index) == ["one", "two"]
    for name, noise in (("one", 1.0), ("two", 2.0)):
        exact = dist.Normal(0.0, math.sqrt(1 + noise**2)).log_prob(x.double()).sum().item()
        assert found.loc[name, "elpd"] == pytest.approx(exact, rel=1e-5)
    gap = result.difference("one", "two")
    assert abs(found.loc["two", "elpd_diff"]) == pytest.approx(300 * gap.mean, rel=1e-6)  # 1.x: how much worse it is
    assert found.loc["two", "dse"] == pytest.approx(300 * gap.standard_error, rel=0.01)  # ArviZ divides by N, not N − 1
    if "warning" in found:  # until 1.2
        assert not found["warning"].any()
    assert az.plot_compare(az.compare(result.to_arviz())) is not None


def test_an_estimate_keeps_its_diagnostics(monkeypatch):
    """A guide that is too narrow: its k-hat and the warning are in what ArviZ gets, and in its picture."""
    monkeypatch.setenv("MPLBACKEND", "Agg")

    def model(x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def narrow(x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(x / 2, 0.1))

    x = torch.randn(40)
    estimate = log_likelihood(Custom(model, narrow), x, num_samples=200)
    found = estimate.to_arviz()
    assert bool(found["warning"]) and found["n_samples"] == 200 and found["n_data_points"] == 40
    assert torch.equal(torch.tensor(found["pareto_k"].values), estimate.k_hat.double())
    assert found["good_k"] == pytest.approx(1 - 1 / math.log10(200))
    assert "Pareto k" in str(found)
    drawn = az.plot_khat(found)
    if az.__version__.startswith("0."):  # a matplotlib Axes; from 1.0 on a collection of plots
        assert len(drawn.collections[0].get_offsets()) == 40


def test_the_conditional_log_likelihood_is_nowhere():
    tree = to_arviz(FactorAnalysis(5, 2), torch.randn(6, 5), num_samples=8)
    groups = tree.groups() if callable(tree.groups) else tree.groups  # an InferenceData's, or a DataTree's
    names = {str(group).strip("/") for group in groups}
    assert "posterior" in names and "log_likelihood" not in names


def test_draws_of_factor_analysis_have_its_moments():
    """Posterior, prior and predictive draws against the closed forms."""
    torch.manual_seed(0)
    fa = FactorAnalysis(4, 2)
    x = torch.randn(3, 4)
    tree = to_arviz(fa, x, num_samples=4000, seed=1)
    drawn = {group: torch.tensor(tree[group][name].values)[0] for group, name in DRAWN}
    with torch.no_grad():
        posterior, marginal, loadings = fa.posterior(x), fa.marginal(), fa.loadings
    assert tree["posterior"]["z"].dims == ("chain", "draw", "data", "z_dim_0")
    assert (drawn["posterior"].mean(0) - posterior.mean).abs().max() < 0.1
    assert drawn["prior"].mean(0).abs().max() < 0.1 and (drawn["prior"].std(0) - 1).abs().max() < 0.1
    predicted = (posterior.mean @ loadings.T) + fa.loc.detach()
    assert (drawn["posterior_predictive"].mean(0) - predicted).abs().max() < 0.15
    spread = drawn["prior_predictive"].flatten(0, 1).T.cov()
    assert (spread - marginal.covariance_matrix).abs().max() < 0.1 * marginal.covariance_matrix.abs().max()
    assert torch.equal(torch.tensor(tree["observed_data"]["x"].values), x)


DRAWN = [("posterior", "z"), ("posterior_predictive", "x"), ("prior", "z"), ("prior_predictive", "x")]


def test_plates_name_dimensions_and_discrete_sites_come_from_their_posterior():
    """A mixture inside a plate inside the data, with a shared latent: k follows x, as Bayes' rule has it."""
    locs = torch.tensor([-1.0, 0.0, 1.0])

    def model(x, context):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("words", 2, dim=-2):
                k = pyro.sample("k", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(z[..., 0] + locs[k], 0.5), obs=x.T)

    def guide(x, context):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1e-3).to_event(1))

    x = torch.tensor([[-1.0, 0.5], [0.2, 2.0]])
    tree = to_arviz(Custom(model, guide), x, torch.ones(2, 5), num_samples=3000)
    sizes = {name: dict(array.sizes) for name, array in tree["posterior"].data_vars.items()}
    draws = {"chain": 1, "draw": 3000}
    assert sizes == {
        "w": draws,
        "z": {**draws, "data": 2, "z_dim_0": 3},
        "k": {**draws, "words": 2, "data": 2},
    }
    exact = dist.Normal(locs, 0.5).log_prob(x.T[..., None]).softmax(-1)
    k = torch.tensor(tree["posterior"]["k"].values)[0]
    shares = torch.stack([(k == i).double().mean(0) for i in range(3)], -1)
    assert (shares - exact).abs().max() < 0.04
    assert dict(tree["constant_data"]["batch_1"].sizes) == {"data": 2, "batch_1_dim_0": 5}
    assert tree["prior_predictive"]["x"].dims == ("chain", "draw", "words", "data")


def test_without_arviz_the_error_names_the_extra(monkeypatch):
    found = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "arviz":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'ppgen\[arviz\]'"):
        to_arviz(FactorAnalysis(5, 2), torch.randn(6, 5))


def test_draws_of_programs_that_no_plate_of_particles_survives_and_of_shared_latents():
    """One after the other, then: an index by the batch, and the locations of components."""

    def model(x):
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(torch.tensor([-9.0, 9.0]), 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x):
        with pyro.plate("components", 2):
            pyro.sample("locs", dist.Normal(torch.tensor([-9.0, 9.0]), 0.1))

    x = torch.tensor([-9.0, 9.0, 8.0])
    tree = to_arviz(Custom(model, guide), x, num_samples=5)
    assert dict(tree["posterior"]["locs"].sizes) == {"chain": 1, "draw": 5, "components": 2}
    assert (tree["posterior"]["k"].values == [0, 1, 1]).all()
    assert (abs(tree["posterior_predictive"]["x"].values - [-9, 9, 9]) < 6).all()

    def indexed(x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.view(len(x), 2)[:, 0], 1.0), obs=x)

    def proposal(x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    tree = to_arviz(Custom(indexed, proposal), x, num_samples=5)
    assert dict(tree["posterior"]["z"].sizes) == {"chain": 1, "draw": 5, "data": 3, "z_dim_0": 2}


@pytest.mark.parametrize("one_class_a_kind", [False, True])
def test_from_1_0_on_the_groups_are_one_argument_and_estimates_a_dataclass(one_class_a_kind, monkeypatch):
    """A stand-in with the signatures of ArviZ 1.x, which this Python may be too old for."""

    @dataclass(kw_only=True)
    class ELPDData:
        elpd: float
        se: float
        p: float
        n_samples: int
        n_data_points: int
        scale: str
        warning: bool
        good_k: float
        elpd_i: Any = None
        pareto_k: Any = None

    @dataclass(kw_only=True)
    class OfKind(ELPDData):
        kind: str

    class Group(dict):
        attrs: ClassVar[dict] = {}

    def from_dict(data, *, coords=None, dims=None):
        assert set(dims) >= {name for group in data.values() for name in group}
        return {group: Group(found) for group, found in data.items()}

    arviz, stats, utils = (ModuleType(name) for name in ("arviz", "arviz_stats", "arviz_stats.utils"))
    arviz.from_dict, arviz.__version__ = from_dict, "1.3.0"
    if one_class_a_kind:
        utils.ELPDDataLOO = ELPDData
    else:
        utils.ELPDData = OfKind
    for module in (arviz, stats, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    x = torch.randn(6, 5)
    tree = to_arviz(FactorAnalysis(5, 2), x, num_samples=8)
    assert tree["posterior"]["z"].shape == (1, 8, 6, 2) and tree["observed_data"]["x"].shape == (6, 5)
    estimate = log_likelihood(FactorAnalysis(5, 2), x, num_samples=30)
    found = estimate.to_arviz()
    assert found.elpd == pytest.approx(6 * estimate.mean) and found.elpd_i.dims == ("data",) and not found.warning


def test_a_discrete_latent_that_others_depend_on_is_drawn_given_them():
    """C → z → x: the guide draws z, and c comes from its distribution given z."""

    def model(x):
        with data_plate(x):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.7, 0.3])), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(2.0 * c, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(x, 0.5))

    found = to_arviz(Custom(model, guide), torch.linspace(-1.0, 3.0, 5), num_samples=2000).posterior
    z, c = torch.as_tensor(found["z"].values[0]), torch.as_tensor(found["c"].values[0]).double()
    odds = torch.tensor([0.7, 0.3]).log() + dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(z.unsqueeze(-1))
    exact = odds.softmax(-1)[..., 1]
    assert torch.allclose(c.mean(0), exact.mean(0).double(), atol=0.05)
