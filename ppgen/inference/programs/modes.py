"""The states that evaluation and training put a pair into, and give back as they were."""

from __future__ import annotations

import copy
import operator
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ppgen.inference.programs.turns import own_generators, turn


def modules_of(pair: Any) -> list[nn.Module]:
    """The networks of a pair: itself, or an ordinary object's attributes that are modules."""
    if isinstance(pair, nn.Module):
        return [pair]
    return [value for value in getattr(pair, "__dict__", {}).values() if isinstance(value, nn.Module)]


def trained(step: Any) -> list[dict[str, Tensor]]:
    """A copy of what a step trains: the states of its pair's networks, and the parameters that no network holds."""
    states = [module.state_dict() for module in modules_of(getattr(step, "pair", step))]
    sites = {str(i): p.detach() for i, p in enumerate(getattr(step, "sites", []))}
    return copy.deepcopy([*states, sites] if sites else states)


def set_trained(step: Any, states: Sequence[dict[str, Tensor]]) -> None:
    """Sets what :func:`trained` copied."""
    modules = modules_of(getattr(step, "pair", step))
    for module, values in zip(modules, states, strict=False):
        module.load_state_dict(values)
    with torch.no_grad():
        for sites in states[len(modules) :]:
            for parameter, value in zip(step.sites, sites.values(), strict=True):
                parameter.copy_(value)


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


def checked_seed(seed: Any) -> int:
    """A seed that torch's generators take.

    Raises:
        ValueError: it is none.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not -(2**63) <= operator.index(seed) < 2**64:
        raise ValueError(f"seed must be a whole number of at most 64 bits, got {seed!r}.")
    return operator.index(seed)


def derived_seed(seed: Any, *keys: int | str) -> int:
    """A seed of its own for each use of one: numbers that two of them shared would be the same noise in both."""
    words = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in keys]
    state = np.random.SeedSequence([checked_seed(seed) % 2**63, *words]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


@contextmanager
def seeded(seed: int | None, device: torch.device | None = None) -> Iterator[None]:
    """Torch's global generators at ``seed`` (or as they are) inside, as they were outside; other threads wait."""
    with own_generators(device if device is not None and device.type == "cuda" else None):
        if seed is not None:
            torch.manual_seed(checked_seed(seed))
        yield


@contextmanager
def unmoved(*owners: Any) -> Iterator[None]:
    """A run that does not count: buffers that it moves (a normalisation's, a codebook's) are outside as they were."""
    buffers = [b for owner in owners for module in modules_of(owner) for b in module.buffers()]
    before = [b.detach().clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


@contextmanager
def stirred(*owners: Any) -> Iterator[None]:
    """Parameters that are one number all over (a last layer's zeros, a gate's) are others inside, by a little noise.

    At such a start what depends on a latent may not show.
    """
    every = {p for owner in owners for module in modules_of(owner) for p in module.parameters()}
    alike = [(p, p.data) for p in every if p.is_floating_point() and p.numel() and bool((p == p.flatten()[0]).all())]
    try:
        for parameter, value in alike:
            parameter.data = value + 0.1 * torch.randn_like(value)
        yield
    finally:
        for parameter, value in alike:
            parameter.data = value


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
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Matrix products in ``"float32"``, in ``"tf32"`` or by autocast in ``"bf16"`` inside; as they were outside."""
    if name == "bf16":
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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


@contextmanager
def drawing(pair: Any, seed: int | None, use: str) -> Iterator[None]:
    """As :func:`evaluating`; but without a seed torch's generator goes on, so that the next draws are others."""
    if seed is not None:
        with evaluating(pair, seed, use):
            yield
    else:
        with turn, torch.no_grad(), training(pair, False):
            yield


@contextmanager
def evaluating(pair: Any, seed: int | None = None, use: str = "") -> Iterator[None]:
    """Eval mode, no gradients, the generators given back; of a seed the noise that belongs to one use of it."""
    own = derived_seed(seed, use) if use and seed is not None else seed
    with torch.no_grad(), seeded(own, device_of(pair)), training(pair, False):
        yield
