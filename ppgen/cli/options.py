"""What several commands ask for, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ppgen.catalogue import DECODERS, POSTERIORS, PRIORS

DataName = Annotated[
    str, typer.Option("--data", help="A data set (see `ppgen list`), a .npz, .npy or .pt file, a folder.")
]
DataDir = Annotated[
    Path | None, typer.Option(help="Where data files are; otherwise $PPGEN_DATA, then the user's cache.")
]
Binarize = Annotated[str | None, typer.Option(help="none, fixed or dynamic; the data set's own habit if not given.")]
RunFolder = Annotated[Path, typer.Argument(help="A folder that `ppgen train` wrote.")]
MovedData = Annotated[
    str | None, typer.Option("--data", help="Where the run's data file or folder is now, if it has moved.")
]


def _allowed(given: list[str] | None) -> list[str]:
    """The names that were given, several by one option, too; a path may have commas of its own."""
    return [name for text in given or () for name in dict.fromkeys((text, *text.split(",")))]


Allow = Annotated[
    list[str] | None,
    typer.Option(
        help="An import path (module:Class) or data outside its folder that the run may name; more than once for more.",
        callback=_allowed,
    ),
]
NoiseSeed = Annotated[int, typer.Option("--seed", help="Of the noise.")]

# The settings of models and of their training, wherever they occur.
HELP: dict[str, str] = {
    "prior": f"{', '.join(PRIORS)}, or your own: module:Class.",
    "posterior": f"{', '.join(POSTERIORS)}, or your own: module:Class.",
    "decoder": f"{', '.join(DECODERS)}.",
    "latent_dim": "Coordinates of the latent (of each layer).",
    "num_components": "Mixture components or pseudo-inputs.",
    "hidden": "Sizes of the hidden gated layers.",
    "channels": "Channels after each halving of the image.",
    "covariance": "full, tied, diag or spherical.",
    "epochs": "Passes over the training data, at most.",
    "batch_size": "Data in a batch.",
    "lr": "Adam's learning rate.",
    "normalize_gradients": "Divide each parameter's gradient by its norm, as the VampPrior paper does.",
    "warmup": "Epochs of KL warm-up; 0 for none.",
    "particles": "k of the importance-weighted bound; 1 trains on the ELBO.",
    "patience": "Epochs without a better validation loss before stopping; 0 for none.",
    "seed": "Of parameters, order of the data, and noise.",
    "device": "auto, cpu, cuda, …",
    "precision": "Of matrix products in training: float32, tf32 (on GPUs), bf16.",
    "compile": "Compile the step in long runs; off: never.",
    "labels": "How many labels are kept, as many of each class; 0 for all.",
    "alpha": "Weight of the classification loss, divided by the share of labelled data.",
    "restarts": "Starts of which the best goes on.",
    "layer": "row or diagonal.",
    "filters": "Channels of the hidden layers.",
    "num_layers": "Layers of the masked network.",
    "codebook_size": "Codes.",
    "code_dim": "Numbers in the vector of a code.",
    "prior_epochs": "Passes over the codes that the prior is fitted with, at most.",
    "prior_patience": "Epochs without a better validation loss before the prior's training stops; 0 for none.",
    "tolerance": "EM stops when an epoch gains less, in nats per datum.",
}
# digits are small: their networks are, too.
SMALL: dict[str, Any] = {"latent_dim": 8, "num_components": 50, "hidden": (64,), "channels": (16, 32), "filters": 24}


def small(name: str, default: Any) -> Any:
    """The default of a setting for small images."""
    return SMALL[name] if isinstance(default, tuple) else min(default, SMALL[name]) if name in SMALL else default


def shown(value: Any) -> str:
    """A default as it is typed."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def option(name: str, default: Any) -> Any:
    """The annotation of a setting's option; sizes that depend on the data are not given unless they are typed."""
    text = HELP[name]
    if name in SMALL:
        text = f"{text[:-1]} (default {shown(default)}; digits {shown(small(name, default))})."
        return Annotated[str | None if isinstance(default, tuple) else int | None, typer.Option(help=text)]
    if name == "batch_size" and not default:
        text = "Data in a batch; 0 for all of them."
    return Annotated[type(default), typer.Option(help=text)]


def sizes(name: str, text: Any) -> Any:
    """Sizes as they are typed: ``300,300``; anything else as it is.

    Raises:
        ValueError: they are not whole numbers.
    """
    if not isinstance(text, str):
        return text
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise ValueError(
            f"--{name} must be whole numbers separated by commas, for example 300,300; got {text!r}."
        ) from None


def chosen(defaults: dict[str, Any], given: dict[str, Any], data: str) -> dict[str, Any]:
    """The settings that were given, and for those that depend on the data, what goes with them."""
    values = {}
    for name, default in defaults.items():
        value = given.get(name)
        if value is None:
            value = small(name, default) if data == "digits" else default
        values[name] = sizes(name, value) if isinstance(default, tuple) else value
    return values
