"""Pairs of incomplete data as pairs like any other: the mask is one more member of the batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppgen.inference.programs.networks import modules_of
from ppgen.inference.programs.refusals import check_pair
from ppgen.pair import Pair

__all__ = ["Masked", "masked"]


class Masked:
    """A pair of batches ``(x, *y)`` with a mask as a pair of batches ``(x, mask, *y)``.

    So everything that takes a pair takes one with a mask. Made by :func:`masked`.
    """

    def __init__(self, pair: Pair) -> None:
        self._model, self._guide = pair.model, pair.guide
        self.modules = nn.ModuleList(modules_of(pair))

    def model(self, x: Any, mask: Any, *y: Any) -> Any:
        """The model of the observed elements."""
        return self._model(x, *y, mask=mask)

    def guide(self, x: Any, mask: Any, *y: Any) -> Any:
        """The guide given the observed elements."""
        return self._guide(x, *y, mask=mask)


def _takes_mask(program: Callable[..., Any]) -> bool:
    owner = getattr(program, "__self__", None)
    functions = getattr(owner, "_functions", None) or (program,)  # a Custom pair hands on what it is given
    return all("mask" in inspect.signature(function).parameters for function in functions)


def masked(pair: Pair, batch: Any, mask: Any) -> tuple[Pair, tuple[Any, ...]]:
    """A pair and a batch with the mask as the batch's second member; both as they are if there is no mask.

    What is missing may be NaN: it becomes zero.

    Raises:
        TypeError: a mask that is not a boolean tensor or array, or a pair that takes none.
        ValueError: a mask of another shape than x.
    """
    check_pair(pair)
    batch = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if mask is None:
        return pair, batch
    if not batch:
        raise ValueError("A mask was given without data: the first member of the batch is what it is of.")
    for name in ("model", "guide"):
        if not _takes_mask(getattr(pair, name)):
            raise TypeError(
                f"mask was given, and the {name} of this {type(pair).__name__} takes none, so nothing says how its "
                "missing elements are to be integrated out: give model and guide a keyword mask=None and score x under "
                "ppgen.distributions.marginal(distribution, mask), or use a pair of ppgen.models."
            )
    x = batch[0]
    if not hasattr(x, "shape"):
        raise TypeError(f"x is {type(x).__name__}: beside a mask a torch tensor or a numpy array is expected.")
    x = torch.as_tensor(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) else x
    mask = torch.as_tensor(mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, True where x was observed, got {mask.dtype}: use x.isfinite(), say.")
    if tuple(mask.shape) != tuple(x.shape):
        raise ValueError(f"mask has shape {tuple(mask.shape)} and x {tuple(x.shape)}: they must be the same.")
    if isinstance(x, Tensor):
        x = torch.where(mask.to(x.device), x, torch.zeros_like(x))
    return Masked(pair), (x, mask, *batch[1:])
