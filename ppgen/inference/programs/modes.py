"""The states that evaluation and training put a pair into, and give back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ppgen.inference.programs.networks import device_of, modules_of
from ppgen.inference.programs.seeds import derived_seed, seeded
from ppgen.inference.programs.turns import turn

__all__ = ["drawing", "evaluating", "stirred", "training", "unmoved"]


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
