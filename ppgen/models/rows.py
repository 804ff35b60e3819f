"""What a model of vectors is given: rows, and a mask of what was observed."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_rows"]


def check_rows(owner: str, dim: int, x: Tensor, mask: Tensor | None = None) -> None:
    """Makes sure that x is rows of this many coordinates, and the mask one of theirs.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: x or the mask is of another shape.
    """
    if x.dim() != 2 or x.shape[-1] != dim or not len(x):
        raise ValueError(
            f"{owner}(dim={dim}) takes x of shape (N, {dim}), N at least 1, got {tuple(x.shape)}: a row a datum, "
            "images flattened by x.flatten(1)."
        )
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask must be a boolean tensor, True where x was observed, got {mask.dtype}.")
    if mask is not None and mask.shape != x.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)} and x {tuple(x.shape)}: they must be the same.")
