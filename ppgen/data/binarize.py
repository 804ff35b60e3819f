"""Binarization: grey values in [0, 1] as probabilities, drawn once or anew at every read."""

import copy
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Binarization = Literal["none", "fixed", "dynamic"]

SEED = 777  # of the draws that are made once: the published protocol of dynamically binarized MNIST


class DynamicBinarization:
    r"""Binary data, drawn anew from their grey values whenever they are read.

    .. math:: x_{nd} \sim \mathrm{Bernoulli}(p_{nd})

    Indexing works as on a tensor and returns a fresh draw. The draw comes from torch's global generator (the
    CPU's, or that of the device which the object was moved to), so that `torch.manual_seed` makes it
    reproducible.

    References:
        On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov and Murray, 2008),
        https://doi.org/10.1145/1390156.1390266

    Args:
        probs: the grey values, in [0, 1].

    Shape:
        - probs, and the object itself: (N, C, H, W) or (N, D).

    Raises:
        TypeError: the values are no floats.
        ValueError: a value is outside [0, 1] or is not a number.

    Example:
        >>> grey = torch.tensor([[0.0, 0.5, 1.0]]).expand(1000, 3)
        >>> data = DynamicBinarization(grey)
        >>> data.shape
        torch.Size([1000, 3])
        >>> bool((data[:] == data[:]).all())
        False
        >>> data[0][[0, 2]]
        tensor([0., 1.])
    """

    def __init__(self, probs: Tensor) -> None:
        if not probs.is_floating_point():
            raise TypeError(f"probs are floats in [0, 1], got {probs.dtype}: divide levels by the largest one.")
        if not bool(((probs >= 0) & (probs <= 1)).all()):
            raise ValueError(
                f"probs are probabilities and lie in [0, 1], got values from {probs.min():g} to "
                f"{probs.max():g}: divide levels by the largest one."
            )
        self.probs = probs

    def __getitem__(self, index: Any) -> Tensor:
        return torch.bernoulli(self.probs[index])

    def __len__(self) -> int:
        return len(self.probs)

    @property
    def shape(self) -> torch.Size:
        """The shape of the data, their number first."""
        return self.probs.shape

    @property
    def ndim(self) -> int:
        """The number of axes, that of the data included."""
        return self.probs.ndim

    @property
    def dtype(self) -> torch.dtype:
        """The type of a draw."""
        return self.probs.dtype

    @property
    def device(self) -> torch.device:
        """Where the grey values are and draws are made."""
        return self.probs.device

    def to(self, device: torch.device | str) -> "DynamicBinarization":
        """The same data on another device, whose generator draws from then on."""
        moved = copy.copy(self)
        moved.probs = self.probs.to(device)
        return moved

    def __repr__(self) -> str:
        return f"DynamicBinarization(shape={tuple(self.shape)}, device={str(self.device)!r})"


def probabilities(grey: np.ndarray, num_levels: int | None) -> np.ndarray:
    """Grey values as probabilities: levels divided by the largest one, real values as they are."""
    if num_levels is not None:
        # In single precision, as the published protocol has it.
        return grey.astype(np.float32) / np.float32(num_levels - 1)
    if not ((grey >= 0) & (grey <= 1)).all():
        raise ValueError(
            f"binarize needs grey values in [0, 1], got values from {grey.min():g} to {grey.max():g}: "
            "divide them by the largest possible one, or give 8-bit levels as uint8."
        )
    return grey.astype(np.float32, copy=False)


def draw(probs: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """One draw of every pixel, as bytes; `random` goes on, so that the order of calls matters."""
    return random.binomial(1, probs).astype(np.uint8)
