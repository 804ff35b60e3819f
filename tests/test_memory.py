"""Memory that runs out in evaluation: what was drawn is scored in smaller slices, and the result is the same."""

import logging
import subprocess
import sys

import pytest
import torch

from ppgen import decoders, models, nn, posteriors, priors
from ppgen.inference import log_likelihood
from ppgen.inference.evaluation.weigher import Weigher, out_of_memory

X = torch.bernoulli(torch.full((150, 6), 0.4), generator=torch.Generator().manual_seed(0))
WHOLE = 2**40  # bytes: slices are whole cells


def vae():
    return models.VAE(
        priors.StandardNormal(2), decoders.Bernoulli(nn.MLP(2, 8, 6)), posteriors.DiagNormal(nn.MLP(6, 8, 4))
    )


ON_CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 8 bytes."
KINDS = {
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": RuntimeError(ON_CPU),
    "Windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    "Python": MemoryError(),
}


def failing(monkeypatch, error, most, times=10**9):
    """Scoring fails with this error at more than so many samples at once; returns the sizes that were tried."""
    tried, score = [], Weigher._score

    def limited(self, size, block, values):
        tried.append(size)
        if size > most and len([s for s in tried if s > most]) <= times:
            raise error
        return score(self, size, block, values)

    footprint = Weigher._footprint
    monkeypatch.setattr(Weigher, "_score", limited)
    monkeypatch.setattr(Weigher, "_footprint", lambda self, block, size: footprint(self, block, 2))
    return tried


@pytest.mark.parametrize("kind", KINDS)
def test_slices_are_halved_until_they_fit(kind, monkeypatch, caplog):
    pair = vae()
    expected = log_likelihood(pair, X, num_samples=600, seed=1, memory=WHOLE)
    tried = failing(monkeypatch, KINDS[kind], most=30)
    with caplog.at_level(logging.WARNING):
        found = log_likelihood(pair, X, num_samples=600, seed=1, memory=WHOLE)
    assert {250, 125, 50, 25} <= set(tried)
    assert "Memory ran out at 250 samples at a time: goes on with 125." in caplog.text
    assert len([r for r in caplog.records if "Memory ran out" in r.message]) == 3  # and not again for each block
    for name in ("values", "elbo", "mc_standard_error", "ess"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.reliable, expected.reliable) and found.num_samples == 600


def test_the_result_is_that_of_such_slices_to_the_bit(monkeypatch):
    pair = vae()
    with monkeypatch.context() as patch:
        failing(patch, KINDS["CPU"], most=25)
        found = log_likelihood(pair, X, num_samples=500, seed=1, memory=WHOLE)
    initial = Weigher.__init__

    def in_25(self, *args, **settings):
        initial(self, *args, **settings)
        self.slice_samples = 25

    monkeypatch.setattr(Weigher, "__init__", in_25)
    assert torch.equal(found.values, log_likelihood(pair, X, num_samples=500, seed=1, memory=WHOLE).values)


def test_memory_for_not_even_one_sample_is_an_error(monkeypatch):
    tried = failing(monkeypatch, KINDS["CPU"], most=0)
    monkeypatch.setattr(Weigher, "_footprint", lambda *_: type("Few", (), {"written": 8, "peak": 8})())
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        log_likelihood(vae(), X, num_samples=300, memory=WHOLE)
    assert tried[-1] == 1


def test_other_errors_are_not_retried(monkeypatch):
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    tried = failing(monkeypatch, error, most=30)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        log_likelihood(vae(), X, num_samples=300, memory=WHOLE)
    assert tried.count(250) == 1 and not out_of_memory(error)


REAL = """
import logging, resource, sys, torch
torch.set_num_threads(1)
from ppgen import decoders, models, nn, posteriors, priors
from ppgen.inference import log_likelihood
logging.basicConfig(stream=sys.stdout)
torch.manual_seed(0)
pair = models.VAE(
    priors.StandardNormal(2), decoders.Bernoulli(nn.MLP(2, 8, 4096)), posteriors.DiagNormal(nn.MLP(4096, 8, 4))
)
x = torch.bernoulli(torch.full((100, 4096), 0.4))
expected = log_likelihood(pair, x, num_samples=250, seed=0)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)
found = log_likelihood(pair, x, num_samples=250, seed=0, memory=2**40)
print("difference", (found.values - expected.values).abs().max().item())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are set as Linux has them")
def test_memory_that_really_runs_out():
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Memory ran out at 250 samples at a time" in done.stdout
    assert float(done.stdout.split()[-1]) < 1e-3
