"""Which data an estimate belongs to."""

from __future__ import annotations

import hashlib

import torch
from torch.nn.utils.rnn import PackedSequence

from ppgen.inference.execution.batches import Rows

__all__ = ["check_same_data", "fingerprint"]


def fingerprint(rows: Rows) -> tuple[str, ...]:
    """A digest of the values of every member of a batch.

    It is the same for images and for vectors of their pixels, in any precision that holds them, and another if one
    pixel was drawn again.

    Example:
        >>> x = torch.rand(5, 1, 4, 4).round()
        >>> fingerprint(Rows((x,))) == fingerprint(Rows((x.double().flatten(1),)))
        True
    """
    digests = [hashlib.blake2b(digest_size=16) for _ in rows.members]
    for _, block in rows.blocks():
        for digest, member in zip(digests, block, strict=True):
            member = member.data if isinstance(member, PackedSequence) else torch.as_tensor(member)
            values = member.detach().cpu().double() + 0.0  # so that −0 is 0
            digest.update(values.contiguous().numpy().tobytes())
    return tuple(digest.hexdigest() for digest in digests)


def check_same_data(first: tuple[str, ...], second: tuple[str, ...], names: tuple[str, str]) -> None:
    """Makes sure that two estimates are of the same data; a context that only one of them has is no difference.

    Raises:
        ValueError: a member of the batch that both have differs.
    """
    for member, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            raise ValueError(
                f"{names[0]!r} and {names[1]!r} were evaluated on different data: member {member} of the batch is not "
                "the same (binarised again, reordered or another subset?), so their difference says nothing about the "
                "models. Evaluate both on the same tensors; binarise once, with a seed, and keep the result."
            )
