"""What belongs to the process stays as it was: under calls, from thread to thread, from process to process."""

import contextlib
import doctest
import importlib
import itertools
import json
import logging
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine.runtime import _PYRO_STACK

import ppgen
from ppgen import decoders, inference, judge, models, nn, posteriors, priors
from ppgen.compare import compare
from ppgen.data import load
from ppgen.inference import EM, SVI, Adversarial, elbo, fit, log_likelihood, sample, train
from ppgen.inference.programs.turns import give_way, own_generators, turn
from ppgen.models import Custom
from ppgen.pair import data_plate

X = torch.bernoulli(torch.full((60, 6), 0.4), generator=torch.Generator().manual_seed(0))


def made(model):
    """A model whose first values come from a seed, and not from the generator that the tests look at."""

    def make(seed=0):
        with own_generators():
            torch.manual_seed(seed)
            return model()

    return make


@made
def vae():
    return models.VAE(
        priors.StandardNormal(2), decoders.Bernoulli(nn.MLP(2, 8, 6)), posteriors.DiagNormal(nn.MLP(6, 8, 4))
    )


@made
def mixture():
    return models.GaussianMixture(2, 6)


@made
def labelled():
    return models.SemiSupervisedVAE(
        priors.StandardNormal(2),
        decoders.Bernoulli(nn.GatedBranches([2, 3], 8, 6)),
        posteriors.DiagNormal(nn.GatedBranches([6, 3], 8, 4)),
        classifier=nn.MLP(6, 8, 3),
        num_classes=3,
    )


def with_sites():
    """A pair of functions, with parameters of ``pyro.param`` and a latent that is summed out."""

    def model(x=None):
        locs = pyro.param("locs", torch.linspace(-1.0, 1.0, 3))
        with data_plate(x):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(locs[k] + z, 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(x / 2, pyro.param("scale", torch.tensor(0.7))))

    return Custom(model, guide)


@made
def gan():
    return models.GAN(priors.StandardNormal(2), nn.MLP(2, 8, 6), nn.MLP(6, 8, 1))


QUIET = {"epochs": 3, "batch_size": 20, "progress": False}
# What a thread does, and the numbers that it ends with.
WORK = {
    "fit": lambda: fit(vae(), X, seed=1, **QUIET).loss,
    "fit, dropped with early stopping": lambda: fit(vae(2), X, validation=X, patience=2, seed=2, **QUIET).validation,
    "fit of functions": lambda: fit(with_sites(), X[:, 0], seed=3, **QUIET).loss,
    "fit on a Pyro ELBO": lambda: fit(vae(3), X, loss=pyro.infer.TraceMeanField_ELBO(), seed=3, **QUIET).loss,
    "EM": lambda: train(EM(mixture(), num_restarts=2, seed=4), X, seed=4, **QUIET).loss,
    "adversarial": lambda: train(Adversarial(gan()), X, seed=5, **QUIET).loss,
    "likelihood": lambda: log_likelihood(vae(), X, num_samples=60, seed=6).values.tolist(),
    "samples": lambda: sample(vae(), 20, seed=7).tolist(),
    "classes": lambda: fit(labelled(), (X, torch.arange(60) % 3), seed=8, **QUIET).loss,
}


def test_every_thread_has_the_numbers_of_a_run_alone():
    alone = {name: work() for name, work in WORK.items()}
    state = torch.get_rng_state()
    names = list(WORK) * 2
    start = threading.Barrier(len(names))

    def together(name):
        start.wait()
        return WORK[name]()

    with ThreadPoolExecutor(len(names)) as pool:
        found = list(pool.map(together, names))
    assert found == [alone[name] for name in names]
    assert torch.equal(torch.get_rng_state(), state) and not _PYRO_STACK


def test_threads_take_turns_step_by_step():
    order = []

    class Watched(SVI):
        def step(self, *batch):
            order.append(threading.current_thread().name)
            return super().step(*batch)

    pairs = [vae(), vae(1)]
    start = threading.Barrier(2)

    def run(pair):
        start.wait()
        train(Watched(pair), X, seed=0, epochs=20, batch_size=6, progress=False)

    threads = [threading.Thread(target=run, args=(pair,), name=str(i)) for i, pair in enumerate(pairs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert len(order) == 400 and changes > 100


def test_who_goes_first_finds_the_generators_as_they_were_outside():
    torch.manual_seed(11)
    outside = torch.get_rng_state()
    seen = []

    def other():
        with turn:
            seen.append((torch.get_rng_state(), list(_PYRO_STACK)))
            torch.rand(3)

    with own_generators(), pyro.poutine.trace():
        torch.manual_seed(5)
        own, handlers = torch.get_rng_state(), list(_PYRO_STACK)
        thread = threading.Thread(target=other)
        thread.start()
        while not turn.awaited:
            pass
        give_way()
        thread.join()
        assert torch.equal(torch.get_rng_state(), own) and handlers == _PYRO_STACK
    assert torch.equal(seen[0][0], outside) and seen[0][1] == []
    torch.set_rng_state(outside)
    torch.rand(3)
    moved_on = torch.rand(4)
    assert not torch.equal(moved_on, torch.rand(4))


def test_an_error_in_one_thread_leaves_the_turn_to_others():
    with ThreadPoolExecutor(1) as pool:
        failing = pool.submit(lambda: fit(vae(), torch.full((5, 6), 0.5), epochs=1, progress=False))
        assert isinstance(failing.exception(30), ValueError)
        assert len(pool.submit(lambda: fit(vae(), X, epochs=1, progress=False)).result(30).loss) == 1
    assert len(fit(vae(), X, epochs=1, progress=False).loss) == 1


def everything():
    """All that a call could change for the rest of the process."""
    return {
        "validation": (is_validation_enabled(), torch.distributions.Distribution._validate_args),
        "default dtype": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "gradients": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matrix products": torch.get_float32_matmul_precision(),
        "convolutions": (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.conv.fp32_precision),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "printing": (torch._tensor_str.PRINT_OPTS.precision, str(np.get_printoptions())),
        "NumPy's errors": np.geterr(),
        "torch's generator": torch.get_rng_state().tolist(),
        "NumPy's generator": np.random.get_state()[1].tolist(),  # the global one is what is looked at
        "parameters": sorted(pyro.get_param_store().keys()),
        "Pyro's settings": pyro.settings.get(),
        "handlers": list(_PYRO_STACK),
        "warnings": [str(f) for f in warnings.filters],
        "logging": (logging.getLogger().level, len(logging.getLogger().handlers), logging.getLogger("ppgen").level),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "threads' hook": threading.excepthook,
        "exceptions' hook": sys.excepthook,
        "torch's hooks": len(torch.nn.modules.module._global_forward_pre_hooks),
        "path": list(sys.path),
    }


def refused(*arguments, **settings):
    with pytest.raises(ValueError):
        fit(vae(), *arguments, **settings)


CALLS = {
    **WORK,
    "compiled": lambda: fit(vae(), X, compile=True, seed=0, **QUIET),
    "bf16": lambda: fit(vae(), X, precision="bf16", seed=0, **QUIET),
    "without a seed": lambda: log_likelihood(vae(), X),
    "refused data": lambda: refused(X * 7, seed=0, **QUIET),
    "refused settings": lambda: refused(X, epochs=0),
    "a loss": lambda: elbo()(vae().model, vae().guide, X),
    "ais": lambda: inference.ais(vae(), X[:5], num_chains=2, num_temperatures=4, seed=0),
    "repaired": lambda: inference.repaired_log_likelihood(vae(), X[:5], num_samples=50, seed=0),
    "report": lambda: inference.latent_report(vae(), X, seed=0),
    "encode": lambda: inference.reconstruct(vae(), X, seed=0),
    "compare": lambda: compare({"a": vae(), "b": vae(1)}, X, num_samples=30, seed=0),
    "classifier": lambda: judge.train_classifier(X, torch.arange(60) % 3, epochs=1, progress=False),
    "data": lambda: load("digits"),
}
DRAWS = {"a loss"}  # from torch's generator, like a layer's dropout


SLOW = {"compiled"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CALLS])
def test_no_call_changes_the_process(name):
    if name == "compiled":
        import torch._inductor  # whose first use, torch's own, adds to the path and to the filters of warnings

        torch._inductor.compile(torch.fx.symbolic_trace(lambda x: (x + 1,)), [torch.ones(3)])
    before = everything()
    CALLS[name]()
    after = everything()
    assert {key for key in before if before[key] != after[key]} == ({"torch's generator"} if name in DRAWS else set())


FRESH = """
import json, sys
import numpy, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_state import WORK
print(json.dumps({{name: work() for name, work in WORK.items()}}))
"""


def test_a_seed_gives_the_same_in_a_fresh_process():
    code = FRESH.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    here = json.loads(json.dumps({name: work() for name, work in WORK.items()}))
    assert json.loads(done.stdout) == here


@pytest.mark.slow
def test_no_doctest_changes_the_process_but_by_what_it_draws():
    """The doctests are the calls that the documentation shows: all of them, one after the other, in this process."""
    names = [m.name for m in pkgutil.walk_packages(ppgen.__path__, "ppgen.") if not m.name.endswith("__main__")]
    modules = [importlib.import_module(name) for name in names]
    import torch._inductor  # noqa: F401  # whose import, torch's own, changes the filters of warnings

    before = everything()
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        for module in modules:
            doctest.testmod(module, optionflags=flags)
    after = everything()
    assert {key for key in before if before[key] != after[key]} <= {"torch's generator"}


@pytest.mark.parametrize("call", [lambda: sample(vae(), 5, seed=7), lambda: log_likelihood(vae(), X, num_samples=30)])
def test_the_generator_of_a_gpu_in_use_is_given_back_by_a_pair_on_the_cpu(call, monkeypatch):
    """``torch.manual_seed`` seeds the GPU's, too; here a number stands for its state."""
    gpu = {"state": 17}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: gpu["state"])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: gpu.update(state=state))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: gpu.update(state=seed, seeded=True))
    call()
    assert gpu == {"state": 17, "seeded": True}
