"""Sequences of several lengths as members of a batch: packed ones, as recurrent networks take them, read by rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

__all__ = ["Packed", "by_rows"]


class Packed:
    """A packed sequence that is indexed by rows, which gives a packed sequence of them.

    Rows need not be in the order of their lengths: networks give their results in the order of the rows.
    """

    def __init__(self, packed: PackedSequence) -> None:
        self.padded, self.lengths = pad_packed_sequence(packed, batch_first=True)
        self.shape = self.padded.shape

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> PackedSequence:
        lengths = self.lengths[index.cpu() if isinstance(index, Tensor) else index]
        in_order = bool((lengths[:-1] >= lengths[1:]).all())
        return pack_padded_sequence(self.padded[index], lengths, batch_first=True, enforce_sorted=in_order)


class Padded:
    """A tensor of sequences with zeros behind their ends, which is indexed by rows: as long as the longest of them."""

    def __init__(self, tensor: Tensor, lengths: Tensor) -> None:
        self.tensor, self.lengths = tensor, lengths
        self.shape = tensor.shape

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: Any) -> Tensor:
        lengths = self.lengths[index.cpu() if isinstance(index, Tensor) else index]
        rows = self.tensor[index]
        return rows[:, : int(lengths.max())] if len(lengths) else rows


def by_rows(members: Sequence[Any]) -> list[Any]:
    """The members of a batch, packed sequences among them such that they can be read by rows.

    Unpacked rows are as long as the longest of them, so the members that were padded to the same length (the sequences
    themselves, a mask) are cut to that length too, of every batch, as the one who packed them would.
    """
    found = [Packed(member) if isinstance(member, PackedSequence) else member for member in members]
    lengths = next((member.lengths for member in found if isinstance(member, Packed)), None)
    if lengths is None:
        return found
    return [Padded(m, lengths) if isinstance(m, Tensor) and _padded(m, lengths) else m for m in found]


def _padded(tensor: Tensor, lengths: Tensor) -> bool:
    """Whether rows are sequences of these lengths, and zero behind their ends."""
    if tensor.dim() < 2 or tensor.shape[:2] != (len(lengths), int(lengths.max())):
        return False
    behind = torch.arange(tensor.shape[1]) >= lengths[:, None]
    return bool(behind.any()) and not tensor[behind.to(tensor.device)].any()
