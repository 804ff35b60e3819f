"""The combinations of a comparison, trained and evaluated one after the other or in processes of their own."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen import plots
from ppgen.catalogue import Recipe
from ppgen.catalogue.training import variational
from ppgen.cli.source import build, load
from ppgen.compare import compare
from ppgen.data import Dataset
from ppgen.inference import Estimate, sample

NOT_YET = "not trained yet"  # the reason of what a comparison that was stopped did not come to


class Cell(NamedTuple):
    """What was measured of one combination of parts."""

    epochs: int
    seconds: float
    estimate: Estimate
    figures: dict[str, Any]
    means: Tensor | None  # of samples, where the data are pictures


class Work(NamedTuple):
    """What is done with each combination."""

    source: tuple[str, Path | None, str | None, str, str]  # what `load` is called with
    training: dict[str, Any]
    num_samples: int
    seed: int

    def of(self, recipe: Recipe, loaded: Dataset) -> Cell | str:
        """Builds, trains and measures one combination; the reason, if any of it fails: the others have their turn."""
        try:
            return self._measured(recipe, loaded)
        except Exception as error:  # parts of a user's own raise all kinds
            return reason(error)

    def _measured(self, recipe: Recipe, loaded: Dataset) -> Cell:
        seed = self.seed
        began = time.perf_counter()
        pair = build(recipe, loaded, seed)
        batch = recipe.batch(loaded.train, loaded.train_labels)
        validation = recipe.batch(loaded.validation, loaded.validation_labels)
        history = variational(pair, batch, validation, **self.training, seed=seed, progress=False)
        seconds = time.perf_counter() - began
        test = recipe.batch(loaded.test, loaded.test_labels)
        result = compare({"": pair}, *test, num_samples=self.num_samples, seed=seed)
        figures = {name: result.rows[0][name] for name in ("kl", "active_units", "parameters")}
        drawn = plots.is_picture(loaded.event_shape)
        means = sample(pair, 36, *recipe.context(36), mean=True, seed=seed) if drawn else None
        return Cell(len(history.loss), seconds, result.estimates[""], figures, means)


def reason(error: Exception) -> str:
    """An error in one line, with its type where its words may say little by themselves."""
    said = " ".join(str(error).split())
    return said if type(error) is ValueError else f"{type(error).__name__}: {said}"


def worked(work: Work, recipes: Sequence[Recipe], loaded: Dataset, jobs: int) -> Iterator[tuple[int, Cell | str]]:
    """Each combination's place and what came of it, as they are finished.

    Args:
        work: what to do.
        recipes: the combinations.
        loaded: the data; processes load them again.
        jobs: processes that share them, a thread each, and where there are GPUs one of these. With one job all is done
            here, in as many threads as torch takes: its numbers are those of several to the bit in one thread, and to
            rounding (which training may magnify) in more.
    """
    if jobs == 1 or len(recipes) == 1:
        yield from ((i, work.of(recipe, loaded)) for i, recipe in enumerate(recipes))
        return
    # Spawned, not forked: torch's threads and CUDA do not survive a fork.
    context = multiprocessing.get_context("spawn")
    places = context.Queue()
    for place in range(min(jobs, len(recipes))):
        places.put(place)
    pool = ProcessPoolExecutor(min(jobs, len(recipes)), mp_context=context, initializer=_begin, initargs=(places,))
    try:
        futures = {pool.submit(_packed, work, recipe): i for i, recipe in enumerate(recipes)}
        for future in as_completed(futures):
            yield futures[future], pickle.loads(future.result())
    finally:
        pool.shutdown(cancel_futures=True)


_load_once = lru_cache(maxsize=1)(load)  # for all combinations that come to a process


def _begin(places: Any) -> None:
    """One thread for this process, and a GPU if there are any."""
    logging.captureWarnings(True)
    torch.set_num_threads(1)
    place = places.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())


def _packed(work: Work, recipe: Recipe) -> bytes:
    """As bytes: between processes torch would pass tensors by open files, which are gone when this one ends."""
    return pickle.dumps(work.of(recipe, _load_once(*work.source)))
