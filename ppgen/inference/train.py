"""The one training loop: anything with ``.step(*batch) -> loss``, over epochs of data."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ppgen.inference.batches import Loaded, Shuffled, check_support, in_batches, mean_loss, observed_supports
from ppgen.inference.checkpoint import Checkpoints
from ppgen.inference.distributed import current, gathered, num_rows, own_seed, spread
from ppgen.inference.fingerprint import fingerprint
from ppgen.inference.hygiene import check_last_batch
from ppgen.inference.modes import device_of, modules_of, seeded, training
from ppgen.inference.programs import device_batch
from ppgen.inference.svi import SVI
from ppgen.inference.turns import give_way, in_turn
from ppgen.nn.shapes import positive_integer
from ppgen.pair import Pair

__all__ = ["History", "train"]

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


@in_turn
def train(
    step: Any,
    data: Any,
    *,
    epochs: int,
    batch_size: int = 100,
    validation: Any = None,
    patience: int | None = None,
    seed: int | None = None,
    skip_nonfinite: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
    progress: bool = True,
) -> History:
    """Training of any step: ``step.step(*batch)`` on every batch of every epoch.

    Args:
        step: an :class:`SVI`, or anything with ``.step(*batch) -> loss``. Training ends after an epoch that leaves it
            with a true attribute ``converged``; its attribute ``monitors`` is noted after each epoch.
        data: a tensor or an array, a tuple of them (one batch member each), or a DataLoader.
        epochs: passes over the data.
        batch_size: rows of a batch, for data that is not a loader; the last batch of an epoch may be shorter.
        validation: data whose unannealed loss (``step.evaluate``) is watched, in eval mode and with fixed noise.
        patience: epochs without a better validation loss after which training stops; it starts when every schedule is
            at its end. The best parameters are restored.
        seed: of the order of the data and of the noise; drawn from torch's generator if not given. torch's global
            generators are given back as they were.
        skip_nonfinite: whether batches whose loss or gradient is not finite are skipped and counted
            (``History.skipped``); otherwise the first of them ends the run. Neither reaches the parameters.
        checkpoint: a folder in which the run is saved now and then, after every step that a Ctrl-C or SIGTERM fell
            into, and at its end. The same call with a model made in the same way goes on from there, bit for bit as if
            it had never stopped (on the same kind of machine, versions and threads); it may ask for more epochs. Data
            in memory, and loaders with a ``state_dict``, go on within an epoch, other loaders at its beginning.
        checkpoint_every: seconds between two saves.
        progress: whether to show a bar with epoch, loss and time left.

    Raises:
        TypeError: data of a kind that cannot be read, or a step without ``.evaluate`` where validation needs it, or
            without ``.state_dict`` where a checkpoint does.
        ValueError: empty or non-finite data, a bad number, patience without validation, or a checkpoint that is damaged
            or of another run.
        FloatingPointError: a loss or a gradient that is not finite, in training or in validation; the parameters are
            those before it.
        OSError: a checkpoint could not be written; those before it are as they were.
    """
    positive_integer("epochs", epochs)
    positive_integer("batch_size", batch_size)
    if patience is not None:
        positive_integer("patience", patience)
        if validation is None:
            raise ValueError(f"patience={patience} needs validation data to look at: give validation=….")
    if not callable(getattr(step, "step", None)):
        raise TypeError(f"train needs something with .step(*batch) -> loss, got {type(step).__name__}.")
    if validation is not None and not callable(getattr(step, "evaluate", None)):
        raise TypeError(f"{type(step).__name__} has no .evaluate(*batch), so validation data cannot be used with it.")
    if checkpoint is not None and not (hasattr(step, "state_dict") and hasattr(step, "load_state_dict")):
        raise TypeError(f"{type(step).__name__} has no .state_dict and .load_state_dict, so it cannot be checkpointed.")
    saves = None if checkpoint is None else Checkpoints(checkpoint, checkpoint_every)
    state = None if saves is None else saves.read()
    if saves is not None and state is not None:
        with _refused(saves.newest):
            seed, done = int(state["run"]["seed"]) if seed is None else seed, int(state["place"]["epoch"])
    order = torch.Generator()
    batches = in_batches(data, batch_size, order, "data")
    watched = None if validation is None else in_batches(validation, batch_size, None, "validation")
    _check_shared(step, batches, watched, batch_size)
    if skip_nonfinite and current().count > 1:
        raise ValueError("skip_nonfinite=True is for one process: several would not skip the same batches.")
    seed = gathered(int(torch.randint(2**62, ())) if seed is None else seed)[0]
    pair = getattr(step, "pair", step)
    device = device_of(pair)
    if isinstance(batches, Shuffled):
        batches.rows.keep_on(device)
    annealed = getattr(step, "schedules", [])
    for schedule in annealed:
        schedule.bind(len(batches))
    facts = {"seed": seed, "step": type(step).__name__, "batch_size": batch_size, "patience": patience}
    if saves is not None:
        facts |= {"data": _digest(batches, seed), "validation": _digest(watched, seed), "processes": current().count}
    if saves is not None and state is not None:
        _check_same_run(saves.folder, state["run"], facts, done, epochs)

    def validate(numbered: tuple[int, tuple[Any, ...]]) -> tuple[float, int]:
        index, batch = numbered
        return float(step.evaluate(*batch, seed=index)), num_rows(batch)

    def save() -> str:
        if saves is None:
            return ""
        parts = [module.state_dict() for module in modules_of(pair)]
        generators = gathered(_generators(device))
        whole = {"run": facts, "place": place.state(), "pair": parts, "step": step.state_dict()}
        whole |= {"generators": generators, "loader": batches.state(), "best": best_state}
        if current().leads:
            saves.write(place.steps, whole)
        return f"{saves.newest} holds the run after {place.steps:,} steps"

    place = _Place()
    best_state: list[dict[str, Tensor]] | None = None
    with (
        seeded(seed, device),
        training(pair, True),
        saves.signals() if saves is not None else nullcontext(),
        _bar(epochs, progress and current().leads) as report,
    ):
        if hasattr(pair, "model") and hasattr(pair, "guide"):
            _check_observations(pair, batches, watched)
            if isinstance(batches, Shuffled):
                check_last_batch(pair, len(batches.rows), batch_size, next(iter(batches)))
        order.manual_seed(seed)
        torch.manual_seed(own_seed(seed))
        if saves is not None and state is not None:
            if hasattr(step, "prepare"):
                step.prepare(*device_batch(pair, next(iter(batches))))
            with _refused(saves.newest):
                _check_fits(modules_of(pair), state["pair"])
                place, best_state = _Place.of(state["place"]), state["best"]
                step.load_state_dict(state["step"])
                for module, values in zip(modules_of(pair), state["pair"], strict=True):
                    module.load_state_dict(values)
                batches.load_state(state["loader"])
                order.set_state(place.order)
                _set_generators(state["generators"][current().rank], device)
            log.info("Continues %s: epoch %d, batch %d.", saves.folder, place.epoch + 1, place.batch + 1)
        history = place.history
        while place.epoch < epochs and not place.ended:
            began = time.perf_counter() - place.seconds
            place.order = order.get_state()
            for batch in batches.rest(place.batch):
                with _located(place, len(batches), skip_nonfinite):
                    place.losses.append((step.step(*batch), num_rows(batch)))
                place.batch += 1
                place.steps += 1
                give_way()
                if saves is not None and saves.due and place.batch < len(batches):
                    place.seconds = time.perf_counter() - began
                    if batches.divisible and current().count == 1:
                        written = save()
                        saves.obey(written)
                    else:
                        saves.obey(
                            f"this loader has no state_dict: {saves.newest} holds the run at the last epoch's end"
                        )
            if hasattr(step, "look"):  # updates on a GPU run ahead of the host
                with _located(place, len(batches), skip_nonfinite):
                    step.look()
            history.loss.append(mean_loss(list(chain(*gathered([(float(v), n) for v, n in place.losses])))))
            if watched is not None:
                history.validation.append(mean_loss(spread(validate, enumerate(watched))))
                if not math.isfinite(history.validation[-1]):
                    raise FloatingPointError(
                        f"The validation loss after epoch {place.epoch + 1} is {history.validation[-1]}, though every "
                        "training loss was finite. Likely causes: validation data of another range, or a scale that "
                        "collapsed to zero."
                    )
            for name, value in getattr(step, "monitors", {}).items():
                history.monitors.setdefault(name, []).append(float(value))
            history.seconds.append(time.perf_counter() - began)
            report(history)
            log.info("Epoch %d of %d: %s.", place.epoch + 1, epochs, _losses(history))
            if patience is not None and all(s.done for s in annealed):
                if history.validation[-1] < place.best:
                    place.best, place.waited, history.best_epoch = history.validation[-1], 0, place.epoch
                    best_state = [copy.deepcopy(m.state_dict()) for m in modules_of(pair)]
                else:
                    place.waited += 1
            place.ended = (patience is not None and place.waited >= patience) or bool(getattr(step, "converged", False))
            history.stopped_early = place.ended and place.epoch + 1 < epochs
            place.next_epoch()
            last = place.ended or place.epoch == epochs
            if saves is not None and (saves.due or last or not batches.divisible or current().count > 1):
                place.order = order.get_state()
                saves.obey(save())
    if best_state is not None:
        for module, values in zip(modules_of(pair), best_state, strict=True):
            module.load_state_dict(values)
    return history


@dataclass
class _Place:
    """How far a run has come."""

    history: History = field(default_factory=History)
    epoch: int = 0
    batch: int = 0  # how many of this epoch are done
    steps: int = 0
    seconds: float = 0.0  # that this epoch has taken
    losses: list[tuple[Any, int]] = field(default_factory=list)  # of this epoch
    order: Any = None  # the state that the order of this epoch's batches comes from
    best: float = math.inf
    waited: int = 0
    ended: bool = False

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.losses, self.seconds = self.epoch + 1, 0, [], 0.0

    def state(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        losses = [(float(loss), rows) for loss, rows in self.losses]
        return {**vars(self), "history": asdict(self.history), "losses": losses}

    @classmethod
    def of(cls, state: dict[str, Any]) -> _Place:
        """What :meth:`state` says."""
        return cls(**{**state, "history": History(**state["history"])})


@contextmanager
def _located(place: _Place, num_batches: int, skip: bool) -> Iterator[None]:
    """Says where a loss was not finite; or counts it, if that is to be skipped."""
    try:
        yield
    except FloatingPointError as error:
        batch = min(place.batch + 1, num_batches)
        where = f"Epoch {place.epoch + 1}, batch {batch} of {num_batches} (step {place.steps + 1:,})"
        if not skip or (place.batch + 1 >= num_batches and not place.losses):  # or no batch of an epoch was finite
            raise FloatingPointError(f"{where}: {error}") from error
        place.history.skipped += 1
        log.warning("%s is skipped: %s", where, error)


def _losses(history: History) -> str:
    return f"loss {history.loss[-1]:.2f}" + (f", validation {history.validation[-1]:.2f}" if history.validation else "")


def _digest(source: Loaded | Shuffled | None, seed: int) -> list[str] | None:
    """What tells data in memory from others; a draw that is made anew at each read is read with one noise."""
    if not isinstance(source, Shuffled):
        return None
    with seeded(seed):
        return list(fingerprint(source.rows))


def _check_same_run(folder: Path, of_checkpoint: Any, now: dict[str, Any], done: int, epochs: int) -> None:
    for name, value in now.items():
        if (before := of_checkpoint.get(name)) != value:
            what = (
                "other data" if name in ("data", "validation") else f"{name}={before!r}, and this call {name}={value!r}"
            )
            raise ValueError(
                f"checkpoint={str(folder)!r} holds a run with {what} (in {name}): give what it began with to continue "
                "it, or another folder for a new run."
            )
    if epochs < done:
        raise ValueError(
            f"epochs={epochs}, but the run in checkpoint={str(folder)!r} has had {done}: ask for as many or more."
        )


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


def _check_observations(pair: Pair, *sources: Loaded | Shuffled | None) -> None:
    """Data in memory are checked against the model's supports at once, a loader's batches as they come."""
    for source, name in zip(sources, ("data", "validation"), strict=True):
        if source is None:
            continue
        first = next(iter(source))
        try:
            with training(pair, False):
                supports = observed_supports(pair, device_batch(pair, first))
        except ValueError as error:
            raise ValueError(f"{name} cannot be given to this pair: {error}") from error
        if isinstance(source, Loaded):
            source.supports = supports
            check_support(supports, first, f"the first batch of {name}")
            continue
        for start in range(0, len(source.rows), 4096):
            check_support(supports, source.rows(slice(start, start + 4096)), name, start)


def _check_shared(step: Any, batches: Loaded | Shuffled, watched: Loaded | Shuffled | None, batch_size: int) -> None:
    """Refuses what processes cannot share: each would train a model of its own, or on the rows of another."""
    count = current().count
    if count == 1:
        return
    if not isinstance(step, SVI):
        raise TypeError(
            f"{type(step).__name__} cannot share its work among {count} processes, only SVI (fit) can: start it in one "
            "process, without torchrun."
        )
    if isinstance(batches, Shuffled) and min(batch_size, len(batches.rows)) < count:
        raise ValueError(
            f"batch_size={batch_size} of {len(batches.rows)} rows leaves some of {count} processes without any: give "
            "larger batches, or start fewer processes."
        )
    if isinstance(batches, Loaded) and not batches.divided:
        raise ValueError(
            f"The loader would give each of {count} processes the same rows: make it with "
            "sampler=DistributedSampler(dataset), or give the data in memory."
        )
    if isinstance(watched, Loaded) and watched.divided:
        raise ValueError(
            "validation is divided among the processes by themselves: give a loader without a DistributedSampler."
        )


class _bar:
    """A progress line on a terminal; nothing elsewhere."""

    def __init__(self, epochs: int, show: bool) -> None:
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("epoch {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (show and console.is_terminal),
        )
        self.epochs = epochs

    def __enter__(self) -> Any:
        self.bar.start()
        task = self.bar.add_task("train", total=self.epochs, losses="")

        def report(history: History) -> None:
            self.bar.update(task, completed=len(history.loss), losses=_losses(history))

        return report

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()
