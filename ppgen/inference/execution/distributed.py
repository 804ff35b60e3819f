"""Work shared by processes: each takes its part of the data, and all of them end with the same result."""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ppgen.inference.programs.networks import modules_of
from ppgen.inference.programs.seeds import derived_seed

__all__ = ["Processes", "processes"]

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells its processes

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """The processes that share the work.

    Attributes:
        rank: of this one, from 0.
        count: of all.
        timeout: seconds that one waits for the others.
    """

    rank: int = 0
    count: int = 1
    timeout: float = 0.0

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0


ALONE = Processes()
_groups = itertools.count()
_sharing: ContextVar[Processes] = ContextVar("processes", default=ALONE)


def current() -> Processes:
    """The processes that share the work here; this one alone outside :func:`processes`."""
    return _sharing.get()


@contextmanager
def processes(timeout: float = 300.0) -> Iterator[Processes]:
    """Inside, ``fit`` and ``log_likelihood`` share their work among the processes that ``torchrun`` started.

    All processes must make the same calls, on the same data. In ``fit`` each takes its rows of every batch and
    gradients are averaged over all rows, so that the batch size is that of all processes together; noise differs from
    process to process; batch normalisation sees the rows of its own process, and its running statistics, as all
    buffers, are those of the first. In ``log_likelihood`` each takes blocks of data, with the noise that belongs to
    them: the values are, to the bit, those of one process with as many threads. Data in memory are shared by
    themselves; a DataLoader must bring a ``DistributedSampler``. Other training than ``fit``'s is refused.

    Torch's own engine does the exchange: gloo between CPUs, NCCL between GPUs, of which each process gets its own.
    Without ``torchrun``'s environment variables nothing happens at all. A process that fails ends the others, too: the
    first to fail raises its error, the others end in silence.

    Args:
        timeout: seconds that one process waits for another, within a step or a block of data.

    Raises:
        ValueError: a timeout that is not a positive finite number.
        ConnectionError: another process has ended, or let this one wait for too long.

    Example:
        >>> with processes() as group:  # the same script under torchrun --nproc-per-node 4 shares the work
        ...     group.count
        1
    """
    if not (isinstance(timeout, int | float) and math.isfinite(timeout) and timeout > 0):
        raise ValueError(f"timeout must be a positive finite number of seconds, got {timeout!r}.")
    if current().count > 1 or any(name not in os.environ for name in LAUNCHED) or os.environ["WORLD_SIZE"] == "1":
        yield current()
        return
    # Imported while there is a group, the next module keeps it in its default arguments: threads of a group that is
    # never over now and then abort the process at its exit.
    import torch.distributed.nn.functional  # noqa: F401

    wait = timedelta(seconds=timeout)
    store, rank, count = next(dist.rendezvous("env://", timeout=wait))
    store = dist.PrefixStore(f"group {next(_groups)}", store)  # what an earlier group has left there is not this one's
    dist.init_process_group(_engine(), store=store, rank=rank, world_size=count, timeout=wait)
    token = _sharing.set(Processes(rank, count, timeout))
    try:
        yield current()
        dist.destroy_process_group()
    except Exception:
        # No orderly goodbye: it would wait for the others.
        if store.add("failures", 1) > 1:  # another has failed before, and says why
            time.sleep(2)  # until torchrun ends this one, so that it is not taken for the cause
            sys.exit(1)
        raise
    finally:
        _sharing.reset(token)


def _engine() -> str:
    """The backends, and a GPU for this process where there are any."""
    here, local = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not torch.cuda.is_available():
        return "gloo"
    torch.cuda.set_device(here % torch.cuda.device_count())
    return "cpu:gloo,cuda:nccl" if local <= torch.cuda.device_count() else "gloo"  # NCCL wants a GPU for each


class MissingProcess(ConnectionError):
    """Another process did not come to an exchange."""


@contextmanager
def _exchange() -> Iterator[None]:
    """Says in plain words that another process is missing."""
    try:
        yield
    except RuntimeError as error:
        here = current()
        raise MissingProcess(
            f"Process {here.rank} of {here.count} (counted from 0) waited in vain for another, which has ended "
            f"(killed, or out of memory?) or did not come within {here.timeout:g} s. Start the run again."
        ) from error


def gathered(value: Item) -> list[Item]:
    """What each process has, in their order."""
    everyone: list[Any] = [value] * current().count
    if current().count > 1:
        with _exchange():
            dist.all_gather_object(everyone, value)
    return everyone


def spread(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``[function(item) for item in items]``, the items taken in turns, with the whole list for every process.

    Every process waits for the others after each turn, so that none waits longer than an item takes.
    """
    rank, count = current().rank, current().count
    own = []
    for i, item in enumerate(items):
        if i % count == rank:
            own.append(function(item))
        if count > 1 and i % count == count - 1:
            with _exchange():
                dist.barrier()
    parts = gathered(own)
    return [parts[i % count][i // count] for i in range(sum(map(len, parts)))]


def own_part(index: Tensor) -> Tensor:
    """This process's part of the rows of a batch: as many as the others have, or one more or less."""
    return index.tensor_split(current().count)[current().rank]


def own_seed(seed: int) -> int:
    """The seed of this process's noise: of the first, the seed itself."""
    rank = current().rank
    return derived_seed(seed, rank) if rank else seed


def broadcast(pair: Any, parameters: Sequence[Tensor]) -> None:
    """Gives all processes the parameters and buffers that the first has."""
    if current().count == 1:
        return
    with torch.no_grad(), _exchange():
        for tensor in (*parameters, *_buffers(pair)):
            dist.broadcast(tensor.data, 0)


def averaged(
    gradients: Sequence[Tensor | None], parameters: Sequence[Tensor], rows: int, pair: Any
) -> list[Tensor | None]:
    """Gradients averaged over the rows of all processes, and the first one's buffers for all, in a single exchange.

    Args:
        gradients: of the mean over this process's rows, None where a parameter does not take part.
        parameters: what they are of.
        rows: how many this process had; it may be none.
        pair: whose buffers may have changed.
    """
    if current().count == 1:
        return list(gradients)
    device, first = parameters[0].device, current().leads
    every = _buffers(pair)
    buffers = [b for b in every if b.is_floating_point() and b.dtype != torch.float64]
    _share_exactly([b for b in every if not any(b is other for other in buffers)], first)
    used = [rows, *(rows * (gradient is not None) for gradient in gradients)]
    weighted = [torch.zeros_like(p) if g is None else g * rows for g, p in zip(gradients, parameters, strict=True)]
    shared = [b if first else torch.zeros_like(b) for b in buffers]  # a sum of one value and zeros is that value
    flat = torch.cat(
        [torch.tensor(used, device=device, dtype=torch.float32), *(t.flatten() for t in weighted + shared)]
    )
    with _exchange():
        dist.all_reduce(flat)
    counts, rest = flat[: len(used)], flat[len(used) :].split([t.numel() for t in weighted + shared])
    with torch.no_grad():
        for buffer, value in zip(buffers, rest[len(weighted) :], strict=True):
            buffer.copy_(value.view_as(buffer))
    total, *taking_part = counts.tolist()
    return [
        (sums / total).view(p.shape).to(p.dtype) if takes_part else None
        for sums, p, takes_part in zip(rest[: len(weighted)], parameters, taking_part, strict=True)
    ]


def _share_exactly(buffers: Sequence[Tensor], first: bool) -> None:
    """The first process's values for all of what float32 does not hold: counts, masks, numbers in float64."""
    for dtype in dict.fromkeys(b.dtype for b in buffers):
        own = [b for b in buffers if b.dtype == dtype]
        wide = dtype if dtype.is_floating_point or dtype.is_complex else torch.int64
        flat = torch.cat([(b if first else torch.zeros_like(b)).flatten().to(wide) for b in own])
        with _exchange():
            dist.all_reduce(flat)
        with torch.no_grad():
            for b, value in zip(own, flat.split([b.numel() for b in own]), strict=True):
                b.copy_(value.view_as(b))


def _buffers(pair: Any) -> list[Tensor]:
    """What a pair keeps beside its parameters: running statistics, a codebook that follows averages."""
    states = [module.state_dict(keep_vars=True) for module in modules_of(pair)]
    found = {id(t): t for state in states for t in state.values() if isinstance(t, Tensor) and not t.requires_grad}
    return [t for t in found.values() if not isinstance(t, torch.nn.Parameter)]
