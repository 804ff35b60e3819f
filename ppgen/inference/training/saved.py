"""A run that was saved, taken up again: what a checkpoint holds of it, and whether it is of this run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppgen.inference.execution.batches import Loaded, Shuffled
from ppgen.inference.execution.distributed import current, gathered
from ppgen.inference.execution.fingerprint import fingerprint
from ppgen.inference.programs.networks import device_of, modules_of
from ppgen.inference.programs.seeds import checked_seed, seeded
from ppgen.inference.programs.traces import device_batch
from ppgen.inference.training.checkpoint import Checkpoints
from ppgen.inference.training.progress import Place

__all__ = ["Saved", "set_trained_state", "trained_state"]

log = logging.getLogger(__name__)


def trained_state(step: Any) -> list[dict[str, Tensor]]:
    """A copy of what a step trains: the states of its pair's networks, and the parameters that no network holds."""
    states = [module.state_dict() for module in modules_of(getattr(step, "pair", step))]
    sites = {str(i): p.detach() for i, p in enumerate(getattr(step, "sites", []))}
    return copy.deepcopy([*states, sites] if sites else states)


def set_trained_state(step: Any, states: Sequence[dict[str, Tensor]]) -> None:
    """Sets what :func:`trained_state` copied."""
    modules = modules_of(getattr(step, "pair", step))
    for module, values in zip(modules, states, strict=False):
        module.load_state_dict(values)
    with torch.no_grad():
        for sites in states[len(modules) :]:
            for parameter, value in zip(step.sites, sites.values(), strict=True):
                parameter.copy_(value)


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
            newest = self.files.newest
            with _refused(newest):
                self._place = Place.of(self._state["place"])
                self._seed = checked_seed(self._state["run"]["seed"])
                if newest is not None and int(newest.name) != self._place.steps:
                    raise ValueError(f"it holds the run after {self._place.steps:,} steps, so it was renamed")

    def seed(self, given: int | None) -> int | None:
        """The seed that the run began with, where none is given."""
        return self._seed if given is None and self._state is not None else given

    def check(self, step: Any, batches: Any, watched: Any, order: torch.Generator, epochs: int, **facts: Any) -> None:
        """Makes sure that what was saved is of this run, and learns what is to be saved of it.

        Raises:
            ValueError: it is of another one; the message names what differs.
        """
        self.step, self.pair = step, getattr(step, "pair", step)
        self.batches, self.watched, self.order = batches, watched, order
        data = {"data": _digest(batches, facts["seed"]), "validation": _digest(watched, facts["seed"])}
        self.facts = {"step": type(step).__name__, "processes": current().count, **facts, **data}
        if self._state is None:
            return
        folder, before = self.files.folder, self._state["run"]
        for name, value in self.facts.items():
            if name not in before or type(before[name]) is not type(value) or before[name] != value:
                other = "other data" if name in data else f"{name}={before.get(name)!r}, and this call {name}={value!r}"
                raise ValueError(
                    f"checkpoint={str(folder)!r} holds a run with {other} (in {name}): give what it began with to "
                    "continue it, or another folder for a new run."
                )
        if epochs < self._place.epoch:
            raise ValueError(
                f"epochs={epochs}, but the run in checkpoint={str(folder)!r} has had {self._place.epoch}: ask for as "
                "many or more."
            )

    def take_up(self) -> Place:
        """The place that the run had come to, with everything as it was there; its beginning if nothing was saved.

        Raises:
            ValueError: the state does not fit the model or the step, which are as they were.
        """
        if self._state is None:
            return Place()
        place = self._place
        if hasattr(self.step, "prepare"):  # what comes into being at a first batch
            first = device_batch(self.pair, next(iter(self.batches)))
            self.step.prepare(*first)
            self.step.rehearse(*first)
        before = copy.deepcopy(self.step.state_dict()), trained_state(self.step)
        with _refused(self.files.newest):
            place.check(len(self.batches), self.watched is not None)
            _check_fits(before[1][: len(modules_of(self.pair))], self._state["pair"])
            if place.best_state is not None:
                _check_fits(before[1], place.best_state)
            try:
                self._load(self._state, place)
            except Exception:
                self.step.load_state_dict(before[0])
                set_trained_state(self.step, before[1])
                raise
        log.info("Goes on from %s: epoch %d, batch %d.", self.files.newest, place.epoch + 1, place.batch + 1)
        return place

    def _load(self, state: dict[str, Any], place: Place) -> None:
        self.step.load_state_dict(state["step"])
        set_trained_state(self.step, state["pair"])
        self.batches.load_state(state["loader"])
        if isinstance(self.watched, Loaded) and state.get("watched") is not None:
            self.watched.load_generators(state["watched"])
        self.order.set_state(place.order)
        _set_generators(state["generators"][current().rank], device_of(self.pair))

    def within_epoch(self, place: Place) -> None:
        """A save after a step, if it is time for one and the data can go on there; a signal then has its way."""
        if not self.files.due:
            return
        if self.batches.divisible and current().count == 1:
            self._save(place)
        else:
            owner = "several processes" if current().count > 1 else "a loader that has no state_dict"
            self.files.obey(f" ({owner} can go on only at the end of an epoch)")

    def after_epoch(self, place: Place, last: bool) -> None:
        """A save after an epoch, if it is time for one or there is no other place for it."""
        place.order = self.order.get_state()
        if self.files.due or last or not self.batches.divisible or current().count > 1:
            self._save(place)

    def _save(self, place: Place) -> None:
        state = {
            "run": self.facts,
            "place": place.state(),
            "pair": [module.state_dict() for module in modules_of(self.pair)],
            "step": self.step.state_dict(),
            "loader": self.batches.state(),
            "watched": self.watched.generators() if isinstance(self.watched, Loaded) else None,
            "generators": gathered(_generators(device_of(self.pair))),  # each process has its own noise
        }
        if current().leads:
            self.files.write(place.steps, state)
        gathered(None)  # once it is written
        self.files.obey()


def _digest(source: Loaded | Shuffled | None, seed: int) -> list[str] | None:
    """What tells data in memory from others; a draw that is made anew at each read is read with one noise."""
    if not isinstance(source, Shuffled):
        return None
    with seeded(seed):
        return list(fingerprint(source.rows))


def _check_fits(own: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for mine, other in zip(own, theirs, strict=True):
        here, there = ({name: _form(value) for name, value in values.items()} for values in (mine, other))
        if here != there:
            name = min(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
            raise ValueError(
                f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'nothing')} in this model"
            )


def _form(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


@contextmanager
def _refused(folder: Path | None) -> Iterator[None]:
    """Whatever does not fit is the checkpoint's fault, and named."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
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
