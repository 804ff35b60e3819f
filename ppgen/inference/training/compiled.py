"""Losses and gradients at the speed of compiled code, and in eager wherever that would not be right."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppgen.inference.execution.graphs import CannotTrace, Graph, trace, twice
from ppgen.inference.losses.schedules import Schedule
from ppgen.inference.programs.modes import unmoved
from ppgen.inference.programs.networks import modules_of
from ppgen.inference.training.precision import widened

__all__ = ["Compiled", "Gradients", "gradients"]

log = logging.getLogger(__name__)

# Steps of a graph after which it is compared with eager, and with what the program would be traced to now.
CHECKS = {10, 100}
CHECK_EVERY = 500
RETRACES = {100, 1000}
RETRACE_EVERY = 5000
# Calls of a shape beside the first (the short batch at the end of an epoch) before it gets a graph of its own.
PATIENCE = 100
MAX_GRAPHS = 8


class Gradients(NamedTuple):
    """A loss and its gradients, None where a parameter does not take part.

    ``whole`` is a number that is finite only if all of them are.
    """

    loss: Tensor
    whole: Tensor
    gradients: list[Tensor | None]


def gradients(loss: Callable[..., Tensor], pair: Any, parameters: Sequence[Tensor], batch: Sequence[Any]) -> Gradients:
    """The loss of a batch and its gradients, in eager."""
    with torch.enable_grad():
        with widened(parameters[0].device):
            value = loss(pair.model, pair.guide, *batch)
        wanted = [p for p in parameters if p.requires_grad]
        found = torch.autograd.grad(value, wanted, allow_unused=True)
    value = value.detach()
    # Norm by norm, which a compiler writes as loops: torch's norm of a list is one call of its own for each.
    whole = value + sum(torch.linalg.vector_norm(g) for g in found if g is not None)
    rest = iter(found)
    return Gradients(value, whole, [next(rest) if p.requires_grad else None for p in parameters])


class _Code(NamedTuple):
    """Machine code for batches of one shape."""

    run: Callable[..., Any]
    graph: Graph
    used: list[bool]  # the parameters that have a gradient
    memory: tuple[int, ...]  # where parameters and buffers lay, which it reads them from


class Compiled:
    """Losses and gradients by compiled code, one graph for each shape of a batch.

    A graph is made at the first batch: the loss is traced through Pyro (twice: a program that is not the same at every
    call, or for every order of the rows, is refused), compiled, and its results compared with those of eager at the
    same noise. The comparison is made again at fixed steps. What differs once may lie on a kink of the loss (the knot
    of a spline), to whose sides two ways of rounding may fall: it counts if the next batch differs, too, and this one
    is left to eager. Train and eval mode, and plain numbers among the attributes of the pair and the loss, are looked
    at before each step; where they change there is another graph. What cannot be traced, or comes out differently,
    runs in eager from then on, and is said once.

    Args:
        loss: ``(model, guide, *batch) -> scalar``.
        pair: anything with ``.model`` and ``.guide``.
        parameters: what the gradients are of.
        tolerance: the relative difference between gradients that is taken for rounding.
    """

    def __init__(
        self, loss: Callable[..., Tensor], pair: Any, parameters: Sequence[Tensor], tolerance: float = 1e-3
    ) -> None:
        self.tolerance = tolerance
        self.loss, self.pair, self.parameters = loss, pair, list(parameters)
        self.reason: str | None = None if _can_compile(parameters) else "there is no C++ compiler"
        self._codes: dict[Any, _Code] = {}
        self._calls: dict[Any, int] = {}
        self._numbers = _numbers(pair, loss)
        modules = [part for module in modules_of(pair) for part in module.modules()]
        self._buffers = [(part._buffers, name) for part in modules for name in part._buffers]
        self._retraced = 0
        self._doubted: set[Any] = set()  # keys of what came out differently the last time
        # Of the run that this one continues, by what its keys look like: calls, and which of them had a graph.
        self._earlier: dict[str, tuple[int, bool]] = {}
        if self.reason:
            self._give_up(self.reason)

    def __call__(self, batch: Sequence[Any]) -> Gradients:
        """The loss and the gradients of a batch; the generators and buffers end where eager would leave them."""
        if self.reason is not None or not all(isinstance(member, Tensor) for member in batch):
            return self._eager(batch)
        batch = [member.contiguous() for member in batch]  # a graph holds for one order in memory
        key = self.key(batch)
        if key in self._codes and _is_captured(batch):  # a step that is only noted, and counted when it is made
            return self._run(self._codes[key], batch)
        if key not in self._calls and self._earlier:
            self._calls[key] = self._earlier.get(repr(key), (0, False))[0]
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        code = self._codes.get(key)
        if code is not None and code.memory != self.memory():  # parameter.data = …, or a buffer that was assigned anew
            del self._codes[key]
            self._doubted.discard(key)
            return self._build(key, batch)
        if code is None:
            had_graph = self._earlier.pop(repr(key), (0, False))[1] if self._earlier else False
            others = self._codes or any(graph for _, graph in self._earlier.values())
            if others and calls <= PATIENCE and not had_graph:
                return self._eager(batch)
            return self._build(key, batch)
        if key in self._doubted or _is_checked(calls):
            return self._check(key, code, batch, again=calls in RETRACES or calls % RETRACE_EVERY == 0)
        return self._run(code, batch)

    def state_dict(self) -> dict[str, Any]:
        """When which graphs were made and checked, so that a run that is continued has them where it would have."""
        now = {repr(key): (calls, key in self._codes) for key, calls in self._calls.items()}
        return {"reason": self.reason, "calls": {**self._earlier, **now}, "retraced": self._retraced}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave; the graphs themselves are made again at their first batch."""
        self.reason = self.reason or state["reason"]
        self._earlier = {key: (int(calls), bool(graph)) for key, (calls, graph) in state["calls"].items()}
        self._calls, self._codes, self._retraced = {}, {}, int(state["retraced"])
        self._doubted.clear()  # new graphs are compared at their first batch

    def key(self, batch: Sequence[Tensor]) -> Any:
        """What a graph depends on: shapes, modes and plain numbers, and which parameters are trained."""
        return (
            *((m.shape, m.dtype) for m in batch),
            *(owner.get(name) for owner, name in self._numbers),
            *(p.requires_grad for p in self.parameters),
        )

    def settled(self, batch: Sequence[Any]) -> tuple[Any, Callable[..., Any]] | None:
        """A batch's key and the code that it runs; None where there is none, or it is in doubt or to be compared."""
        if self.reason is not None or not all(isinstance(member, Tensor) for member in batch):
            return None
        key = self.key(batch)
        code = self._codes.get(key)
        if code is None or key in self._doubted or code.memory != self.memory() or _is_checked(self._calls[key] + 1):
            return None
        return key, code.run

    def count(self, key: Any) -> None:
        """One more call of the code for batches of a key, which was made elsewhere."""
        self._calls[key] += 1

    def memory(self) -> tuple[int, ...]:
        """Where parameters and buffers lie."""
        buffers = (b for owner, name in self._buffers if (b := owner.get(name)) is not None)
        return tuple(tensor.data_ptr() for tensor in chain(self.parameters, buffers))

    def _eager(self, batch: Sequence[Any]) -> Gradients:
        return gradients(self.loss, self.pair, self.parameters, batch)

    def _run(self, code: _Code, batch: Sequence[Tensor]) -> Gradients:
        try:
            with torch.no_grad():
                loss, whole, *found = code.run(*batch)
        except RuntimeError:  # eager finds better words for what is wrong with a batch
            return self._eager(batch)
        rest = iter(found)
        return Gradients(loss, whole, [next(rest) if used else None for used in code.used])

    def _build(self, key: Any, batch: Sequence[Tensor]) -> Gradients:
        """A first step with a new graph, or in eager if there is none."""
        for _ in range(2):  # the first call may do more than others: Pyro guesses the nesting of plates in it
            with self._given_back(batch):
                wanted = self._eager(batch)
        used = [g is not None for g in wanted.gradients]
        if len(self._codes) + sum(graph for _, graph in self._earlier.values()) >= MAX_GRAPHS:
            self._give_up(f"its batches, modes or settings have more than {MAX_GRAPHS} forms")
            return self._eager(batch)
        try:
            graph = twice(partial(self._trace, used), batch)
            with self._given_back(batch):
                code = _Code(graph.compile(batch), graph, used, self.memory())
            with self._given_back(batch):
                found = self._run(code, batch)
            if difference := _difference(found, wanted, self.tolerance):
                if self._is_first_doubt(key):
                    return self._eager(batch)
                raise CannotTrace(f"compiled and eager disagree in {difference}")
        except CannotTrace as error:
            self._give_up(str(error))
            return self._eager(batch)
        self._codes[key] = code
        self._doubted.discard(key)
        return self._run(code, batch)

    def _is_first_doubt(self, key: Any) -> bool:
        """Whether this is the first of such batches to come out differently, and not the second in a row."""
        if key in self._doubted:
            return False
        self._doubted.add(key)
        return True

    def _trace(self, used: Sequence[bool], batch: Sequence[Tensor]) -> Graph:
        def function(*given: Tensor) -> list[Tensor]:
            loss, whole, found = gradients(self.loss, self.pair, self.parameters, given)
            if [g is not None for g in found] != list(used):
                raise CannotTrace("the parameters that take part change from call to call")
            return [loss, whole, *(g for g in found if g is not None)]

        with self._given_back(batch):
            return trace(function, batch)

    def _check(self, key: Any, code: _Code, batch: Sequence[Tensor], again: bool) -> Gradients:
        """A step that is compared with eager first; a graph that has become stale is traced anew."""
        with self._given_back(batch):
            wanted = self._eager(batch)
        with self._given_back(batch):
            found = self._run(code, batch)
        try:
            stale = again and not code.graph.same_as(self._trace(code.used, batch))
        except CannotTrace:
            stale = True
        if not stale:
            if _difference(found, wanted, self.tolerance) is None:
                self._doubted.discard(key)
                return self._run(code, batch)
            if self._is_first_doubt(key):
                return self._eager(batch)
        self._doubted.discard(key)
        del self._codes[key]
        self._retraced += 1
        if self._retraced > 2:
            self._give_up("the program changes as training goes on (a number that is no tensor?)")
            return self._eager(batch)
        log.warning("The compiled step no longer agreed with eager: the program has changed, and is traced anew.")
        return self._build(key, batch)

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._codes.clear()
        self._doubted.clear()
        log.warning("This pair trains in eager, not compiled: %s.", reason)

    @contextmanager
    def _given_back(self, batch: Sequence[Tensor]) -> Iterator[None]:
        """Generators and buffers as they were, after a run that does not count."""
        devices = [batch[0].device] if batch[0].is_cuda else []
        with torch.random.fork_rng(devices=devices), unmoved(self.pair, self.loss):
            yield


def _can_compile(parameters: Sequence[Tensor]) -> bool:
    """Whether inductor has what it needs: on a CPU a C++ compiler."""
    return parameters[0].is_cuda or any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def _is_checked(calls: int) -> bool:
    return calls in CHECKS or calls % CHECK_EVERY == 0


def _is_captured(batch: Sequence[Tensor]) -> bool:
    """Whether what is done with a batch goes into a CUDA graph, where nothing can be read and so nothing compared."""
    return batch[0].is_cuda and torch.cuda.is_current_stream_capturing()


def _numbers(pair: Any, loss: Any) -> list[tuple[dict[str, Any], str]]:
    """Where the plain numbers, names and flags are that a program may depend on: the attributes of pair and loss."""
    modules = [m for module in (*modules_of(pair), *modules_of(loss)) for m in module.modules()]
    owners = [vars(m) for m in modules if not isinstance(m, Schedule)]  # whose value is a tensor
    owners += [vars(each) for each in (pair, loss) if not isinstance(each, nn.Module) and hasattr(each, "__dict__")]
    return [(owner, name) for owner in owners for name, v in owner.items() if isinstance(v, bool | int | float | str)]


def _difference(found: Gradients, wanted: Gradients, tolerance: float) -> str | None:
    """What differs by more than rounding, if anything does."""
    if not torch.allclose(found.loss, wanted.loss, rtol=tolerance / 10, atol=1e-4, equal_nan=True):
        return f"the loss ({found.loss.item():g} against {wanted.loss.item():g})"
    whole = torch.stack([g.norm() for g in wanted.gradients if g is not None]).norm()
    for i, (a, b) in enumerate(zip(found.gradients, wanted.gradients, strict=True)):
        if a is None or b is None:
            if a is not b:
                return f"whether parameter {i} takes part"
        # beside its own size the whole's: a parameter at its optimum has a gradient of nothing but rounding
        elif not ((a - b).norm() <= tolerance * b.norm() + tolerance / 10 * whole or not whole.isfinite()):
            return f"the gradient of parameter {i}"
    return None
