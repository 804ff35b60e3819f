"""The states that evaluation and training put a pair into, and give back as they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppgen.inference.programs.networks import device_of, modules_of
from ppgen.inference.programs.seeds import derived_seed, seeded
from ppgen.inference.programs.turns import turn

__all__ = [
    "Buffer",
    "buffers_in",
    "buffers_of",
    "drawing",
    "evaluating",
    "matrix_products",
    "small_tensors",
    "stirred",
    "training",
    "unabridged",
    "unmoved",
]

SMALL = 0.02


class Buffer(NamedTuple):
    """A buffer of a module, and its value before a run that may not count."""

    module: nn.Module
    name: str
    tensor: Tensor
    value: Tensor

    @property
    def moved(self) -> bool:
        """Whether it has another value since, or is another tensor."""
        now = self.module._buffers.get(self.name)
        return now is not self.tensor or not torch.equal(self.tensor, self.value)

    def give_back(self, unless: Tensor | bool = False) -> None:
        """The tensor and its value as they were; the value that it has now if so, which is not waited for."""
        now = self.module._buffers.get(self.name)
        value = self.value if unless is False or now is None else torch.where(torch.as_tensor(unless), now, self.value)
        self.module._buffers[self.name] = self.tensor.copy_(value)


def buffers_in(modules: Iterable[nn.Module]) -> list[Buffer]:
    """The buffers of these modules themselves."""
    return [
        Buffer(module, name, tensor, tensor.detach().clone())
        for module in modules
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]


def buffers_of(*owners: Any) -> list[Buffer]:
    """All buffers of pairs or losses, each module's once."""
    every = {id(part): part for owner in owners for module in modules_of(owner) for part in module.modules()}
    return buffers_in(every.values())


@contextmanager
def unmoved(*owners: Any) -> Iterator[None]:
    """A run that does not count: buffers that it moves (a normalisation's, a codebook's) are outside as they were."""
    before = buffers_of(*owners)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer in before:
                buffer.give_back()


def small_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Those of which nothing is far from zero: a last layer's, say, behind which what depends on a latent hides."""
    return [t for t in tensors if t.is_floating_point() and t.numel() and bool(t.abs().max() < SMALL)]


@contextmanager
def stirred(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Parameters or buffers farther from zero inside, by noise from torch's generator that leaves signs as they are."""
    before = [p.data for p in parameters]
    try:
        for p in parameters:
            noise = torch.rand_like(p.data) * p.sign() + torch.randn_like(p.data) * (p == 0)
            p.data = p.data + 0.1 * noise
        yield
    finally:
        for p, value in zip(parameters, before, strict=True):
            p.data = value


@contextmanager
def training(pair: Any, mode: bool) -> Iterator[None]:
    """Train or eval mode inside; every submodule's own mode again outside."""
    before = [(m, m.training) for module in modules_of(pair) for m in module.modules()]
    for module in modules_of(pair):
        module.train(mode)
    try:
        yield
    finally:
        for m, was in before:
            m.training = was


@contextmanager
def matrix_products(precision: str) -> Iterator[None]:
    """Torch's precision of matrix products inside: ``"highest"``, or ``"high"``, which is tf32 on a GPU.

    Where it was set by one of torch's newer flags (``fp32_precision``) torch refuses this one, and it stays as it is.
    """
    before = precision
    with suppress(RuntimeError):
        before = torch.get_float32_matmul_precision()
    if before == precision:
        yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def unabridged(device: torch.device | None) -> Iterator[None]:
    """No bits are spared inside: not by the caller's autocast, nor in matrix products, convolutions and recurrences.

    Of the latter two torch's own default on a GPU is tf32, with 10 bits of mantissa. What was set by torch's newer
    flags (``fp32_precision``) stays as it is.
    """
    kind, cudnn = "cpu" if device is None else device.type, torch.backends.cudnn
    spares = False
    if kind == "cuda":
        with suppress(RuntimeError):  # as torch says where newer flags were set
            spares = cudnn.allow_tf32
    with torch.autocast(kind, enabled=False), matrix_products("highest"):
        try:
            if spares:
                cudnn.allow_tf32 = False
            yield
        finally:
            if spares:
                cudnn.allow_tf32 = True


@contextmanager
def drawing(pair: Any, seed: int | None, use: str) -> Iterator[None]:
    """As :func:`evaluating`; but without a seed torch's generator goes on, so that the next draws are others."""
    if seed is not None:
        with evaluating(pair, seed, use):
            yield
    else:
        with turn, torch.no_grad(), training(pair, False), unabridged(device_of(pair)):
            yield


@contextmanager
def evaluating(pair: Any, seed: int | None = None, use: str = "") -> Iterator[None]:
    """Eval mode, no gradients, all bits, the generators given back; of a seed the noise of one use of it."""
    own = derived_seed(seed, use) if use and seed is not None else seed
    device = device_of(pair)
    with torch.no_grad(), seeded(own, device), training(pair, False), unabridged(device):
        yield
