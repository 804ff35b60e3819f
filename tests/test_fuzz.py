"""Every public function at shapes and values that nobody planned: it returns, or it raises an error with a name."""

import importlib
import inspect
import pkgutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import BATCHES, COUNTS, SMALL, SOME, strategy, tensors, vae
from torch import nn as tnn
from torch.distributions import Distribution

import ppgen
from ppgen.catalogue import Recipe
from ppgen.inference import EM, SVI, Adversarial, dreg, elbo, iwae, renyi, sticking_the_landing, stratified
from ppgen.models import Custom

NAMED = (ValueError, TypeError, FloatingPointError, NotImplementedError, OSError)
# Layers and distributions that stand where torch's own do say as torch does that shapes do not fit.
AS_TORCH = {
    "nn.GatedLinear", "nn.GatedConv2d", "nn.DiagonalBiLSTM", "nn.RowLSTM", "nn.batched", "nn.feed",
    "nn.spectrally_normalized", "pair.adapt", "pair.observed", "pair.sample", "decoders.Categorical",
}  # fmt: skip

OBJECTIVES = (dreg, elbo, iwae, renyi, sticking_the_landing, stratified)

# Public names that are nothing to call.
NO_CALLS = {
    **dict.fromkeys(["__version__", "MANIFEST"], "a text"),
    "Pair": "a protocol",
    "Binarization": "a type",
    **dict.fromkeys(["RUNGS", "DECODERS", "MODELS", "POSTERIORS", "PRIORS", "LOG_SCALE_RANGE"], "a table"),
    **dict.fromkeys(
        ["AnnealedEstimate", "Bounds", "Calibration", "ClassShares", "Comparison", "DCI", "Dataset", "Difference",
         "Estimate", "History", "LatentReport", "Model", "ModeCoverage", "Modes", "Part", "RepairedEstimate", "Rung",
         "Run", "SampleReport", "Score", "Trust"],
        "a record, made by the library",
    ),
    **dict.fromkeys(["AutoregressiveImage", "MultiScaleImage"], "made by a decoder: tests/test_pixelcnn.py"),
    "MultiScale": "made of decoders that fit each other: tests/test_multiscale.py",
    "comparison": "draws the rows that compare makes: tests/test_compare.py",
    **dict.fromkeys(["AdversarialLoss", "slopes"], "made of a critic's functions: tests/test_adversarial.py"),
    "factorised_shapes": "takes nothing, and two seconds: tests/test_shapes.py",
    "climb": "the ladder's rungs, some seconds each: tests/test_check.py",
    "trust": "the ladder on a pair: tests/test_check.py",
    "processes": "a block of calls that several make: tests/test_distributed.py",
    "save_run": "writes what load_run reads: below",
    "load_run": "reads what save_run writes: below",
    "begin_run": "writes what read_config reads: below",
    "read_config": "reads what begin_run writes: below",
    "check_manifest": "reads what write_manifest writes: below",
    "write_manifest": "writes what check_manifest reads: below",
}  # fmt: skip


def public():
    """The public functions and classes by their full names, each once."""
    found, seen = {}, set()
    names = ["ppgen", *(m.name for m in pkgutil.iter_modules(ppgen.__path__, "ppgen.") if m.name != "ppgen.__main__")]
    names += ["ppgen.inference.losses.adversarial"]
    for module in map(importlib.import_module, names):
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if id(value) not in seen and not inspect.ismodule(value):
                seen.add(id(value))
                found[f"{module.__name__}.{name}".removeprefix("ppgen.")] = value
    return found


PUBLIC = public()
FUZZED = {name: value for name, value in PUBLIC.items() if name.rsplit(".", 1)[-1] not in NO_CALLS}


def drawn(data, name, value):
    """Arguments of a call: all that are required, some of the others."""
    positional, keywords = [], {}
    for parameter in inspect.signature(value).parameters.values():
        wanted = strategy(name, parameter)
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += [data.draw(wanted) for _ in range(data.draw(st.sampled_from([1, 1, 1, 2, 0])))]
        elif parameter.kind is parameter.VAR_KEYWORD:
            continue
        elif parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty or data.draw(SOME) or parameter.name in ("progress", "download"):
                keywords[parameter.name] = data.draw(wanted)
        elif parameter.default is parameter.empty:
            positional.append(data.draw(wanted))
        elif data.draw(SOME) or parameter.name in ("progress", "seed"):
            keywords[parameter.name] = data.draw(wanted)
    if name in SMALL:
        keywords = SMALL[name] | keywords
    return positional, keywords


def used(data, result):
    """What was made is used: a network is run, a distribution scored, a loss taken of a pair."""
    if isinstance(result, SVI | EM | Adversarial):
        result.step(data.draw(BATCHES))
    elif isinstance(result, Custom) or hasattr(result, "model"):
        ppgen.sample(result, data.draw(COUNTS), seed=0)
    elif isinstance(result, Recipe):
        pass
    elif isinstance(result, Distribution):
        result.log_prob(data.draw(tensors()))
        result.sample()
    elif isinstance(result, OBJECTIVES):
        pair = vae()
        result(pair.model, pair.guide, torch.zeros(2, 6))
    elif isinstance(result, tnn.Module):
        context = data.draw(st.lists(tensors(kinds=["normal", "binary", "huge", "missing"]), max_size=1))
        out = result(*data.draw(st.lists(tensors(), max_size=1)), *context)
        if isinstance(out, Distribution):
            out.sample()


def said(name):
    """The kinds of error that a function may end with."""
    as_torch = name in AS_TORCH or name.startswith("distributions.")
    return (*NAMED, RuntimeError, IndexError) if as_torch else NAMED


def check(name, data):
    value = FUZZED[name]
    positional, keywords = drawn(data, name, value)
    torch.manual_seed(0)
    try:
        used(data, value(*positional, **keywords))
    except said(name) as error:
        # torch's own distributions say nothing where they have no sampler or no mean.
        assert str(error).strip() or isinstance(error, NotImplementedError), f"{type(error).__name__} without a word"


QUICK = settings(
    max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
LONG = settings(QUICK, max_examples=60)


@pytest.mark.parametrize("name", FUZZED)
def test_it_returns_or_raises_a_named_error(name):
    QUICK(given(data=st.data())(lambda data: check(name, data)))()


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZED)
def test_it_does_so_at_many_more(name):
    LONG(given(data=st.data())(lambda data: check(name, data)))()


def test_every_public_name_is_fuzzed_or_nothing_to_call():
    last = {name.rsplit(".", 1)[-1] for name in PUBLIC}
    assert set(NO_CALLS) <= last, "names that are no longer public"
    for name, value in FUZZED.items():
        assert callable(value), name
        for parameter in inspect.signature(value).parameters.values():
            strategy(name, parameter)  # a LookupError says what is missing
    assert len(FUZZED) > 120
