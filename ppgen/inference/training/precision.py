"""Steps in fewer bits: what is computed in them, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppgen.inference.programs.modes import matrix_products

__all__ = ["precision", "widened"]


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Matrix products in ``"float32"``, in ``"tf32"`` or by autocast in ``"bf16"`` inside; as they were outside."""
    if name == "bf16":
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
        return
    with matrix_products("high") if name == "tf32" else nullcontext():
        yield


class _Widened(TorchFunctionMode):
    """What autocast gives in fewer bits goes on in float32.

    By itself it would leave draws, log-densities and their sums in bf16, too, whose eight bits are half a nat at 85.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _in_float32(func(*args, **(kwargs or {})))


def _in_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    return tuple(_in_float32(part) for part in value) if type(value) is tuple else value


def widened(device: torch.device) -> AbstractContextManager[Any]:
    """Under autocast: matrix products alone in fewer bits, and everything else in float32."""
    return _Widened() if torch.is_autocast_enabled(device.type) else nullcontext()
