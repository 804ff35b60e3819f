"""What a batch is made of: tensors, from whatever people keep their numbers in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = ["as_member", "checked_members"]

NUMBERS = "numbers (float, integer or boolean) are expected"
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def as_member(member: Any, name: str) -> Any:
    """One member of a batch with its data axis first: a tensor, or what gives tensors when it is indexed by rows.

    Raises:
        TypeError: it is none, or not of numbers.
        ValueError: it has no data axis, no values, whole numbers from 2**63 on, or a mask that would be left out.
    """
    if isinstance(member, np.ndarray):
        _check_array(member, name)
        if isinstance(member, np.memmap) and member.ndim:
            return Mapped(member)
        member = _of_array(member)
    if isinstance(member, Tensor):
        return _of_tensor(member, name)
    if not _gives_tensors(member):
        raise TypeError(
            f"{name} is {type(member).__name__}: a torch tensor or a numpy array is expected, the data axis first. "
            "Most containers have a method for it: .to_numpy() of a data frame, .toarray() of a sparse matrix, "
            "np.array(...) of lists."
        )
    return member


def checked_members(members: Sequence[Any], name: str) -> tuple[Any, ...]:
    """The members of a batch that a loader gave, as :func:`as_member` would have them.

    Raises:
        TypeError: a member is a dictionary, a text or a list, or not of numbers.
        ValueError: a member has no rows.
    """
    return tuple(_checked(member, f"{name}, member {i}") for i, member in enumerate(members))


def _checked(member: Any, name: str) -> Any:
    if member is None or (
        isinstance(member, dict | str | bytes | list | tuple | set) and not isinstance(member, PackedSequence)
    ):
        raise TypeError(
            f"{name} is {type(member).__name__}: a batch is a tensor or a tuple of tensors. Let the loader's "
            "collate_fn pick them: lambda rows: torch.stack([row['x'] for row in rows]), say."
        )
    if not isinstance(member, Tensor):
        return member
    if member.dim() and len(member) == 0:
        raise ValueError(f"{name} has no rows (shape {tuple(member.shape)}).")
    return _of_tensor(member, name)


class Mapped:
    """An array that stays on disk: rows are read when they are asked for."""

    def __init__(self, array: np.memmap) -> None:
        self.array, self.shape = array, array.shape

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Tensor:
        return _of_tensor(
            _of_array(np.array(self.array[index.numpy() if isinstance(index, Tensor) else index])), "data"
        )


def _check_array(array: np.ndarray, name: str) -> None:
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise ValueError(
            f"{name} is a masked array, and its mask would be lost: give .filled(0), and mask=~array.mask, which is "
            "True where a value was observed."
        )
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} is an array of {array.dtype}: {NUMBERS}.")


def _of_array(array: np.ndarray) -> Tensor:
    if array.dtype == np.longdouble and array.dtype.itemsize > 8:
        array = array.astype(np.float64)  # torch has nothing wider
    native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.as_tensor(np.ascontiguousarray(native))


def _of_tensor(tensor: Tensor, name: str) -> Tensor:
    if tensor.is_complex() or tensor.is_quantized:
        raise TypeError(f"{name} is a tensor of {tensor.dtype}: {NUMBERS}. Give real and imaginary parts as features.")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise TypeError(f"{name} is a sparse or nested tensor ({tensor.layout}): call .to_dense() first.")
    if tensor.is_meta:
        raise ValueError(f"{name} is on the device meta, where tensors have no values: load them on the CPU or a GPU.")
    if tensor.dim() == 0:
        raise ValueError(f"{name} is a single number: a tensor with the data axis first is expected.")
    if tensor.dtype in UNSIGNED:  # which torch can store, and can neither compare nor divide
        return _widened(tensor, name)
    if tensor.dtype == torch.int8:  # to which a bound of 255 is -1
        return tensor.short()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.detach()


def _widened(tensor: Tensor, name: str) -> Tensor:
    wide = tensor.long()
    if bool((wide < 0).any()):
        raise ValueError(
            f"{name} is of {tensor.dtype} and holds {tensor[wide < 0][0].item()}: whole numbers are read as int64, "
            "which ends at 2**63 - 1. Subtract an offset, or give floats."
        )
    return wide


def _gives_tensors(member: Any) -> bool:
    if not (hasattr(member, "__getitem__") and hasattr(member, "__len__") and hasattr(member, "shape")):
        return False
    try:
        return isinstance(member[:1], Tensor)
    except Exception:  # a data frame looks rows up by name, a sparse matrix has no length: whichever it is, it is none
        return False
