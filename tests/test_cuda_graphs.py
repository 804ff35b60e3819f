"""Steps replayed from a CUDA graph, with a stand-in for the graph: eager's numbers, and steps that are not finite."""

import sys

import pyro
import pytest
import torch
from parts import small_vae

from ppgen.inference import SVI, elbo, train, warmup
from ppgen.inference.execution.cuda_graphs import Replayed
from ppgen.inference.execution.graphs import Graph

X = torch.bernoulli(torch.full((24, 16), 0.4), generator=torch.Generator().manual_seed(0))


class Recorded:
    """A stand-in for a CUDA graph: its replay runs the function that it was made of. A real one only records it."""

    def __init__(self):
        self.replays, self.running = 0, False

    def __call__(self, step):
        def replay():
            self.replays += 1
            self.running = True
            step()
            self.running = False

        return replay


class Settled:
    """Of a pair that runs in eager: all batches run the same code."""

    def settled(self, batch):
        return "key", type(self)

    def count(self, key):
        assert key == "key"


@pytest.fixture
def replayed(monkeypatch):
    """SVI that runs ahead of the host as on a GPU, with a look every ten steps."""
    monkeypatch.setattr(sys.modules["ppgen.inference.execution.cuda_graphs"], "LOOK_EVERY", 10)
    graph = Recorded()
    monkeypatch.setattr(sys.modules["ppgen.inference.training.compiled"], "_is_captured", lambda batch: graph.running)
    # The traced operations one by one, which are there in no time; what the compiler makes of them is tested elsewhere.
    monkeypatch.setattr(Graph, "compile", lambda self, inputs: lambda *given: self.module(*given, *self.held))

    def make(pair, loss=None, compile=False, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2, fused=True)):
        svi = SVI(pair, loss, optimizer, compile=compile)
        svi.prepare(X)
        svi._replayed = Replayed(svi._update, svi._explain, svi.optimizer, svi._compiled or Settled(), graph)
        for group in svi.optimizer.param_groups:
            if "capturable" in group:
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


def test_what_is_found_later_is_told_of_the_step_that_it_was(replayed):
    """A row of zeros has a loss that is not finite; a look comes after every ten of 24 steps, and at the end."""
    make, _ = replayed
    bound = elbo()
    x = torch.cat([X[:23], torch.zeros(1, 16)])
    x[:23, 0] = 1.0

    def loss(model, guide, x):
        return bound(model, guide, x) / x.any()

    def watched(svi):
        made, inner = [], svi.step

        def step(batch):
            made.append([bool(batch.any()), torch.tensor(torch.nan)])
            made[-1][1] = inner(batch)
            return made[-1][1]

        svi.step = step
        return made

    for seed in range(4):
        svi = make(small_vae(), loss)
        made = watched(svi)
        with pytest.raises(FloatingPointError) as raised:
            train(svi, x, epochs=1, batch_size=1, seed=seed, progress=False)
        bad = [fine for fine, _ in made].index(False) + 1
        looked = min(-(-bad // 10) * 10, 24)
        assert len(made) == looked and f"batch {bad} of 24 (step {bad})" in str(raised.value)
        done = f"the {looked - bad} after it were" if looked > bad else "Nothing was updated"
        assert done in str(raised.value)
    svi = make(small_vae(), loss)
    made = watched(svi)
    history = train(svi, x, epochs=2, batch_size=1, seed=0, progress=False, skip_nonfinite=True)
    assert history.skipped == 2 and len(made) == 48
    for epoch, mean in enumerate(history.loss):
        finite = [value.item() for fine, value in made[24 * epoch : 24 * (epoch + 1)] if fine]
        assert len(finite) == 23 and mean == pytest.approx(sum(finite) / 23)


def test_a_loop_by_hand_looks_before_it_goes_too_far(replayed):
    make, _ = replayed
    svi = make(small_vae())
    with pyro.validation_enabled(False):
        svi.step(torch.full_like(X, torch.nan))
    for _ in range(9):
        svi.step(X)
    assert svi.is_ahead
    before = [p.clone() for p in svi.parameters]
    with pytest.raises(FloatingPointError, match="Its update was not made, the 9 after it were"):
        svi.step(X)
    assert all(torch.equal(p, b) for p, b in zip(svi.parameters, before, strict=True)) and not svi.is_ahead


def test_a_graph_ends_with_the_code_that_it_holds(replayed, monkeypatch):
    """Code that is in doubt, given up, or reads memory that parameters have left is not replayed once more."""
    make, graph = replayed
    monkeypatch.setattr(sys.modules["ppgen.inference.training.compiled"], "CHECKS", set())
    pair = small_vae()
    svi = make(pair, compile=True)
    graphs = svi._replayed._graphs

    def replays(steps):
        before = graph.replays
        for _ in range(steps):
            svi.step(X)
        return graph.replays - before

    assert replays(1 + 3) == 0 and replays(4) == 4  # one that builds the code, three that warm up
    (first,) = graphs.values()
    svi._compiled._doubted.add(svi._compiled.key([X]))
    assert replays(1) == 0 and not svi._compiled._doubted  # compared with eager, and found right
    assert replays(2) == 2
    weight = next(pair.posterior.parameters())
    weight.data = weight.data.clone()
    assert replays(1) == 0 and not graphs  # built anew
    assert replays(3) == 0 and replays(3) == 3
    assert len(graphs) == 1 and first not in graphs.values()
    svi._compiled._give_up("a test says so")
    assert replays(5) == 0 and not graphs
    svi.look()


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])  # which no graph can hold
def test_steps_that_are_replayed_are_compared_when_others_are(optimizer, replayed, monkeypatch):
    make, graph = replayed
    compiled = sys.modules["ppgen.inference.training.compiled"]
    monkeypatch.setattr(compiled, "CHECKS", {9})
    monkeypatch.setattr(compiled, "CHECK_EVERY", 20)
    steps, check, when = 65, compiled.Compiled._check, {}
    for ahead in (False, True):
        pair = small_vae()
        svi = make(pair, compile=True, optimizer=lambda p: optimizer(p, lr=1e-2, fused=True))
        svi._replayed = svi._replayed if ahead else None
        seen = when[ahead] = []
        for step in range(1, steps + 1):

            def noted(*given, at=step, seen=seen, **rest):
                seen.append(at)
                return check(*given, **rest)

            monkeypatch.setattr(compiled.Compiled, "_check", noted)
            svi.step(X)
        assert svi._compiled.state_dict()["calls"] == {repr(svi._compiled.key([X])): (steps, True)}
    assert when[False] == when[True] == [9, 20, 40, 60]
    assert (graph.replays > 50) == (optimizer is torch.optim.Adam)
