"""The one training loop: anything with ``.step(*batch) -> loss``, over epochs of data."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyro
import torch

from ppgen.inference.execution.batches import Loaded, Shuffled, check_rows, in_batches
from ppgen.inference.execution.distributed import current, gathered, own_seed, spread
from ppgen.inference.programs.hygiene import check_last_batch, warn_of_probabilities
from ppgen.inference.programs.modes import training
from ppgen.inference.programs.networks import device_of
from ppgen.inference.programs.refusals import check_axes, check_data_plate
from ppgen.inference.programs.seeds import checked_seed, seeded
from ppgen.inference.programs.supports import Support, check_observed, check_support, observed_supports
from ppgen.inference.programs.traces import device_batch, num_rows, run, sites
from ppgen.inference.programs.turns import give_way, in_turn
from ppgen.inference.training.progress import History, Place, bar, located, losses, mean_loss
from ppgen.inference.training.rowwise import check_amortised
from ppgen.inference.training.saved import Saved, set_trained_state, trained_state
from ppgen.inference.training.svi import SVI
from ppgen.numbers import positive_integer

__all__ = ["train"]

log = logging.getLogger(__name__)


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
        ValueError: empty or non-finite data, a bad number, patience without validation, a checkpoint that is damaged
            or of another run, or programs that cannot be trained in mini-batches as they are (a parameter for each
            row, a latent that all data share beside a batch that is not scaled up to them).
        FloatingPointError: a loss or a gradient that is not finite, in training or in validation. Its update was not
            made; on a GPU, where steps run ahead of the host, up to 100 later ones may have been.
        OSError: a checkpoint could not be written; those before it are as they were.
    """
    epochs, batch_size = positive_integer("epochs", epochs), positive_integer("batch_size", batch_size)
    seed = None if seed is None else checked_seed(seed)
    patience = None if patience is None else positive_integer("patience", patience)
    _check_step(step, validation, patience, checkpoint)
    saved = None if checkpoint is None else Saved(checkpoint, checkpoint_every)
    order = torch.Generator()
    batches = in_batches(data, batch_size, order, "data")
    watched = None if validation is None else in_batches(validation, batch_size, None, "validation")
    _check_shared(step, batches, watched, batch_size)
    if skip_nonfinite and current().count > 1:
        raise ValueError("skip_nonfinite=True is for one process: several would not skip the same batches.")
    seed = seed if saved is None else saved.seed(seed)
    seed = gathered(int(torch.randint(2**62, ())) if seed is None else seed)[0]
    if saved is not None:
        saved.check(step, batches, watched, order, epochs, seed=seed, batch_size=batch_size, patience=patience)
    pair = getattr(step, "pair", step)
    device = device_of(pair)
    if isinstance(batches, Shuffled):
        batches.rows.keep_on(device)
    annealed = getattr(step, "schedules", [])
    for schedule in annealed:
        schedule.bind(len(batches))

    with (
        seeded(seed, device),
        training(pair, True),
        nullcontext() if saved is None or not current().leads else saved.files.alone(),
        nullcontext() if saved is None else saved.files.signals(),
        bar(epochs, progress and current().leads) as report,
    ):
        _check_observations(pair, batches, watched)
        if _is_pair(pair) and isinstance(batches, Shuffled):
            check_last_batch(pair, batches.rows, batch_size)
        order.manual_seed(seed)
        torch.manual_seed(own_seed(seed))
        place = Place() if saved is None else saved.take_up()
        history = place.history
        while place.epoch < epochs and not place.ended:
            began = time.perf_counter() - place.seconds
            place.order = order.get_state()
            _train_epoch(step, batches, place, began, skip_nonfinite, saved)
            history.loss.append(_epoch_loss(step, place, len(batches), skip_nonfinite))
            if watched is not None:
                history.validation.append(_validation_loss(step, watched, place.epoch))
            history.compiled = getattr(step, "compiled", False)
            for name, value in getattr(step, "monitors", {}).items():
                history.monitors.setdefault(name, []).append(float(value))
            history.seconds.append(time.perf_counter() - began)
            report(history)
            log.info("Epoch %d of %d: %s.", place.epoch + 1, epochs, losses(history))
            if patience is not None and all(s.done for s in annealed):
                place.keep_best(history.validation[-1], partial(trained_state, step))
            place.ended = (patience is not None and place.waited >= patience) or bool(getattr(step, "converged", False))
            place.next_epoch()
            if saved is not None:
                saved.after_epoch(place, last=place.ended or place.epoch == epochs)
    history.stopped_early = place.ended and place.epoch < epochs
    if place.best_state is not None:
        set_trained_state(step, place.best_state)
    return history


def _check_step(step: Any, validation: Any, patience: int | None, checkpoint: Any) -> None:
    """Makes sure that a step has what is asked of it."""
    kind = type(step).__name__
    if patience is not None and validation is None:
        raise ValueError(f"patience={patience} needs validation data to look at: give validation=….")
    if not callable(getattr(step, "step", None)):
        raise TypeError(f"train needs something with .step(*batch) -> loss, got {kind}.")
    if validation is not None and not callable(getattr(step, "evaluate", None)):
        raise TypeError(f"{kind} has no .evaluate(*batch), so validation data cannot be used with it.")
    if checkpoint is not None and not (hasattr(step, "state_dict") and hasattr(step, "load_state_dict")):
        raise TypeError(f"{kind} has no .state_dict and .load_state_dict, so it cannot be checkpointed.")


def _train_epoch(
    step: Any, batches: Loaded | Shuffled, place: Place, began: float, skip_nonfinite: bool, saved: Saved | None
) -> None:
    """The batches of an epoch from its place on, whose losses are noted there."""

    def look() -> None:
        if hasattr(step, "look"):
            with located(place, len(batches), skip_nonfinite):
                step.look()

    for batch in batches.rest(place.batch):
        with located(place, len(batches), skip_nonfinite):
            place.losses.append((step.step(*batch), num_rows(batch)))
        place.batch, place.steps = place.batch + 1, place.steps + 1
        give_way()
        if getattr(step, "is_ahead", False):  # updates on a GPU run ahead of the host
            look()
        if saved is not None and place.batch < len(batches):
            place.seconds = time.perf_counter() - began
            if saved.files.due:  # what is saved is known to be good
                look()
            saved.within_epoch(place)
    look()


def _epoch_loss(step: Any, place: Place, num_batches: int, skip_nonfinite: bool) -> float:
    """The mean loss of an epoch, of all processes together, over the batches that were not skipped."""
    means = [(float(loss), rows) for loss, rows in place.losses]
    bad = [i for i, (loss, _) in enumerate(means) if not math.isfinite(loss)]
    if bad and (not skip_nonfinite or len(bad) == len(means)):
        where = f"Epoch {place.epoch + 1}, batches {', '.join(str(i + 1) for i in bad[:5])} of {num_batches}"
        raise FloatingPointError(f"{where}: the loss is not finite, first {means[bad[0]][0]}.")
    if not hasattr(step, "look"):  # which has counted them
        place.history.skipped += len(bad)
    means = [mean for mean in means if math.isfinite(mean[0])]
    return mean_loss(list(chain(*gathered(means))))


def _validation_loss(step: Any, watched: Loaded | Shuffled, epoch: int) -> float:
    def evaluate(numbered: tuple[int, tuple[Any, ...]]) -> tuple[float, int]:
        index, batch = numbered
        return float(step.evaluate(*batch, seed=index)), num_rows(batch)

    loss = mean_loss(spread(evaluate, enumerate(watched)))
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"The validation loss after epoch {epoch + 1} is {loss}, though every training loss was finite. Likely "
            "causes: validation data of another range, or a scale that collapsed to zero."
        )
    return loss


def _is_pair(pair: Any) -> bool:
    return hasattr(pair, "model") and hasattr(pair, "guide")


def _supports(pair: Any, batch: Sequence[Any], *, rows_first: bool) -> list[Support]:
    """Where the members of a batch may lie: what densities say, and what a model without one for its data states.

    Data in memory have their rows first; what a loader gives may have them elsewhere.
    """
    found = []
    if _is_pair(pair):
        with torch.no_grad(), pyro.validation_enabled(False):
            model_trace, guide_trace = run(pair.model, pair.guide, batch)
        observed = sites(model_trace)
        check_axes(sites(guide_trace), "guide")
        check_axes(observed, "model")
        if rows_first:
            check_data_plate(observed, batch)
        warn_of_probabilities(pair, observed)
        found = observed_supports(observed, batch)
        asked = {support.site for support in found}  # of all rows, below
        check_observed({name: site for name, site in observed.items() if name not in asked})
    if stated := getattr(pair, "data_support", None):
        found.append(Support(0, "x", type(pair).__name__, stated, batch[0].shape[1:]))
    return found


def _check_observations(pair: Any, *sources: Loaded | Shuffled | None) -> None:
    """Data in memory are checked against the model's supports at once, a loader's batches as they come."""
    if not (_is_pair(pair) or getattr(pair, "data_support", None)):
        return  # without a look at the first batch of a loader, which may be slow
    for source, name in zip(sources, ("data", "validation"), strict=True):
        if source is None:
            continue
        first = next(iter(source))
        try:
            with training(pair, False):
                supports = _supports(pair, device_batch(pair, first), rows_first=isinstance(source, Shuffled))
        except ValueError as error:
            raise ValueError(f"{name} cannot be given to this pair: {error}") from error
        if name == "data" and _is_pair(pair) and (len(source) > 1 or current().count > 1):
            check_amortised(pair, device_batch(pair, first))
        if isinstance(source, Loaded):
            source.supports = supports
            check_support(supports, first, f"the first batch of {name}")
            continue
        check_rows(source.rows, supports, name)


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
