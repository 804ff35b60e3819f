"""What a pair is made of: its networks, where they are and may be put, and the precision of their parameters."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.errors import first_line

__all__ = ["device_of", "dtype_of", "first_tensor", "modules_of", "usable_device"]


def modules_of(pair: Any) -> list[nn.Module]:
    """The networks of a pair: itself, or an ordinary object's attributes that are modules."""
    if isinstance(pair, nn.Module):
        return [pair]
    return [value for value in getattr(pair, "__dict__", {}).values() if isinstance(value, nn.Module)]


def first_tensor(pair: Any) -> Tensor | None:
    """A parameter of a pair, or else a buffer, that speaks for all; None for a pair that has neither."""
    for module in modules_of(pair):
        for tensor in chain(module.parameters(), module.buffers()):
            return tensor
    return None


def device_of(pair: Any) -> torch.device:
    """Where a pair's parameters and buffers are; the CPU for a pair that has none."""
    first = first_tensor(pair)
    return torch.device("cpu") if first is None else first.device


def dtype_of(pair: Any, given: set[torch.dtype]) -> torch.dtype | None:
    """The floating type of a pair's parameters and buffers, where data of these types have to be brought into it.

    None where they are of it, and where the pair has none or several.
    """
    tensors = (t for module in modules_of(pair) for t in chain(module.parameters(), module.buffers()))
    types = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    first = next(types, None)
    if first is None or given <= {first} or set(types) - {first}:  # asked at every step: the first will do mostly
        return None
    return first


def usable_device(device: Any) -> torch.device:
    """A device by its name, once something could be put there.

    Raises:
        ValueError: there is none of this name, here or at all.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:  # each backend that is not here has its own
        raise ValueError(
            "device must be 'auto', 'cpu', 'cuda', 'cuda:1', …, and one that is here, got "
            f"{device!r} ({first_line(error)})."
        ) from error
    return target
