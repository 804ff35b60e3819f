"""Stochastic variational inference of any pair, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ppgen.inference.execution.batches import is_loader
from ppgen.inference.losses.elbo import elbo
from ppgen.inference.programs.masks import masked
from ppgen.inference.programs.networks import modules_of, usable_device
from ppgen.inference.training.optimizers import OptimizerFactory
from ppgen.inference.training.progress import History
from ppgen.inference.training.svi import SVI
from ppgen.inference.training.train import train
from ppgen.numbers import positive_integer
from ppgen.pair import Pair

__all__ = ["fit"]

STEPS_WORTH_COMPILING = 10_000  # a rule of the clock would make one seed two runs


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
    skip_nonfinite: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
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
        batch_size: rows of a batch; the last one of an epoch may be shorter. With ``len(data)`` the rows stay in their
            order, so that a pair may have parameters for each of them (Pyro's ``AutoNormal`` for a latent of each
            datum); in smaller batches, of other rows at each step, such a pair is refused.
        validation: data whose unannealed loss is watched after each epoch.
        validation_mask: of the validation data, if they are incomplete too.
        patience: epochs without a better validation loss after which training stops, the best parameters restored.
        optimizer: a torch optimiser or a function of the parameters; one fused Adam at 1e-3 by default.
        compile: whether steps run compiled code, with the numbers of eager up to rounding; by default in runs of
            10,000 steps and more, where the seconds that compiling takes are won back. A pair that cannot be compiled
            trains in eager, which is said once. A run that is continued keeps the choice that it began with.
        precision: of matrix products in training, ``"float32"``, ``"tf32"`` or ``"bf16"``, as for :class:`SVI`.
        seed: of the order of the data and of the noise.
        device: where to train: ``"auto"`` takes a GPU if there is one. The pair stays there, batches follow it.
        skip_nonfinite: whether batches whose loss or gradient is not finite are skipped and counted, as for
            :func:`train`; otherwise the first of them ends the run.
        checkpoint: a folder in which the run is saved, and from which the same call continues it bit for bit, as for
            :func:`train`.
        checkpoint_every: seconds between two saves.
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
    epochs, batch_size = positive_integer("epochs", epochs), positive_integer("batch_size", batch_size)
    target = usable_device(device)
    if compile is None:
        compile = epochs * _num_batches(data, batch_size) >= STEPS_WORTH_COMPILING
    step = SVI(pair, elbo() if loss is None else loss, optimizer, compile=compile, precision=precision)
    for module in (*modules_of(pair), *modules_of(step)):
        module.to(target)
    return train(
        step,
        data,
        epochs=epochs,
        batch_size=batch_size,
        validation=validation,
        patience=patience,
        seed=seed,
        skip_nonfinite=skip_nonfinite,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )


def _num_batches(data: Any, batch_size: int) -> int:
    """Batches of an epoch, for data that have not been checked yet."""
    if is_loader(data):
        try:
            return len(data)
        except TypeError:  # which is said where the loader is looked at
            return 0
    first = data[0] if isinstance(data, tuple | list) and data else data
    shape = getattr(first, "shape", ())
    return -(-shape[0] // batch_size) if shape and batch_size else 0


def _incomplete(pair: Pair, source: Any, mask: Any) -> tuple[Pair, tuple[Any, ...]]:
    """A pair of batches with masks, and the data with theirs; without a mask all of them was observed."""
    if is_loader(source):
        raise TypeError("mask= is for data in memory: a loader cannot be combined with it. Give tensors or arrays.")
    x = source[0] if isinstance(source, tuple | list) else source
    return masked(pair, source, torch.ones(tuple(getattr(x, "shape", ())), dtype=torch.bool) if mask is None else mask)
