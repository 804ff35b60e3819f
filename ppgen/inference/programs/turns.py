"""Threads take turns: Pyro's handlers and torch's generators are the whole process's, so one thread's at a time."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

__all__ = ["give_way", "in_turn", "own_generators", "turn"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Turn:
    """A lock that its holder may take again, and that goes to those who wait in the order in which they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: int | None = None
        self._depth = 0
        self._queue: deque[object] = deque()

    @property
    def awaited(self) -> bool:
        """Whether another thread waits."""
        return bool(self._queue)

    def __enter__(self) -> None:
        self._take(1)

    def __exit__(self, *error: object) -> None:
        self._leave(1)

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """The turn of those who wait inside; this thread's own again outside."""
        depth = self._depth
        self._leave(depth)
        try:
            yield
        finally:
            self._take(depth)

    def _take(self, depth: int) -> None:
        with self._changed:
            if self._holder != threading.get_ident():
                ticket = object()
                self._queue.append(ticket)
                try:
                    self._changed.wait_for(lambda: self._holder is None and self._queue[0] is ticket)
                finally:
                    self._queue.remove(ticket)
                self._holder = threading.get_ident()
            self._depth += depth

    def _leave(self, depth: int) -> None:
        with self._changed:
            self._depth -= depth
            if self._depth == 0:
                self._holder = None
                self._changed.notify_all()


turn = _Turn()


class _Generators:
    """The states of torch's global generators, on the CPU and on one GPU.

    Which is the one that is in use where none is named: ``torch.manual_seed`` seeds that of a GPU, too.
    """

    def __init__(self, device: torch.device | None) -> None:
        if device is None and torch.cuda.is_initialized():
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self.cpu: Tensor = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device is not None else None

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and self.device is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


_outside: _Generators | None = None  # of the thread whose turn it is: the generators as they will be after it


@contextmanager
def own_generators(device: torch.device | None = None) -> Iterator[None]:
    """This thread's turn, with torch's global generators (and that of a GPU) outside as they were."""
    global _outside
    with turn:
        before, first = _Generators(device), _outside is None
        if first:
            _outside = before
        try:
            yield
        finally:
            if first:
                assert _outside is not None
                before, _outside = _outside, None
            before.restore()


def give_way() -> None:
    """Lets the threads that wait go first, between two steps.

    They find the generators as this thread found them, and no handlers; this thread goes on with its own.
    """
    global _outside
    if not turn.awaited:
        return
    before, _outside = _outside, None
    own = _Generators(before.device if before is not None else None)
    handlers = _PYRO_STACK[:]
    _PYRO_STACK.clear()
    if before is not None:
        before.restore()
    try:
        with turn.given_up():
            pass
    finally:
        _PYRO_STACK[:] = handlers
        if before is not None:
            _outside = _Generators(before.device)
            own.restore()


def in_turn(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that waits for its thread's turn."""

    @functools.wraps(function)
    def waiting(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with turn:
            return function(*args, **kwargs)

    return waiting
