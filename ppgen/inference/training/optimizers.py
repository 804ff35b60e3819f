"""The optimiser by default, and what is asked of any: a step on one gradient, a state that fits."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["OptimizerFactory", "adam", "check_holds", "check_step", "laid_out", "load_optimizer"]

log = logging.getLogger(__name__)

HOW = ("foreach", "fused", "capturable", "differentiable")  # which code makes the same step: of this call, not the file
OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def adam(parameters: Iterable[nn.Parameter], lr: float = 1e-3) -> torch.optim.Optimizer:
    """One fused Adam over everything: Pyro's optimisers keep one per tensor, which costs more than it gives."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def check_step(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Makes sure that an optimiser takes a step on the gradient of one batch.

    Raises:
        TypeError: it asks for the loss, again and again (LBFGS).
    """
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"{name} is {type(optimizer).__name__}, whose step evaluates the loss several times by a closure, where a "
            "batch gives it one gradient: take torch.optim.Adam or another whose step() needs no closure."
        )


def check_holds(optimizer: torch.optim.Optimizer, name: str, parameters: Iterable[Tensor], owner: str) -> None:
    """Makes sure that an optimiser trains something of what it is for.

    Raises:
        ValueError: it holds none of the owner's parameters.
    """
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in trained for parameter in parameters):
        raise ValueError(
            f"{name} holds none of the {owner}'s parameters, so nothing would be trained: make it of this {owner}'s "
            "parameters, or give a function that makes one of the parameters that it is given."
        )


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
            found = optimizer.state.get(parameter, {})
            wanted = _after_a_step(optimizer, group, parameter) if found else None
            if wanted is not None and _forms(found) != _forms(wanted):  # a fused step would read beyond the end
                raise ValueError(f"the state of its optimiser is {_forms(found)} where it should be {_forms(wanted)}")
            for name, value in found.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:  # a fused step reads both in one order
                    found[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                elif _number(value) and not 0 <= value < math.inf:
                    raise ValueError(f"its optimiser has made {name}={value} steps")


def _after_a_step(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor) -> dict[str, Any] | None:
    """What one step of such an optimiser leaves for such a parameter; None if it cannot be tried."""
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim"):
        return None
    settings = {name: group[name] for name in inspect.signature(kind).parameters if name in group and name != "params"}
    other = torch.zeros_like(parameter, requires_grad=True)
    other.grad = torch.zeros_like(parameter)
    try:
        trial = kind([other], **settings)
        trial.step()
    except (TypeError, ValueError, RuntimeError):
        return None
    return trial.state[other]


def _forms(state: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for name, v in sorted(state.items())}


def _alike(own: Any, theirs: Any) -> bool:
    """Whether a setting is the same, or another number."""
    if isinstance(own, tuple | list):
        kinds = isinstance(theirs, tuple | list) and len(own) == len(theirs)
        return kinds and all(_alike(a, b) for a, b in zip(own, theirs, strict=True))
    if _number(own):
        return _number(theirs) and math.isfinite(theirs)
    return type(own) is type(theirs) and own == theirs


def _number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or (
        isinstance(value, Tensor) and value.numel() == 1
    )


def laid_out(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """A gradient in its parameter's order in memory, without which a fused optimiser would read it in the wrong one.

    A convolution of channels-last images gives such.
    """
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
