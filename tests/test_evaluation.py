"""Fast evaluation: eager's numbers, one encoding a block, slices that fit the memory, graphs, honest fallbacks."""

import json
import logging
import runpy
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn as torch_nn

from ppgen import decoders, models, nn, posteriors, priors
from ppgen.catalogue import DECODERS, POSTERIORS, PRIORS, Recipe
from ppgen.distributions import Mixture
from ppgen.inference import log_likelihood
from ppgen.inference.evaluation.likelihood import CELL_SAMPLES
from ppgen.inference.evaluation.weigher import Weigher
from ppgen.inference.execution import graphs
from ppgen.inference.programs.modes import evaluating
from ppgen.inference.programs.structure import measure
from ppgen.inference.programs.weights import weigh
from ppgen.models import Custom
from ppgen.pair import data_plate

SMALL = {"latent_dim": 2, "num_components": 3, "hidden": (4,)}
DATA = {
    "binary": torch.bernoulli(torch.full((6, 1, 4, 4), 0.4)),
    "real": torch.rand(6, 1, 4, 4),
    "levels": torch.randint(8, (6, 1, 4, 4), dtype=torch.uint8),
}
LEVELS = {"binary": 2, "real": None, "levels": 8}
CLASSES = torch.arange(6) % 3


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def made(model="vae", kind="binary", **settings):
    """A pair of the catalogue and a batch."""
    recipe = Recipe(model, (1, 4, 4), LEVELS[kind], 3, settings)
    pair = recipe.build(DATA[kind][:3].float() if settings.get("prior") == "vamp" else None)
    batch = recipe.batch(DATA[kind], CLASSES)
    if hasattr(pair, "initialize"):
        pair.initialize(*batch)
    return pair.eval(), batch


TABLE = {
    **{f"prior {p}": ("vae", {"prior": p} | SMALL) for p in PRIORS},
    **{f"posterior {q}": ("vae", {"posterior": q} | SMALL) for q in POSTERIORS},
    **{f"decoder {d}": ("vae", {"kind": DECODERS[d].kind, "decoder": d} | SMALL) for d in DECODERS},
    "conditional": ("cvae", SMALL),
    "hierarchy": ("hvae", SMALL),
    "convolutional hierarchy": ("conv-hvae", {"channels": (2, 3)} | SMALL),
    "mixture, enumerated": ("gmm", {"kind": "real", "num_components": 3}),
    "factor analysis": ("fa", {"kind": "real", "latent_dim": 2}),
}


def weigher(pair, batch, num_samples=30, cell_samples=10, **settings):
    structure = measure(pair.model, pair.guide, *batch)
    sizes = {"num_data": len(batch[0]), "num_samples": num_samples, "cell_samples": cell_samples}
    return Weigher(pair, structure, batch, **sizes, **settings), structure


FAST = ["prior vamp", "posterior iaf", "decoder bernoulli", "conditional", "hierarchy", "mixture, enumerated"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in TABLE])
def test_graphs_have_the_numbers_of_eager(name, monkeypatch, caplog):
    """Slices and graphs draw what one eager run of the whole cell draws, and weigh it alike."""
    model, settings = TABLE[name]
    pair, batch = made(model, **settings)
    monkeypatch.setattr("ppgen.inference.evaluation.weigher.WORTH_TRACING", {"cpu": 0})
    with evaluating(pair), caplog.at_level(logging.WARNING):
        fast, structure = weigher(pair, batch, memory=1)
        assert fast.slice_samples == (1 if structure.random else 10)
        cell = fast.bind(batch)
        torch.manual_seed(3)
        found, noise = cell(10), torch.rand(2)
        torch.manual_seed(3)
        wanted = weigh(pair.model, pair.guide, batch, 10, structure).log_weights
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-4)
        if structure.random:
            assert torch.equal(noise, torch.rand(2))
    assert fast.reason is None and not caplog.records
    assert bool(fast._parts) == structure.random


def small_vae(net=None):
    return models.VAE(
        priors.StandardNormal(2), decoders.Bernoulli(net or nn.MLP(2, 8, 16)), posteriors.DiagNormal(nn.MLP(16, 8, 4))
    ).eval()


X = DATA["binary"].flatten(1)


def test_graphs_in_eager_give_the_same_bits(monkeypatch):
    pair, x = small_vae(), torch.bernoulli(torch.full((130, 16), 0.4))
    plain = log_likelihood(pair, x, num_samples=300)
    monkeypatch.setattr("ppgen.inference.evaluation.weigher.WORTH_TRACING", {"cpu": 0})
    traced = log_likelihood(pair, x, num_samples=300)
    assert torch.equal(plain.values, traced.values) and torch.equal(plain.k_hat, traced.k_hat)


def test_the_encoder_runs_once_a_block(monkeypatch):
    """Counted as operations, since a graph runs no Python: matrix products whose rows are the block's."""
    monkeypatch.setattr("ppgen.inference.evaluation.weigher.WORTH_TRACING", {"cpu": 0})
    pair = small_vae()
    products = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.addmm.default:
                products.append(len(args[1]))
            return func(*args, **(kwargs or {}))

    with evaluating(pair):
        fast, _ = weigher(pair, (X,), num_samples=50)
        fast.bind([X])  # traces
        with Watch():
            cell = fast.bind([X])
            products.clear()
            for _ in range(5):
                cell(10)
    assert products == [60] * 2 * 5  # of the decoder alone


def test_a_vampprior_is_encoded_once_a_block(monkeypatch):
    monkeypatch.setattr("ppgen.inference.evaluation.weigher.WORTH_TRACING", {"cpu": 0})
    pair, batch = made(prior="vamp", **SMALL)
    with evaluating(pair):
        fast, _ = weigher(pair, batch, memory=1)
        fast.bind(batch)
    part = next(p for key, p in fast._parts.items() if key[0] == "_score")

    def products(module):
        found = [n for n in module.graph.nodes if n.target is torch.ops.aten.addmm.default]
        return sum(n.meta["val"].dtype == torch.float32 for n in found)  # the mixture's own is in double precision

    layers = [sum(isinstance(m, torch_nn.Linear) for m in p.modules()) for p in (pair.posterior, pair.decoder)]
    assert [products(part.outer), products(part.inner)] == layers and min(layers) > 0


def test_slices_fit_the_memory_and_change_nothing():
    pair = small_vae(nn.MLP(2, 300, 16))
    whole = log_likelihood(pair, X, num_samples=600, memory=2**30)
    for memory in (2**20, 2**16, 1):
        sliced = log_likelihood(pair, X, num_samples=600, memory=memory)
        assert (sliced.values - whole.values).abs().max() < 1e-4
        assert (sliced.elbo - whole.elbo).abs().max() < 1e-4
    sizes = []
    with evaluating(pair):
        for memory in (2**30, 2**20, 2**18, 2**16, 1):
            fast, _ = weigher(pair, (X,), cell_samples=CELL_SAMPLES, num_samples=CELL_SAMPLES, memory=memory)
            sizes.append(fast.slice_samples)
            if fast.slice_samples > 1:
                assert fast._footprint([X], fast.slice_samples).peak < 1.5 * memory
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == CELL_SAMPLES and sizes[-1] == 1


@pytest.mark.parametrize("memory", [0, -1, 2.5, True])
def test_bad_memory_is_named(memory):
    with pytest.raises(ValueError, match=f"memory must be a positive whole number, got {memory}"):
        log_likelihood(small_vae(), X, num_samples=3, memory=memory)


def reads_the_host(x):
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        shift = 1.0 if x.mean() > 0.5 else 2.0
        pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)


calls = [0]


def counts_its_calls(x):
    calls[0] += 1
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(0.001 * calls[0], 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with data_plate(x):
        pyro.sample("z", dist.Normal(x / 2, 0.9))


def leaves_torch(x):
    shift = torch.as_tensor(x.numpy())
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(shift, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "fact"),
    [(reads_the_host, "on the host"), (counts_its_calls, "not the same at"), (leaves_torch, "read by .numpy()")],
)
def test_what_no_graph_can_hold_runs_in_eager_and_says_so_once(model, fact, caplog):
    pair, x = Custom(model, guide), torch.randn(230)
    with caplog.at_level(logging.WARNING):
        asked = log_likelihood(pair, x, num_samples=600, compile=True)
    assert len(caplog.records) == 1 and fact in caplog.text and "in eager" in caplog.text
    if model is not counts_its_calls:
        assert torch.equal(asked.values, log_likelihood(pair, x, num_samples=600).values)


def test_what_is_outside_the_support_is_named_behind_graphs_too(monkeypatch):
    monkeypatch.setattr("ppgen.inference.evaluation.weigher.WORTH_TRACING", {"cpu": 0})
    x = torch.bernoulli(torch.full((250, 16), 0.4))
    x[220, 3] = 0.5
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="support"):
        log_likelihood(small_vae(), x, num_samples=300)


def test_only_much_work_is_compiled_of_itself(monkeypatch):
    asked = []
    compile = graphs.Graph.compile
    monkeypatch.setattr(graphs.Graph, "compile", lambda self, inputs: asked.append(1) or self.module)
    log_likelihood(small_vae(), X, num_samples=600)
    assert not asked
    work = 16 * 4 * 6 * 600  # the logits alone
    monkeypatch.setattr("ppgen.inference.evaluation.weigher.WORK_WORTH_COMPILING", {"cpu": work})
    log_likelihood(small_vae(), X, num_samples=600, compile=False)
    assert not asked
    log_likelihood(small_vae(), X, num_samples=600)
    assert asked and compile is not graphs.Graph.compile


def test_without_a_compiler_evaluation_is_eager_and_says_so_once(monkeypatch, caplog):
    def broken(self, inputs):
        raise graphs.CannotTrace("the compiler failed: there is none")

    pair = small_vae()
    eager = log_likelihood(pair, X, num_samples=600)
    monkeypatch.setattr(graphs.Graph, "compile", broken)
    with caplog.at_level(logging.WARNING):
        asked = log_likelihood(pair, X, num_samples=600, compile=True)
    assert torch.equal(asked.values, eager.values)
    assert len(caplog.records) == 1 and "the compiler failed" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prior vamp", "hierarchy"])
def test_compiled_values_are_those_of_eager(name, caplog):
    model, settings = TABLE[name]
    pair, batch = made(model, **settings)
    with caplog.at_level(logging.WARNING):
        compiled = log_likelihood(pair, *batch, num_samples=600, compile=True)
        again = log_likelihood(pair, *batch, num_samples=600, compile=True)
    eager = log_likelihood(pair, *batch, num_samples=600, compile=False)
    assert not caplog.records
    assert (compiled.values - eager.values).abs().max() < 1e-4
    assert torch.equal(compiled.values, again.values)


def direct(logits, loc, scale, z):
    """Σ_k π_k N(z; loc_k, scale_k²) with every term written out, in double precision."""
    each = dist.Normal(loc.double(), scale.double()).log_prob(z.double().unsqueeze(-2)).sum(-1)
    return (logits.double().log_softmax(-1) + each).logsumexp(-1)


@pytest.mark.parametrize(("offset", "width"), [(0.0, 1.0), (300.0, 1.0), (0.0, 1e-3), (1000.0, 0.05)])
def test_a_mixture_by_matrix_products_is_the_direct_one(offset, width):
    """500 components in 40 dimensions, means far from zero and narrow: where squares in float32 cancel."""
    loc = offset + torch.randn(500, 40)
    scale = width * (0.5 + torch.rand(500, 40))
    logits = torch.randn(500)
    z = loc[::5] + scale[::5] * torch.randn(100, 40)
    mixture = Mixture(logits, dist.Normal(loc, scale).to_event(1))
    error = (mixture.log_prob(z).double() - direct(logits, loc, scale, z)).abs().max()
    assert error < 1e-3, error
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    with Watch():
        mixture.log_prob(z)
    assert max(sizes) <= 100 * 500


def test_without_a_gpu_its_benchmark_says_not_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script = Path(__file__).parent.parent / "benchmarks" / "likelihood.py"
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr(sys, "argv", ["likelihood.py", "--device", "cuda", "--out", str(tmp_path / "out.json")])
    threads = torch.get_num_threads()
    runpy.run_path(str(script), run_name="__main__")
    torch.set_num_threads(threads)
    (cell,) = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert cell["seconds_of_10000_data"] == "not measured" and "not measured" in capsys.readouterr().out


@pytest.mark.slow
def test_data_in_any_order_in_memory_are_compiled_alike(caplog):
    pair, x = small_vae(), torch.bernoulli(torch.full((16, 210), 0.4)).T
    with caplog.at_level(logging.WARNING):
        compiled = log_likelihood(pair, x, num_samples=30, compile=True)
    assert not caplog.records
    assert (compiled.values - log_likelihood(pair, x.contiguous(), num_samples=30).values).abs().max() < 1e-4
