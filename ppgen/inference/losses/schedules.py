"""Schedules of a loss's coefficients: tensors that count their own steps."""

from __future__ import annotations

import dis
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.numbers import finite_number, positive_integer, positive_number

__all__ = ["Schedule", "unannealed", "warmup"]

log = logging.getLogger(__name__)


class Schedule(nn.Module):
    """A coefficient that rises linearly and then stays, counted in optimisation steps.

    The value is a one-dimensional buffer that is updated in place, so that a compiled step sees it change, and a
    ``state_dict`` carries it over a resume. Made by :func:`warmup`.
    """

    value: Tensor
    count: Tensor

    def __init__(self, start: float, end: float, *, epochs: float | None = None, steps: int | None = None) -> None:
        super().__init__()
        self.start, self.end, self.epochs, self.steps = start, end, epochs, steps
        self.register_buffer("value", torch.tensor([start]))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))
        self._advanced = 0

    def forward(self) -> Tensor:
        """The coefficient now, shape (1,)."""
        if (seen := _ASKED.get()) is not None:
            seen.append(self)
        return self.value

    def bind(self, steps_per_epoch: int) -> None:
        """Tells a schedule that is stated in epochs how many steps an epoch has."""
        if self.epochs is not None:
            before, self.steps = self.steps, max(1, round(self.epochs * steps_per_epoch))
            if before is not None and before != self.steps:  # another batch size: so far is so far
                self._advanced = round(self._advanced * self.steps / before)
                self.count.fill_(self._advanced)

    @property
    def done(self) -> bool:
        """Whether the coefficient has reached its end."""
        return self.steps is not None and self._advanced >= self.steps

    def check_length(self) -> None:
        """Makes sure that the schedule knows how many steps it takes.

        Raises:
            ValueError: it is stated in epochs, and was not told how many steps one has.
        """
        if self.steps is None:
            raise ValueError(
                f"warmup(epochs={self.epochs}) does not know how many steps an epoch has: train with fit, which tells "
                "it, or state it in steps, warmup(steps=…)."
            )

    def advance(self) -> None:
        """Counts one optimisation step."""
        self.check_length()
        assert self.steps is not None
        self.count += 1
        self._advanced += 1  # known on the host: no step waits for a GPU
        fraction = min(1.0, self._advanced / self.steps)
        self.value.fill_(self.start + fraction * (self.end - self.start))

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._advanced = int(self.count)

    def extra_repr(self) -> str:
        """The course of the schedule."""
        length = f"{self.epochs} epochs" if self.epochs is not None else f"{self.steps} steps"
        return f"{self.start} to {self.end} in {length}"


def warmup(epochs: float | None = None, *, steps: int | None = None, start: float = 0.0, end: float = 1.0) -> Schedule:
    """A linear warm-up of a coefficient, for example of the KL term: ``elbo(beta=warmup(100))``.

    Training advances the schedules of a loss that is a module, as the library's are; your own loss holds one as an
    attribute of an ``nn.Module``. A schedule counts on from one training to the next: a new loss begins anew.

    References:
        Ladder Variational Autoencoders (Sønderby et al., 2016), https://arxiv.org/abs/1602.02282

    Args:
        epochs: how long it takes, in epochs of :func:`fit`; or
        steps: how long it takes, in optimisation steps.
        start: the coefficient at the first step.
        end: the coefficient after the last.

    Raises:
        ValueError: neither or both lengths are given, or the length is not a positive finite number or an end not
            finite.

    Example:
        >>> beta = warmup(steps=4)
        >>> beta.advance()
        >>> beta()
        tensor([0.2500])
    """
    if (epochs is None) == (steps is None):
        raise ValueError(
            f"warmup takes a length in epochs or in steps, one of them: got epochs={epochs}, steps={steps}."
        )
    if epochs is not None:
        positive_number("warmup: epochs", epochs)
    else:
        positive_integer("warmup: steps", steps)
    start, end = finite_number("warmup: start", start), finite_number("warmup: end", end)
    return Schedule(start, end, epochs=epochs, steps=steps)


def schedules(loss: Any) -> list[Schedule]:
    """The schedules that a loss holds: those of any loss that is a module."""
    return [m for m in loss.modules() if isinstance(m, Schedule)] if isinstance(loss, nn.Module) else []


def check_schedules(loss: Any) -> None:
    """Makes sure that training finds the schedules that a loss uses, and says which are not at their start.

    Raises:
        ValueError: a function uses one by name: it would stay at its start.
    """
    if inspect.isfunction(loss):
        for name, value in _variables(loss).items():
            if any(not schedule.done for schedule in schedules(value)):
                raise ValueError(
                    f"The loss {loss.__qualname__} uses the warm-up in {name!r}, which training would not advance: it "
                    "advances those of a loss that is an nn.Module. Make the loss one, with this as an attribute and "
                    "forward(model, guide, *batch)."
                )
    for schedule in schedules(loss):
        if schedule._advanced:
            log.warning(
                "The warm-up from %s has been through %d steps, and goes on there: a new loss begins anew.",
                schedule.extra_repr(),
                schedule._advanced,
            )


def _variables(function: Any) -> dict[str, Any]:
    """What a function refers to by name outside itself: globals, and what is bound around it."""
    loaded = {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}
    found = {name: function.__globals__[name] for name in loaded & function.__globals__.keys()}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # bound later
            found[name] = cell.cell_contents
    return found


_ASKED: ContextVar[list[Schedule] | None] = ContextVar("asked", default=None)


@contextmanager
def asked() -> Iterator[list[Schedule]]:
    """The schedules that are asked for their coefficient inside, wherever they are."""
    seen: list[Schedule] = []
    token = _ASKED.set(seen)
    try:
        yield seen
    finally:
        _ASKED.reset(token)


@contextmanager
def unannealed(loss: Any) -> Iterator[None]:
    """Every schedule at its end inside, where it was outside: the objective that validation looks at."""
    found = schedules(loss)
    before = [s.value.clone() for s in found]
    for s in found:
        s.value.fill_(s.end)
    try:
        yield
    finally:
        for s, value in zip(found, before, strict=True):
            s.value.copy_(value)
