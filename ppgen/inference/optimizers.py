"""An optimiser that goes on: its state as a file gives it, once it is known to fit."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["load_optimizer"]

log = logging.getLogger(__name__)

HOW = ("foreach", "fused", "capturable", "differentiable")  # which code makes the same step: of this call, not the file


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Takes up what another one's ``state_dict`` gave; a learning rate that this call gave otherwise is said.

    Raises:
        ValueError: it is the state of an optimiser of another kind, or of other parameters.
    """
    groups = []
    for own, theirs in zip(optimizer.state_dict()["param_groups"], state["param_groups"], strict=True):
        for name, value in own.items():
            if name not in HOW and not (name in theirs and _alike(value, theirs[name])):
                raise ValueError(
                    f"its optimiser has {name}={theirs.get(name)!r}, and this {type(optimizer).__name__} "
                    f"{name}={value!r}, so it is another one"
                )
            if _number(value) and float(value) != float(theirs[name]):
                log.warning("Goes on with %s=%g as the run had it; %g was given.", name, theirs[name], value)
        groups.append({**theirs, **{name: own[name] for name in HOW if name in own}})
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            own = optimizer.state.get(parameter, {})
            for name, value in own.items():
                if not isinstance(value, Tensor):
                    continue
                if value.shape == parameter.shape:  # a fused step reads both in one order
                    own[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                elif group.get("fused") and value.numel() != 1:  # and would read beyond the end of this
                    raise ValueError(
                        f"{name} of its optimiser has shape {tuple(value.shape)}, not {tuple(parameter.shape)}"
                    )


def _alike(own: Any, theirs: Any) -> bool:
    """Whether a setting is of the same kind, and finite if it is a number."""
    if isinstance(own, tuple | list):
        kinds = isinstance(theirs, tuple | list) and len(own) == len(theirs)
        return kinds and all(_alike(a, b) for a, b in zip(own, theirs, strict=True))
    if _number(own):
        return _number(theirs) and math.isfinite(theirs)
    return own is None or theirs is None or type(own) is type(theirs)


def _number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or (
        isinstance(value, Tensor) and value.numel() == 1
    )
