"""Integer levels, such as the 256 of 8-bit images, as numbers on [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.numbers import several_levels


def input_levels(levels: int | None) -> int | None:
    """How many levels a network's input has; None: it holds numbers as they are.

    Raises:
        ValueError: fewer than two, or no whole number.
    """
    return None if levels is None else several_levels("levels", levels)


def rescale(x: Tensor, levels: int | None, dtype: torch.dtype) -> Tensor:
    """Levels 0, ..., levels - 1 on [-1, 1], and other data as they are, in the type of a network's weights."""
    if x.dtype != dtype:
        x = x.to(dtype)
    return x if levels is None else x * (2 / (levels - 1)) - 1
