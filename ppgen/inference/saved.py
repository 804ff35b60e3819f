"""A run that was saved, taken up again: what a checkpoint holds of it, and whether it is of this run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.inference.batches import Loaded, Shuffled
from ppgen.inference.checkpoint import Checkpoints
from ppgen.inference.distributed import current, gathered
from ppgen.inference.fingerprint import fingerprint
from ppgen.inference.modes import device_of, modules_of, seeded
from ppgen.inference.programs import device_batch
from ppgen.inference.progress import Place

__all__ = ["Saved"]

log = logging.getLogger(__name__)


class Saved:
    """The checkpoints of a run of ``train``, and the state in the newest of them, if there is one.

    Args:
        folder: of the checkpoints.
        every: seconds between two.
    """

    def __init__(self, folder: str | Path, every: float) -> None:
        self.files = Checkpoints(folder, every)
        self._state = self.files.read()
        if self._state is not None:
            with _refused(self.files.newest):
                self._seed, self._epochs = int(self._state["run"]["seed"]), int(self._state["place"]["epoch"])

    def seed(self, given: int | None) -> int | None:
        """The seed that the run began with, where none is given."""
        return self._seed if given is None and self._state is not None else given

    def check(self, step: Any, batches: Any, watched: Any, order: torch.Generator, epochs: int, **facts: Any) -> None:
        """Makes sure that what was saved is of this run, and learns what is to be saved of it.

        Raises:
            ValueError: it is of another one; the message names what differs.
        """
        self.step, self.batches, self.order = step, batches, order
        data = {"data": _digest(batches, facts["seed"]), "validation": _digest(watched, facts["seed"])}
        self.facts = {"step": type(step).__name__, "processes": current().count, **facts, **data}
        if self._state is None:
            return
        folder, before = self.files.folder, self._state["run"]
        for name, value in self.facts.items():
            if before.get(name) != value:
                other = "other data" if name in data else f"{name}={before.get(name)!r}, and this call {name}={value!r}"
                raise ValueError(
                    f"checkpoint={str(folder)!r} holds a run with {other} (in {name}): give what it began with to "
                    "continue it, or another folder for a new run."
                )
        if epochs < self._epochs:
            raise ValueError(
                f"epochs={epochs}, but the run in checkpoint={str(folder)!r} has had {self._epochs}: ask for as many "
                "or more."
            )

    def take_up(self) -> Place:
        """The place that the run had come to, with everything as it was there; its beginning if nothing was saved.

        Raises:
            ValueError: the state does not fit the model or the step.
        """
        if self._state is None:
            return Place()
        state, pair = self._state, getattr(self.step, "pair", self.step)
        if hasattr(self.step, "prepare"):  # what comes into being at a first batch
            self.step.prepare(*device_batch(pair, next(iter(self.batches))))
        with _refused(self.files.newest):
            _check_fits(modules_of(pair), state["pair"])
            place = Place.of(state["place"])
            self.step.load_state_dict(state["step"])
            for module, values in zip(modules_of(pair), state["pair"], strict=True):
                module.load_state_dict(values)
            self.batches.load_state(state["loader"])
            self.order.set_state(place.order)
            _set_generators(state["generators"][current().rank], device_of(pair))
        log.info("Goes on from %s: epoch %d, batch %d.", self.files.newest, place.epoch + 1, place.batch + 1)
        return place

    def within_epoch(self, place: Place) -> None:
        """A save after a step, if it is time for one and the data can go on there; a signal then has its way."""
        if not self.files.due:
            return
        if self.batches.divisible and current().count == 1:
            self._save(place)
        else:
            self.files.obey(
                f"{self.files.newest} holds the run at the end of its last epoch (its loader has no state_dict)"
            )

    def after_epoch(self, place: Place, last: bool) -> None:
        """A save after an epoch, if it is time for one or there is no other place for it."""
        place.order = self.order.get_state()
        if self.files.due or last or not self.batches.divisible or current().count > 1:
            self._save(place)

    def _save(self, place: Place) -> None:
        pair = getattr(self.step, "pair", self.step)
        state = {
            "run": self.facts,
            "place": place.state(),
            "pair": [module.state_dict() for module in modules_of(pair)],
            "step": self.step.state_dict(),
            "loader": self.batches.state(),
            "generators": gathered(_generators(device_of(pair))),  # each process has its own noise
        }
        if current().leads:
            self.files.write(place.steps, state)
        self.files.obey(f"{self.files.newest} holds the run after {place.steps:,} steps")


def _digest(source: Loaded | Shuffled | None, seed: int) -> list[str] | None:
    """What tells data in memory from others; a draw that is made anew at each read is read with one noise."""
    if not isinstance(source, Shuffled):
        return None
    with seeded(seed):
        return list(fingerprint(source.rows))


def _check_fits(modules: list[nn.Module], states: list[dict[str, Tensor]]) -> None:
    for module, state in zip(modules, states, strict=True):
        own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        theirs = {name: tuple(value.shape) for name, value in state.items()}
        if own != theirs:
            names = sorted(n for n in own.keys() | theirs.keys() if own.get(n) != theirs.get(n))
            raise ValueError(f"{names[0]} has shape {theirs.get(names[0])} there and {own.get(names[0])} in this model")


@contextmanager
def _refused(folder: Path | None) -> Iterator[None]:
    """Whatever does not fit is the checkpoint's fault, and named."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"The checkpoint {folder} does not fit this model and its training ({error}): make them as they were made "
            "for the run that it is of."
        ) from error


def _generators(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _set_generators(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
