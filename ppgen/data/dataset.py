"""A data set: found by its name or path, split and binarised."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ppgen.data.binarize import SEED, Binarization, DynamicBinarization, draw, probabilities
from ppgen.data.fetch import PublishedFile, obtain
from ppgen.data.files import read_path
from ppgen.data.sets import KNOWN_SETS
from ppgen.data.source import Source

__all__ = ["Dataset", "describe", "load"]

log = logging.getLogger(__name__)

PATH_SUFFIXES = (".npz", ".npy", ".pt")


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training, validation and test data, with what has been done to them.

    Args:
        name: the name of the data set, or its path.
        train: the training data; under dynamic binarization every read of them, `train[index]`, is a new
            draw.
        validation: the validation data.
        test: the test data.
        binarization: `"none"`, `"fixed"` (all were drawn once), or `"dynamic"` (training data are drawn at
            each read, validation and test data were drawn once).
        num_levels: 2 for binary data, the number of levels for integer levels 0, 1, …, None for real values.
        split: in words, how the data were split.
        train_labels: the classes of the training data, if they are known.
        validation_labels: the classes of the validation data, if they are known.
        test_labels: the classes of the test data, if they are known.
        class_names: the names of the classes 0, 1, …, if they are known.

    Shape:
        - train, validation, test: (N, C, H, W) for images, (N, D) otherwise; float32 for binary and real
          data, uint8 for levels
        - labels: (N,), int64; (N, F), a column a factor, for `"shapes"`
    """

    name: str
    train: Tensor | DynamicBinarization
    validation: Tensor
    test: Tensor
    binarization: Binarization
    num_levels: int | None
    split: str
    train_labels: Tensor | None = None
    validation_labels: Tensor | None = None
    test_labels: Tensor | None = None
    class_names: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["binary", "levels", "real"]:
        """What a value is: 0 or 1, an integer level, or a real number."""
        if self.num_levels is None:
            return "real"
        return "binary" if self.num_levels == 2 else "levels"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return tuple(self.test.shape[1:])

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of one image, or None where a datum is a vector."""
        if self.test.ndim != 4:
            return None
        channels, height, width = self.test.shape[1:]
        return channels, height, width

    def __repr__(self) -> str:
        sizes = " / ".join(f"{len(part):,}" for part in (self.train, self.validation, self.test))
        values = f"{self.num_levels} levels" if self.kind == "levels" else f"{self.kind} values"
        shape = " × ".join(str(size) for size in self.event_shape)
        drawn = f"binarization {self.binarization}"
        return f"{self.name}: {sizes} data of {shape} {values}, {drawn}; split {self.split}"


def describe() -> dict[str, str]:
    """One line about every data set that `load` knows by name.

    Example:
        >>> describe()["digits"]
        'handwritten digits, 1,797 images of 8 × 8 in 17 grey levels, embedded in scikit-learn'
    """
    return {name: known.description for name, known in KNOWN_SETS.items()}


def load(
    name_or_path: str | Path,
    *,
    data_dir: str | Path | None = None,
    binarize: Binarization | None = None,
    download: bool = True,
) -> Dataset:
    r"""A real data set by its name, or data of your own by their path.

    The files of a named data set are looked for in `data_dir`, in the folder that the environment variable
    `PPGEN_DATA` names, and in a cache folder of the user's (`~/.cache/ppgen`), each time in the subfolder of
    the data set's name first. If they are in none, they are downloaded. Their checksums are verified whenever
    they are read.

    Binary data come from grey values :math:`p` as :math:`x \sim \mathrm{Bernoulli}(p)`. Validation and then
    test data are drawn once, from one stream of `numpy.random.RandomState(777)`; with `binarize="fixed"` the
    training data come next in the stream. On MNIST, `"dynamic"` is the protocol under which most
    log-likelihoods are published; `"fixed"` is *not* the static MNIST of the deep-belief-network literature,
    which is a draw of its own.

    A path leads to a folder of images (labels are the names of its subfolders; subfolders `train`,
    `validation` and `test` are splits), or to an `.npz`, `.npy` or `.pt` file: one array, or arrays `data`
    and `labels`, or `train`, `validation` and `test`, with `train_labels` and so on. Where a split is
    missing, a seeded shuffle makes it. Arrays have the shape (N, D), (N, H, W), (N, C, H, W) or (N, H, W, C).
    Values that are all 0 or 1 are binary, other integers from 0 to 255 are levels, of which there are 256
    whatever the largest is, all else is real. Grey values of fewer levels are binarized right as real ones,
    divided by the largest. Nothing is unpickled.

    References:
        VAE with a VampPrior (Tomczak and Welling, 2018), https://arxiv.org/abs/1705.07120
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016),
        https://arxiv.org/abs/1509.00519

    Args:
        name_or_path: a name that `describe()` lists, or a path; write `./mnist` for a folder that is called
            like a data set.
        data_dir: the folder in which the files of named data sets are looked for first, and into which they
            are downloaded.
        binarize: `"none"` for data as they are published, `"fixed"` or `"dynamic"`; left out, what is usual
            for a named data set, and `"none"` for a path.
        download: whether files that are absent are downloaded.

    Shape:
        - train, validation, test of the result: (N, C, H, W) for images, (N, D) otherwise

    Raises:
        ValueError: the name is unknown, a file is not the published one, or the data are empty, not finite,
            of the wrong rank, or not grey values where they are to be binarized.
        FileNotFoundError: the path does not exist, or files are absent and cannot be downloaded.

    Example:
        >>> digits = load("digits")
        >>> digits
        digits: 1,297 / 200 / 300 data of 1 × 8 × 8 binary values, binarization dynamic; split ...
        >>> digits.train[:100].shape
        torch.Size([100, 1, 8, 8])
        >>> load("digits", binarize="none").test.max()
        tensor(16, dtype=torch.uint8)
    """
    if binarize is not None and binarize not in get_args(Binarization):
        raise ValueError(f"binarize is one of {', '.join(get_args(Binarization))}, or left out; got {binarize!r}.")
    if not isinstance(name_or_path, str | Path):
        raise TypeError(
            f"name_or_path is the name of a data set or a path, got a {type(name_or_path).__name__}: "
            "tensors are used as they are, without loading."
        )
    if isinstance(name_or_path, Path) or name_or_path not in KNOWN_SETS:
        path = _existing(name_or_path)
        return _dataset(str(path), read_path(path), binarize or "none")

    name, known = name_or_path, KNOWN_SETS[name_or_path]

    def files(wanted: Sequence[PublishedFile]) -> list[bytes]:
        return obtain(known.files_of or name, wanted, data_dir, download)

    return _dataset(name, known.read(files), binarize or known.binarization, known.draws)


def _existing(name_or_path: str | Path) -> Path:
    """The path, or an error that says whether it is a path or a name that is wrong."""
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    if isinstance(name_or_path, Path) or path.suffix in PATH_SUFFIXES or len(path.parts) > 1:
        raise FileNotFoundError(f"There is no file or folder {path}, seen from {Path.cwd()}.")
    nearest = difflib.get_close_matches(name_or_path.lower(), KNOWN_SETS, n=1)
    guess = f"did you mean {nearest[0]!r}? Known" if nearest else "known"
    raise ValueError(
        f"There is no data set {name_or_path!r}, nor a file or folder of this name: {guess} are "
        f"{', '.join(KNOWN_SETS)}; a path to an .npz, .npy or .pt file or to a folder of images works, too."
    )


def _dataset(name: str, source: Source, binarization: Binarization, draws: tuple[str, str] | None = None) -> Dataset:
    """The data set that a source becomes under a binarization."""
    train, validation, test = source.parts(source.data)
    num_levels = source.num_levels
    dynamic: DynamicBinarization | None = None
    if binarization != "none":
        if num_levels == 2:
            raise ValueError(
                f"The data of {name} are binary already, so that binarize={binarization!r} has nothing to "
                "draw: leave binarize out."
            )
        if num_levels == 256 and (largest := source.data.max()) < 128:
            log.warning(
                "The largest level of %s is %d, and levels are taken as those of 0 to 255, so no pixel is drawn as "
                "1 with a probability above %.2f: if %d is white, save them divided by it, as floats.",
                *(name, largest, largest / 255, largest),
            )
        probs = source.parts(probabilities(source.data, num_levels))
        random = np.random.RandomState(SEED)
        validation, test = draw(probs[1], random), draw(probs[2], random)
        if draws is not None and draws != tuple(
            hashlib.sha256(part.tobytes()).hexdigest() for part in (validation, test)
        ):
            raise RuntimeError(
                f"The binarized validation and test data of {name} are not those of the published protocol, "
                "so that log-likelihoods would not be comparable: this version of NumPy draws other numbers."
            )
        num_levels = 2
        if binarization == "dynamic":
            dynamic = DynamicBinarization(torch.tensor(probs[0]))
        else:
            train = draw(probs[0], random)
    values = torch.uint8 if num_levels not in (None, 2) else torch.float32
    labels = [None] * 3 if source.labels is None else [torch.tensor(part) for part in source.parts(source.labels)]
    return Dataset(
        name=name,
        train=torch.tensor(train, dtype=values) if dynamic is None else dynamic,
        validation=torch.tensor(validation, dtype=values),
        test=torch.tensor(test, dtype=values),
        binarization=binarization,
        num_levels=num_levels,
        split=source.split,
        train_labels=labels[0],
        validation_labels=labels[1],
        test_labels=labels[2],
        class_names=source.class_names,
    )
