"""Data as training and evaluation read it: checked first, then in batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from ppgen.inference.execution.distributed import own_part
from ppgen.inference.execution.members import as_member, check_members
from ppgen.inference.programs.hygiene import warn_of_probabilities
from ppgen.inference.programs.refusals import check_axes
from ppgen.inference.programs.sequences import Packed, by_rows
from ppgen.inference.programs.traces import sites

__all__ = ["Rows", "checked_rows"]


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
    for start in range(0, len(rows), 4096):
        check_finite(rows(slice(start, start + 4096)), name, start)
    return rows


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


class Support(NamedTuple):
    """Where the values of one member of a batch may lie."""

    member: int
    site: str
    distribution: str
    constraint: Any
    shape: torch.Size


def observed_supports(pair: Any, batch: Sequence[Any]) -> list[Support]:
    """The supports of the sites that observe members of a batch, from one run of the pair."""
    with torch.no_grad(), pyro.validation_enabled(False):
        guide_trace = poutine.trace(pair.guide).get_trace(*batch)
        model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*batch)
    observed = sites(model_trace)
    check_axes(sites(guide_trace), "guide")
    check_axes(observed, "model")
    warn_of_probabilities(pair, observed)
    found = []
    for name, site in observed.items():
        same = (i for i, m in enumerate(batch) if _same_rows(m, site["value"]))
        member = next(same, None) if site["is_observed"] else None
        constraint, distribution = _support(site["fn"])
        if member is not None and constraint is not None:
            found.append(Support(member, name, distribution, constraint, site["value"].shape[1:]))
    return found


def check_support(supports: Sequence[Support], batch: Sequence[Any], name: str = "data", start: int = 0) -> None:
    """Refuses data outside the support of the site that observes them (grey values under a Bernoulli, say).

    Raises:
        ValueError: a value lies outside the support.
    """
    for support in supports:
        values = batch[support.member]
        if values[0].numel() != support.shape.numel():
            continue
        values = values.reshape(-1, *support.shape)
        if not values.is_floating_point():  # a bound of 255 would be -1 to int8, and nothing compares uint16
            values = values.long()
        good = support.constraint.check(values)
        if not good.all():
            row = start + int((~good.reshape(len(values), -1).all(1)).nonzero()[0])
            low, high = values.min().item(), values.max().item()
            raise ValueError(
                f"{name}: datum {row} lies outside the support of the observed site {support.site!r}, "
                f"{support.distribution} on {support.constraint} (values run from {low:g} to {high:g}). Binarise or "
                "rescale the data, or choose a decoder whose support holds them."
            )


def _same_rows(member: Any, value: Any) -> bool:
    """Whether a site observed a member as it is, or with its rows in another shape."""
    if member is value or not (isinstance(member, Tensor) and isinstance(value, Tensor)):
        return member is value
    same = member.data_ptr() == value.data_ptr() and member.numel() == value.numel()
    return same and value.is_contiguous() and value.shape[:1] == member.shape[:1]


def _support(fn: Any) -> tuple[Any, str]:
    base = fn
    while hasattr(base, "base_dist") or hasattr(base, "base"):
        base = base.base_dist if hasattr(base, "base_dist") else base.base
    try:
        return fn.support, type(base).__name__
    except (NotImplementedError, AttributeError):
        return None, ""


def mean_loss(values: Sequence[tuple[float, int]]) -> float:
    """The mean over data of per-batch means."""
    return math.fsum(v * n for v, n in values) / sum(n for _, n in values)


class Loaded:
    """Any iterable of batches, each checked before its own step."""

    def __init__(self, loader: Iterable[Any], name: str) -> None:
        self.loader: Any = loader  # of what else torch's loaders have, it is asked whether it is there
        self.name = name
        self.supports: list[Support] = []
        self.passes = 0

    def __len__(self) -> int:
        return len(self.loader)

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
            check_members(members, f"batch {i} of {self.name}")
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
