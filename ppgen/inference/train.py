"""The one training loop: anything with ``.step(*batch) -> loss``, over epochs of data."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ppgen.inference.batches import (
    Loaded,
    Shuffled,
    check_support,
    in_batches,
    is_loader,
    mean_loss,
    observed_supports,
)
from ppgen.inference.distributed import current, gathered, num_rows, own_seed, spread
from ppgen.inference.losses import elbo
from ppgen.inference.masks import masked
from ppgen.inference.modes import device_of, modules_of, seeded, training
from ppgen.inference.programs import device_batch
from ppgen.inference.svi import SVI, OptimizerFactory
from ppgen.nn.shapes import positive_integer
from ppgen.pair import Pair

__all__ = ["History", "fit", "train"]

WORTH_COMPILING = 10_000  # steps; a rule of the clock would make one seed two runs


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
    """

    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False
    monitors: dict[str, list[float]] = field(default_factory=dict)
    compiled: bool = False


def train(
    step: Any,
    data: Any,
    *,
    epochs: int,
    batch_size: int = 100,
    validation: Any = None,
    patience: int | None = None,
    seed: int | None = None,
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
        progress: whether to show a bar with epoch, loss and time left.

    Raises:
        TypeError: data of a kind that cannot be read, or a step without ``.evaluate`` where validation needs it.
        ValueError: empty or non-finite data, a bad number, or patience without validation.
        FloatingPointError: a loss that is not finite.
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
    seed = gathered(int(torch.randint(2**62, ())) if seed is None else seed)[0]
    order = torch.Generator().manual_seed(seed)
    batches = in_batches(data, batch_size, order, "data")
    watched = None if validation is None else in_batches(validation, batch_size, None, "validation")
    _check_shared(step, batches, watched, batch_size)
    pair = getattr(step, "pair", step)
    device = device_of(pair)
    if isinstance(batches, Shuffled):
        batches.rows.keep_on(device)
    history = History()
    best, best_state, waited = math.inf, None, 0
    annealed = getattr(step, "schedules", [])
    for schedule in annealed:
        schedule.bind(len(batches))

    def validate(numbered: tuple[int, tuple[Any, ...]]) -> tuple[float, int]:
        index, batch = numbered
        return float(step.evaluate(*batch, seed=index)), num_rows(batch)

    with training(pair, True), seeded(seed, device), _bar(epochs, progress and current().leads) as report:
        if hasattr(pair, "model") and hasattr(pair, "guide"):
            _check_observations(pair, batches, watched)
        order.manual_seed(seed)
        torch.manual_seed(own_seed(seed))
        for epoch in range(epochs):
            began = time.perf_counter()
            losses = [(step.step(*batch), num_rows(batch)) for batch in batches]
            if hasattr(step, "look"):  # updates on a GPU run ahead of the host
                step.look()
            history.loss.append(mean_loss(list(chain(*gathered([(float(v), n) for v, n in losses])))))
            if watched is not None:
                history.validation.append(mean_loss(spread(validate, enumerate(watched))))
            for name, value in getattr(step, "monitors", {}).items():
                history.monitors.setdefault(name, []).append(float(value))
            history.seconds.append(time.perf_counter() - began)
            report(history)
            if patience is not None and all(s.done for s in annealed):
                if history.validation[-1] < best:
                    best, waited, history.best_epoch = history.validation[-1], 0, epoch
                    best_state = [copy.deepcopy(m.state_dict()) for m in modules_of(pair)]
                else:
                    waited += 1
            if (patience is not None and waited >= patience) or getattr(step, "converged", False):
                history.stopped_early = epoch + 1 < epochs
                break
    if best_state is not None:
        for module, state in zip(modules_of(pair), best_state, strict=True):
            module.load_state_dict(state)
    return history


def _check_observations(pair: Pair, *sources: Loaded | Shuffled | None) -> None:
    """Data in memory are checked against the model's supports at once, a loader's batches as they come."""
    for source, name in zip(sources, ("data", "validation"), strict=True):
        if source is None:
            continue
        first = next(iter(source))
        with training(pair, False):
            supports = observed_supports(pair, device_batch(pair, first))
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
            losses = f"loss {history.loss[-1]:.2f}"
            losses += f", validation {history.validation[-1]:.2f}" if history.validation else ""
            self.bar.update(task, advance=1, losses=losses)

        return report

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()


def fit(
    pair: Pair,
    data: Any,
    *,
    mask: Any = None,
    loss: Any = None,
    epochs: int,
    batch_size: int = 100,
    validation: Any = None,
    validation_mask: Any = None,
    patience: int | None = None,
    optimizer: torch.optim.Optimizer | OptimizerFactory | None = None,
    compile: bool | None = None,
    precision: str = "float32",
    seed: int | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> History:
    """Stochastic variational inference of any pair: :func:`train` on ``SVI(pair, loss, optimizer)``.

    References:
        Stochastic Variational Inference (Hoffman et al., 2013), https://arxiv.org/abs/1206.7051

    Args:
        pair: anything with ``.model`` and ``.guide``.
        data: a tensor or an array, a tuple of them (one batch member each), or a DataLoader.
        mask: True where the first member of the data was observed, of its shape: only that is trained on. What is
            missing may be NaN. For pairs that take a mask, as the library's do, and for data in memory.
        loss: ``(model, guide, *batch) -> scalar``: :func:`elbo` (the default), :func:`iwae`, a Pyro ELBO or your own.
        epochs: passes over the data.
        batch_size: rows of a batch; the last one of an epoch may be shorter.
        validation: data whose unannealed loss is watched after each epoch.
        validation_mask: of the validation data, if they are incomplete too.
        patience: epochs without a better validation loss after which training stops, the best parameters restored.
        optimizer: a torch optimiser or a function of the parameters; one fused Adam at 1e-3 by default.
        compile: whether steps run compiled code, with the numbers of eager up to rounding; by default in runs of
            10,000 steps and more, where the seconds that compiling takes are won back. A pair that cannot be compiled
            trains in eager, which is said once.
        precision: of matrix products in training, ``"float32"``, ``"tf32"`` or ``"bf16"``, as for :class:`SVI`.
        seed: of the order of the data and of the noise.
        device: where to train: ``"auto"`` takes a GPU if there is one. The pair stays there, batches follow it.
        progress: whether to show a progress bar.

    Raises:
        TypeError, ValueError: what :func:`train` and :class:`SVI` refuse, and data outside the support of the site
            that observes it.
        FloatingPointError: a loss that is not finite; the parameters are those before that step.

    Example:
        >>> from ppgen import decoders, models, nn, posteriors, priors
        >>> vae = models.VAE(
        ...     priors.StandardNormal(2),
        ...     decoders.Bernoulli(nn.MLP(2, 64)),
        ...     posteriors.DiagNormal(nn.MLP(64, 4)),
        ... )
        >>> history = fit(vae, torch.bernoulli(torch.full((200, 64), 0.5)), epochs=2, seed=0)
        >>> len(history.loss)
        2
    """
    if validation_mask is not None and validation is None:
        raise ValueError("validation_mask was given without validation data: give validation=…, too.")
    if mask is not None or validation_mask is not None:
        whole = pair
        pair, data = _incomplete(whole, data, mask)
        if validation is not None:
            _, validation = _incomplete(whole, validation, validation_mask)
    if compile is None:
        compile = epochs * _num_batches(data, batch_size) >= WORTH_COMPILING
    step = SVI(pair, elbo() if loss is None else loss, optimizer, compile=compile, precision=precision)
    target = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    for module in (*modules_of(pair), *modules_of(step)):
        module.to(target)
    history = train(
        step,
        data,
        epochs=epochs,
        batch_size=batch_size,
        validation=validation,
        patience=patience,
        seed=seed,
        progress=progress,
    )
    history.compiled = step.compiled
    return history


def _num_batches(data: Any, batch_size: int) -> int:
    """Batches of an epoch, for data that have not been checked yet."""
    if is_loader(data):
        return len(data) if hasattr(data, "__len__") else 0
    first = data[0] if isinstance(data, tuple | list) and data else data
    shape = getattr(first, "shape", ())
    return -(-shape[0] // batch_size) if shape and batch_size else 0


def _incomplete(pair: Pair, source: Any, mask: Any) -> tuple[Pair, tuple[Any, ...]]:
    """A pair of batches with masks, and the data with theirs; without a mask all of them was observed."""
    if is_loader(source):
        raise TypeError("mask= is for data in memory: a loader cannot be combined with it. Give tensors or arrays.")
    x = source[0] if isinstance(source, tuple | list) else source
    return masked(pair, source, torch.ones(tuple(x.shape), dtype=torch.bool) if mask is None else mask)
