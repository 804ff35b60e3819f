"""How far a run of training has come: its history, its place within it, and the line that shows it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

__all__ = ["History", "Place", "bar", "located", "losses", "mean_loss"]

log = logging.getLogger(__name__)


@dataclass
class History:
    """What a training run went through, an entry an epoch; losses in nats per datum.

    Attributes:
        loss: the mean training loss.
        validation: the mean validation loss, unannealed; empty without validation data.
        seconds: the time that each epoch took.
        best_epoch: the epoch (counted from 0) whose parameters were kept, if early stopping was on.
        stopped_early: whether training ended before its last epoch.
        monitors: what else the step watches (its attribute ``monitors``, a number a name), after each epoch.
        compiled: whether the steps ran compiled code.
        skipped: how many batches were skipped since their loss or gradient was not finite.
    """

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False
    monitors: dict[str, list[float]] = field(default_factory=dict)
    compiled: bool = False
    skipped: int = 0


def mean_loss(values: Sequence[tuple[float, int]]) -> float:
    """The mean over data of per-batch means."""
    return math.fsum(v * n for v, n in values) / sum(n for _, n in values)


@dataclass
class Place:
    """How far a run has come."""

    history: History = field(default_factory=History)
    epoch: int = 0
    batch: int = 0  # how many of this epoch are done
    steps: int = 0
    seconds: float = 0.0  # that this epoch has taken
    losses: list[tuple[Any, int]] = field(default_factory=list)  # of this epoch
    order: Any = None  # the state that the order of this epoch's batches comes from
    best: float = math.inf
    best_state: list[dict[str, Tensor]] | None = None  # of the pair, where the validation loss was best
    waited: int = 0
    ended: bool = False

    def keep_best(self, loss: float, state: Callable[[], list[dict[str, Tensor]]]) -> None:
        """Notes what this epoch has led to, if no epoch before it had a better validation loss."""
        if loss < self.best:
            self.best, self.waited, self.history.best_epoch = loss, 0, self.epoch
            self.best_state = state()
        else:
            self.waited += 1

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.losses, self.seconds = self.epoch + 1, 0, [], 0.0

    def state(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        losses = [(float(loss), rows) for loss, rows in self.losses]
        return {**vars(self), "history": asdict(self.history), "losses": losses}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Place:
        """What :meth:`state` says.

        Raises:
            ValueError: something in it is not of its kind.
        """
        place = cls(**{**state, "history": History(**state["history"])})
        for owner, kinds in ((place, PLACE), (place.history, HISTORY)):
            for name, kind in kinds.items():
                if not _is(getattr(owner, name), kind):
                    raise ValueError(f"its {name} is {getattr(owner, name)!r:.50}")
        if not (place.history.best_epoch is None or _is(place.history.best_epoch, int)):
            raise ValueError(f"its best epoch is {place.history.best_epoch!r:.50}")
        return place

    def check(self, num_batches: int, watched: bool) -> None:
        """Makes sure that this is a place of a run with so many batches an epoch, watched on other data or not.

        Raises:
            ValueError: it is of another one.
        """
        if self.batch and self.batch >= num_batches:
            raise ValueError(f"it is at batch {self.batch} of {num_batches}")
        history = self.history
        if len(history.loss) != self.epoch or len(history.validation) != (self.epoch if watched else 0):
            raise ValueError(f"its history is not that of {self.epoch} epochs")


# What the values in a checkpoint have to be.
PLACE: dict[str, Any] = {
    "epoch": int, "batch": int, "steps": int, "waited": int, "seconds": float, "best": float, "ended": bool,
    "losses": [(float, int)], "order": Tensor,
}  # fmt: skip
HISTORY: dict[str, Any] = {
    "loss": [float], "validation": [float], "seconds": [float], "monitors": {str: [float]}, "skipped": int,
    "stopped_early": bool, "compiled": bool,
}  # fmt: skip


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind: a list, a dictionary or a row of others, a count, a number."""
    if isinstance(kind, list):
        return isinstance(value, list) and all(_is(v, kind[0]) for v in value)
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(_is(k, str) and _is(v, kind[str]) for k, v in value.items())
    if isinstance(kind, tuple):
        return isinstance(value, tuple) and len(value) == len(kind) and all(map(_is, value, kind))
    if kind is int:
        return type(value) is int and value >= 0
    return isinstance(value, float | int if kind is float else kind)


@contextmanager
def located(place: Place, num_batches: int, skip: bool) -> Iterator[None]:
    """Says where a loss was not finite; or counts it, if that is to be skipped."""
    try:
        yield
    except FloatingPointError as error:
        # Of the step that is being made; on a GPU, which tells of several at once, of one that was made before.
        since = getattr(error, "later", -1)
        where = f"Epoch {place.epoch + 1}, batch {place.batch - since} of {num_batches} (step {place.steps - since:,})"
        if not skip or (place.batch + 1 >= num_batches and not place.losses):  # or no batch of an epoch was finite
            raise FloatingPointError(f"{where}: {error}") from error
        place.history.skipped += getattr(error, "count", 1)
        log.warning("%s is skipped: %s", where, error)


def losses(history: History) -> str:
    """The last epoch's losses in words."""
    return f"loss {history.loss[-1]:.2f}" + (f", validation {history.validation[-1]:.2f}" if history.validation else "")


@contextmanager
def bar(epochs: int, show: bool) -> Iterator[Callable[[History], None]]:
    """A progress line on a terminal, nothing elsewhere; gives what moves it on after an epoch."""
    console = Console(stderr=True)
    line = Progress(
        TextColumn("epoch {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[losses]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not (show and console.is_terminal),
    )
    with line:
        task = line.add_task("train", total=epochs, losses="")
        yield lambda history: line.update(task, completed=len(history.loss), losses=losses(history))
