"""Data as training and evaluation read it: checked first, then in batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from ppgen.inference.execution.distributed import own_part
from ppgen.inference.execution.members import as_member, checked_members
from ppgen.inference.programs.seeds import seeded
from ppgen.inference.programs.sequences import Packed, by_rows
from ppgen.inference.programs.supports import Support, check_support

__all__ = ["Rows", "check_rows", "checked_rows", "read_once"]

BLOCK = 4096


class Rows:
    """Members of equal length, read together by rows: tensors, or anything that gives a tensor when indexed by rows.

    Attributes:
        members: what is read.
        place: where an index of rows is wanted.
    """

    def __init__(self, members: Sequence[Any]) -> None:
        self.members = tuple(members)
        self.place = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.members[0])

    def __call__(self, index: Any) -> tuple[Any, ...]:
        return tuple(member[index] for member in self.members)

    def keep_on(self, device: torch.device) -> None:
        """Moves tensors to a GPU once, if they take less than half of its free memory, in place of batch by batch."""
        tensors = [member for member in self.members if isinstance(member, Tensor)]
        if device.type == "cuda" and 2 * sum(t.nbytes for t in tensors) < torch.cuda.mem_get_info(device)[0]:
            self.members = tuple(m.to(device) if isinstance(m, Tensor) else m for m in self.members)
            if len(tensors) == len(self.members):
                self.place = device

    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[tuple[Any, ...]]:
        """Every row once, in this order or as they stand; the last batch may be short."""
        for start in range(0, len(self), batch_size):
            stop = start + batch_size
            yield self(slice(start, stop) if order is None else order[start:stop])

    def blocks(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """The rows a few thousand at a time, which is as many as a check needs in memory, each with its first row."""
        return zip(range(0, len(self), BLOCK), self.batches(BLOCK), strict=True)


def checked_rows(data: Any, name: str = "data") -> Rows:
    """Rows of a tensor, an array or a tuple of them, once they are known to be usable.

    Raises:
        TypeError: a member is not numeric data.
        ValueError: no data, members of different lengths, or values that are NaN or infinite.
    """
    members = data if isinstance(data, tuple | list) and not isinstance(data, PackedSequence) else (data,)
    if not members:
        raise ValueError(f"{name} is empty: give a tensor, or a tuple of tensors, with the data axis first.")
    named = [(member, f"{name}[{i}]" if len(members) > 1 else name) for i, member in enumerate(members)]
    rows = Rows(by_rows([m if isinstance(m, PackedSequence | Packed) else as_member(m, name) for m, name in named]))
    lengths = [len(member) for member in rows.members]
    if len(set(lengths)) > 1:
        raise ValueError(f"The members of {name} differ in length: {lengths}. Each must have one row a datum.")
    if lengths[0] == 0:
        raise ValueError(f"{name} is empty (shape {tuple(rows.members[0].shape)}): at least one datum is needed.")
    for start, block in rows.blocks():
        check_finite(block, name, start)
    return rows


def read_once(data: Any, seed: int) -> Rows:
    """:func:`checked_rows`, with what is drawn anew at each read (a ``DynamicBinarization``) drawn once, by a seed."""
    with seeded(seed):
        rows = checked_rows(data)
        return Rows([member[:] if _is_drawn(member) else member for member in rows.members])


def _is_drawn(member: Any) -> bool:
    """Whether two reads of some rows come out differently."""
    if isinstance(member, Tensor):
        return False
    first, second = member[:BLOCK], member[:BLOCK]
    return isinstance(first, Tensor) and not torch.equal(first, second)


def check_finite(batch: Sequence[Any], name: str = "data", start: int = 0) -> None:
    """Refuses NaN and infinity, naming the first.

    Raises:
        ValueError: a value is not finite.
    """
    for i, member in enumerate(batch):
        if isinstance(member, Tensor) and member.is_floating_point() and not (good := member.isfinite()).all():
            where = [int(v) for v in (~good).nonzero()[0]]
            value = member[tuple(where)].item()
            where[0] += start
            raise ValueError(
                f"{name} holds {value} in member {i} at index {tuple(where)}: every value must be finite. Drop the row "
                "or fill the gap."
            )


def check_rows(rows: Rows, supports: Sequence[Support], name: str = "data") -> None:
    """Refuses data of which any lie outside the support of the site that observes them.

    Raises:
        ValueError: a value does, as :func:`check_support` says.
    """
    for start, block in rows.blocks():
        check_support(supports, block, name, start)


class Loaded:
    """Any iterable of batches, each checked before its own step."""

    def __init__(self, loader: Iterable[Any], name: str) -> None:
        self.loader: Any = loader  # of what else torch's loaders have, it is asked whether it is there
        self.name = name
        self.supports: list[Support] = []
        self.passes = 0

    def __len__(self) -> int:
        try:
            return len(self.loader)
        except TypeError as error:
            raise TypeError(
                f"{self.name} is a loader that does not know how many batches it gives ({error}), which schedules and "
                "checkpoints count by: give its IterableDataset a __len__."
            ) from error

    @property
    def divided(self) -> bool:
        """Whether each process is given rows of its own."""
        return isinstance(getattr(self.loader, "sampler", None), DistributedSampler)

    @property
    def divisible(self) -> bool:
        """Whether the loader can go on within an epoch."""
        return hasattr(self.loader, "state_dict") and hasattr(self.loader, "load_state_dict")

    def state(self) -> dict[str, Any]:
        """What the order of the batches to come depends on, beside torch's global generator."""
        own = self.loader.state_dict() if self.divisible else None
        return {"passes": self.passes, "loader": own, "generators": self.generators()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`state` was."""
        self.passes = state["passes"]
        if self.divisible:
            self.loader.load_state_dict(state["loader"])
        self.load_generators(state["generators"])

    def generators(self) -> list[Tensor]:
        """The states of the loader's own generators."""
        return [generator.get_state() for generator in self._generators()]

    def load_generators(self, states: list[Tensor]) -> None:
        """Sets them as they were."""
        for generator, state in zip(self._generators(), states, strict=True):
            generator.set_state(state)

    def _generators(self) -> list[torch.Generator]:
        """The generators of a loader and of what orders its data, each once."""
        batches = getattr(self.loader, "batch_sampler", None)
        owners = (self.loader, getattr(self.loader, "sampler", None), batches, getattr(batches, "sampler", None))
        found = {id(g): g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)}
        return list(found.values())

    def rest(self, done: int) -> Iterator[tuple[Any, ...]]:
        """The batches after those that are done; a loader knows by itself how many these are."""
        return iter(self)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        if self.divided:
            self.passes += 1
            self.loader.sampler.set_epoch(self.passes)  # or every epoch had one order
        empty = True
        for i, batch in enumerate(self.loader):
            members = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
            members = checked_members(members, f"batch {i} of {self.name}")
            check_finite(members, f"batch {i} of {self.name}")
            check_support(self.supports, members, f"batch {i} of {self.name}")
            yield members
            empty = False
        if empty:
            raise ValueError(
                f"{self.name} is a loader that gave no batches: its data are fewer than its batch_size with "
                "drop_last=True, say, or it is an iterator that has come to its end."
            )


class Shuffled:
    """Rows in batches; with a generator each pass has a new order of them, and each process its part of a batch.

    The rows of a single batch stay as they stand: the order means nothing, but to programs with a parameter per row.
    """

    def __init__(self, rows: Rows, batch_size: int, generator: torch.Generator | None) -> None:
        self.rows, self.batch_size, self.generator = rows, batch_size, generator

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    divisible = True

    def state(self) -> None:
        """Nothing: the generator's state at the beginning of an epoch gives its order."""

    def load_state(self, state: None) -> None:
        """Nothing to do."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self.rest(0)

    def rest(self, done: int) -> Iterator[tuple[Any, ...]]:
        """The batches of a pass after those that are done, which are not read."""
        if self.generator is None:
            return self.rows.batches(self.batch_size)
        count = len(self.rows)
        order = torch.arange(count) if len(self) == 1 else torch.randperm(count, generator=self.generator)
        # To where the rows are at once: an index on the host, batch by batch, would make the host wait for the device.
        return (self.rows(own_part(index)) for index in order.to(self.rows.place).split(self.batch_size)[done:])


def is_loader(data: Any) -> bool:
    """Whether data come in batches of their own."""
    return isinstance(data, DataLoader) or (
        hasattr(data, "__iter__") and not hasattr(data, "shape") and hasattr(data, "dataset")
    )


def in_batches(data: Any, batch_size: int, generator: torch.Generator | None, name: str) -> Loaded | Shuffled:
    """Data in batches, shuffled if there is a generator; a loader as it comes."""
    if is_loader(data):
        return Loaded(data, name)
    return Shuffled(checked_rows(data, name), batch_size, generator)
