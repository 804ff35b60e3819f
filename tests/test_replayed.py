"""Steps replayed from a CUDA graph, with a stand-in for the graph: eager's numbers, and steps that are not finite."""

import sys

import pyro
import pytest
import torch
from parts import small_vae

from ppgen.inference import SVI, elbo, warmup
from ppgen.inference.execution.graphs import Graph
from ppgen.inference.execution.replayed import Replayed
from ppgen.inference.training.compiled import Compiled

X = torch.bernoulli(torch.full((24, 16), 0.4), generator=torch.Generator().manual_seed(0))


class Recorded:
    """A stand-in for a CUDA graph: replays the function that it was made of. A real capture only records it."""

    def __init__(self):
        self.replays = 0

    def __call__(self, step):
        def replay():
            self.replays += 1
            step()

        return replay


class Settled(Compiled):
    """Of a pair that runs in eager: all batches of a shape and of settings run the same code."""

    def form(self, batch):
        return self.key(batch), 0


@pytest.fixture
def replayed(monkeypatch):
    """SVI that runs ahead of the host as on a GPU, with a look every ten steps."""
    monkeypatch.setattr(sys.modules["ppgen.inference.execution.replayed"], "LOOK_EVERY", 10)
    # The traced operations one by one, which are there in no time; what the compiler makes of them is tested elsewhere.
    monkeypatch.setattr(Graph, "compile", lambda self, inputs: lambda *given: self.module(*given, *self.held))
    graph = Recorded()

    def make(pair, loss=None, compile=False):
        svi = SVI(pair, loss, lambda p: torch.optim.Adam(p, lr=1e-2, fused=True), compile=compile)
        svi.prepare(X)
        form = (svi._compiled or Settled(svi.loss, pair, svi.parameters)).form
        svi._replayed = Replayed(svi._update, svi._explain, svi.optimizer, form, graph)
        for group in svi.optimizer.param_groups:
            group["capturable"] = False  # which the kernels of a CPU do not know
        return svi

    return make, graph


def test_replayed_steps_are_those_of_eager_with_a_warm_up_and_changing_rates(replayed):
    make, graph = replayed
    ends = []
    for ahead in (False, True):
        pair = small_vae()
        svi = make(pair, loss=elbo(beta=warmup(steps=20)))
        svi._replayed = svi._replayed if ahead else None
        losses = []
        torch.manual_seed(0)
        for i in range(25):
            svi.optimizer.param_groups[0]["lr"] = 1e-2 / (1 + i)
            losses.append(svi.step(X))
        svi.look()
        ends.append((torch.stack(losses), torch.cat([p.flatten() for p in pair.parameters()])))
    assert graph.replays > 15
    torch.testing.assert_close(ends[0], ends[1])


def test_an_update_that_is_not_finite_is_skipped_and_found_at_the_next_look(replayed):
    make, _ = replayed
    pair = small_vae()
    svi = make(pair)
    for _ in range(5):
        svi.step(X)
    svi.look()
    before = [p.clone() for p in pair.parameters()]
    with pyro.validation_enabled(False):  # compiled code has none
        svi.step(torch.full_like(X, torch.nan))  # goes unnoticed
    assert all(torch.equal(p, b) for p, b in zip(pair.parameters(), before, strict=True))
    svi.step(X)
    with pytest.raises(FloatingPointError, match="first at the guide's site 'z'"):
        svi.look()
    svi.step(X)
    svi.look()


def test_a_graph_ends_with_the_code_that_it_holds(replayed, monkeypatch):
    """Code that is in doubt, given up, or reads memory that parameters have left is not replayed once more."""
    make, graph = replayed
    monkeypatch.setattr(sys.modules["ppgen.inference.training.compiled"], "CHECKS", set())
    pair = small_vae()
    svi = make(pair, compile=True)
    first = svi._compiled

    def replays(steps):
        before = graph.replays
        for _ in range(steps):
            svi.step(X)
        return graph.replays - before

    assert replays(1 + 3) == 0 and replays(4) == 4  # one that builds the code, three that warm up
    ((key, number),) = svi._replayed._graphs
    svi._compiled._doubted.add(key)
    assert replays(1) == 0 and not first._doubted  # compared with eager, and found right
    assert replays(2) == 2
    weight = next(pair.posterior.parameters())
    weight.data = weight.data.clone()
    assert replays(1) == 0  # built anew
    assert replays(3) == 0 and replays(3) == 3
    assert [form for form in svi._replayed._graphs] == [(key, number + 1)]
    svi._compiled._give_up("a test says so")
    assert replays(5) == 0
    svi.look()


def test_steps_that_are_replayed_are_compared_as_often_as_others(replayed, monkeypatch):
    make, graph = replayed
    compiled = sys.modules["ppgen.inference.training.compiled"]
    monkeypatch.setattr(compiled, "CHECKS", {9})
    monkeypatch.setattr(compiled, "CHECK_EVERY", 20)
    checked = []
    check = compiled.Compiled._check
    monkeypatch.setattr(compiled.Compiled, "_check", lambda *given, **rest: checked.append(1) or check(*given, **rest))
    svi = make(small_vae(), compile=True)
    key, seen = svi._compiled.key([X]), []
    for _ in range(60):
        svi.step(X)
        seen.append((svi._compiled._calls[key], len(checked)))
    assert next(count for calls, count in seen if calls >= 60) == 4 and graph.replays > 40
    assert max(count for calls, count in seen if calls < 20) == 1


def test_nothing_is_compared_while_a_graph_is_captured(replayed, monkeypatch):
    make, graph = replayed
    compiled = sys.modules["ppgen.inference.training.compiled"]
    checked = []
    monkeypatch.setattr(compiled.Compiled, "_check", lambda *given, **rest: checked.append(1))
    svi = make(small_vae(), compile=True)
    for _ in range(4):
        svi.step(X)
    key = svi._compiled.key([X])
    svi._compiled._calls[key] = 498  # one before it is compared, where a run that is continued may have stopped
    monkeypatch.setattr(compiled, "_is_captured", lambda batch: True)
    svi.step(X)
    assert svi._compiled._calls[key] == 500 and graph.replays == 1 and not checked
