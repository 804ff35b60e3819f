"""How each kind of model is trained by name: functions of the pair and its data, whose keywords are the settings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppgen.inference import EM, Adversarial, History, elbo, encode, fit, iwae, train, warmup
from ppgen.inference import normalize_gradients as normalized
from ppgen.inference import semi_supervised as with_labels
from ppgen.inference.losses.adversarial import AdversarialLoss, nonsaturating
from ppgen.inference.programs.networks import usable_device
from ppgen.inference.programs.seeds import seeded
from ppgen.models import ExplicitDensity
from ppgen.numbers import finite_number, natural_number, positive_integer, positive_number
from ppgen.priors import CategoricalGrid

Batch = tuple[Any, ...]


def check_schedule(lr: float, warm: float, patience: int, epochs: int) -> None:
    """Refuses settings that could not train.

    Raises:
        ValueError: epochs, a learning rate, a warm-up or a patience out of range, or a warm-up that outlasts training.
    """
    positive_integer("epochs", epochs)
    if positive_number("lr", lr) >= 10:
        raise ValueError(f"lr must be a learning rate below 10, got {lr}.")
    finite_number("warmup", warm, least=0)
    if natural_number("patience", patience) and warm >= epochs:
        raise ValueError(
            f"warmup={warm:g} is not over before epochs={epochs}: early stopping could never keep anything. Give a "
            "shorter warmup (0 for none), more epochs, or patience=0."
        )


def variational(
    pair: Any,
    data: Batch,
    validation: Batch,
    *,
    epochs: int = 100,
    batch_size: int = 100,
    lr: float = 1e-3,
    normalize_gradients: bool = False,
    warmup: float = 0.0,
    particles: int = 1,
    patience: int = 0,
    seed: int = 0,
    device: str = "auto",
    compile: bool = True,
    precision: str = "float32",
    loss: Any = None,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> History:
    """Stochastic variational inference on the ELBO, or with several particles on the importance-weighted bound."""
    check_schedule(lr, warmup, patience, epochs)
    if particles != 1 and warmup:
        raise ValueError(
            "--warmup belongs to the ELBO's KL term: the importance-weighted bound (--particles) has none."
        )
    objective = iwae(particles) if particles != 1 else elbo(beta=_beta(warmup))
    return fit(
        pair,
        data,
        loss=objective if loss is None else loss(objective),
        epochs=epochs,
        batch_size=batch_size,
        validation=validation,
        patience=patience or None,
        optimizer=partial(_normalized_adam if normalize_gradients else torch.optim.Adam, lr=lr, fused=True),
        seed=seed,
        device=device,
        compile=None if compile else False,
        precision=precision,
        checkpoint=checkpoint,
        progress=progress,
    )


def _normalized_adam(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return normalized(torch.optim.Adam(parameters, **options))


def _beta(epochs: float) -> Any:
    return warmup(epochs) if epochs else 1.0


def semi_supervised(
    pair: Any,
    data: Batch,
    validation: Batch,
    *,
    labels: int = 0,
    alpha: float = 0.1,
    epochs: int = 100,
    batch_size: int = 100,
    lr: float = 1e-3,
    warmup: float = 0.0,
    patience: int = 0,
    seed: int = 0,
    device: str = "auto",
    compile: bool = True,
    checkpoint: Path | None = None,
) -> History:
    """The ELBO of all rows, and the classification of those whose label is kept."""
    x, y = data
    kept = keep_labels(y, labels, seed) if labels else y
    share = (kept >= 0).float().mean().item()
    return variational(
        pair, (x, kept), validation, epochs=epochs, batch_size=batch_size, lr=lr, warmup=warmup, patience=patience,
        seed=seed, device=device, compile=compile, loss=partial(with_labels, alpha / share), checkpoint=checkpoint,
    )  # fmt: skip


def keep_labels(y: Tensor, num_labels: int, seed: int) -> Tensor:
    """Labels with all but some withheld (−1): the same number of each class.

    Args:
        y: the classes, (N,).
        num_labels: how many to keep, a multiple of the number of classes.
        seed: of the choice.

    Raises:
        ValueError: another number of labels, or more than there are.
    """
    classes = y.unique()
    each = num_labels // len(classes)
    fewest = int(y.unique(return_counts=True)[1].min())
    if num_labels < 1 or num_labels % len(classes) or each > fewest:
        raise ValueError(
            f"labels must be a multiple of the {len(classes)} classes, as many of each, at most "
            f"{fewest * len(classes)}, got {num_labels}."
        )
    generator = torch.Generator().manual_seed(seed)
    kept = torch.full_like(y, -1)
    for c in classes:
        rows = (y == c).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)[:each]]
        kept[rows] = c
    return kept


def expectation_maximization(
    pair: Any,
    data: Batch,
    validation: Batch,
    *,
    epochs: int = 100,
    batch_size: int = 0,
    tolerance: float = 1e-4,
    seed: int = 0,
    checkpoint: Path | None = None,
) -> History:
    """EM on all data at once, or stepwise on batches, from a start that the data give."""
    return restarted_em(
        pair, data, validation, epochs=epochs, batch_size=batch_size, restarts=1, tolerance=tolerance, seed=seed,
        checkpoint=checkpoint,
    )  # fmt: skip


def restarted_em(
    pair: Any,
    data: Batch,
    validation: Batch,
    *,
    epochs: int = 100,
    batch_size: int = 0,
    restarts: int = 1,
    tolerance: float = 1e-4,
    seed: int = 0,
    checkpoint: Path | None = None,
) -> History:
    """EM from several random starts, of which the best goes on."""
    return train(
        EM(pair, num_restarts=restarts, tolerance=tolerance, seed=seed),
        data,
        epochs=epochs,
        batch_size=batch_size or len(data[0]),
        validation=validation,
        seed=seed,
        checkpoint=checkpoint,
    )


def vector_quantized(
    pair: Any,
    data: Batch,
    validation: Batch,
    *,
    epochs: int = 100,
    prior_epochs: int = 50,
    prior_patience: int = 10,  # a strong prior of few codes learns them by heart
    batch_size: int = 100,
    lr: float = 1e-3,
    patience: int = 0,
    seed: int = 0,
    device: str = "auto",
    compile: bool = True,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> History:
    """The codes under a uniform prior, then the prior of the codes that they have become.

    The history is that of the codes; the prior's losses are monitors, and the seconds are those of both.
    """
    positive_integer("prior_epochs", prior_epochs)  # said now, not when the codes are trained
    natural_number("prior_patience", prior_patience)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "device": device,
        "compile": compile,
        "progress": progress,
    }
    prior, folder = pair.prior, None if checkpoint is None else checkpoint / "codes"
    pair.prior = CategoricalGrid(pair.quantizer.codebook_size, prior.event_shape)
    try:
        history = variational(pair, data, validation, epochs=epochs, patience=patience, checkpoint=folder, **settings)
    finally:
        pair.prior = prior
    if checkpoint is not None:  # codes that were trained on are other data
        folder = checkpoint / f"prior-{len(history.loss)}"
    with seeded(seed):  # data may be drawn anew when they are read
        codes, watched = _codes(pair, data[0]), _codes(pair, validation[0])
    density = ExplicitDensity(prior)
    of_codes = variational(
        density, (codes,), (watched,), epochs=prior_epochs, patience=prior_patience, checkpoint=folder, **settings
    )
    history.seconds += of_codes.seconds
    history.monitors["prior loss"] = of_codes.loss
    history.monitors["prior validation"] = of_codes.validation
    return history


def _codes(pair: Any, x: Any, rows: int = 1000) -> Tensor:
    return torch.cat([encode(pair, x[i : i + rows]) for i in range(0, len(x), rows)])


def adversarial(
    pair: Any,
    data: Batch,
    validation: Batch,
    *,
    epochs: int = 100,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
    loss: AdversarialLoss | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> History:
    """Two networks in turns, with the learning rates that belong to their loss."""
    pair.to(usable_device(device))
    step = Adversarial(pair, loss or nonsaturating())
    return train(step, data, epochs=epochs, batch_size=batch_size, seed=seed, checkpoint=checkpoint, progress=progress)
