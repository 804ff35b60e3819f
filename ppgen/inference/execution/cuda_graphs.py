"""Steps on a GPU that the host only starts: replayed from one captured graph, and looked at now and then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

__all__ = ["Replayed"]

LOOK_EVERY = 100  # steps between two looks at their losses, each of which waits for the GPU
WARM = 3  # steps of a shape before it is captured: libraries set themselves up in them, which no graph may hold


class Replayed:
    """Updates without a wait for the device: a step is a copy of its batch and the replay of a CUDA graph.

    An update whose loss or gradients are not finite is skipped on the device (the optimiser is told by ``found_inf``);
    that it happened is found at the next look, which runs that batch in eager to say where. A look comes when its owner
    asks for one, and at the latest before a step that would be too far ahead, of which nothing has been done by then.
    Steps in which compiled code is compared with eager, which the host has to see, are not replayed.

    A graph lives as long as the code that it holds.

    Args:
        update: of a batch: gradients and optimiser step, without a read on the host. It returns the loss, and a number
            that is finite only if the update was made.
        explain: of a loss, its batch, and how many updates were made after it: the error that says what went wrong.
        optimizer: whose learning rates a captured graph must see change.
        compiled: what update runs: ``settled(batch)`` is the key of a batch and the code for it, or None where the step
            is not to be replayed; ``count(key)`` is told of each step that was.
        capture: makes a graph of a function without arguments and returns what replays it; of CUDA by default.
    """

    def __init__(
        self,
        update: Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]],
        explain: Callable[[Tensor, Sequence[Tensor], int], Exception],
        optimizer: torch.optim.Optimizer,
        compiled: Any,
        capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self.update, self.explain, self.optimizer, self.compiled = update, explain, optimizer, compiled
        self.capture = _cuda_graph if capture is None else capture
        self.capturable = all("capturable" in group for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            if self.capturable:
                group["capturable"] = True
        self._graphs: WeakKeyDictionary[Any, _Graph] = WeakKeyDictionary()
        self._warm: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._pending: list[tuple[Tensor, Tensor, Sequence[Tensor]]] = []

    @property
    def is_ahead(self) -> bool:
        """Whether it is time for a look."""
        return len(self._pending) >= LOOK_EVERY

    def __call__(self, batch: Sequence[Tensor]) -> Tensor:
        """One update; its loss, on the device."""
        if self.is_ahead:
            self.look()
        settled = self.compiled.settled(batch) if self.capturable else None
        loss, whole = self.update(batch) if settled is None else self._replay(batch, *settled)
        self._pending.append((loss, whole, batch))
        return loss

    def _replay(self, batch: Sequence[Tensor], key: Any, code: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        if self._warm.get(code, 0) < WARM:
            self._warm[code] = self._warm.get(code, 0) + 1
            return self.update(batch)
        if code not in self._graphs:
            self._graphs[code] = _Graph(self.update, batch, self.optimizer, self.capture)
        self.compiled.count(key)
        return self._graphs[code](batch)

    def look(self) -> None:
        """Waits for the device, and makes sure that the updates since the last look were made.

        Raises:
            FloatingPointError: one was not; it names the site.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        finite = torch.stack([whole for _, whole, _ in pending]).isfinite().tolist()
        if not all(finite):
            first = finite.index(False)
            loss, _, batch = pending[first]
            later = len(pending) - 1 - first
            error: Any = self.explain(loss, batch, later)
            error.later, error.count = later, finite.count(False)  # which `located` reads
            raise error


class _Graph:
    """One update as a graph over buffers of its own, for batches of one shape."""

    def __init__(self, update: Any, batch: Sequence[Tensor], optimizer: torch.optim.Optimizer, capture: Any) -> None:
        self.inputs = [member.clone() for member in batch]
        self.optimizer = optimizer
        # A learning rate that is a number would be part of the graph: for the capture it is a tensor, which is filled.
        self.rates = [
            torch.tensor(float(g["lr"]), device=batch[0].device, dtype=torch.float32) for g in optimizer.param_groups
        ]
        self.known = [float(g["lr"]) for g in optimizer.param_groups]
        self.outputs: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        given = [g["lr"] for g in optimizer.param_groups]

        def step() -> None:
            self.outputs = update(self.inputs)

        try:
            for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate
            self.replay = capture(step)
        finally:
            for group, lr in zip(optimizer.param_groups, given, strict=True):
                group["lr"] = lr

    def __call__(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        for mine, member in zip(self.inputs, batch, strict=True):
            mine.copy_(member, non_blocking=True)
        for i, group in enumerate(self.optimizer.param_groups):
            if group["lr"] != self.known[i]:
                self.known[i] = float(group["lr"])
                self.rates[i].fill_(self.known[i])
        self.replay()
        loss, whole = self.outputs
        return loss.clone(), whole.clone()  # the next replay overwrites them


def _cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
