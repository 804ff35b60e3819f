"""Seeds, each use of one with noise of its own."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ppgen.inference.programs.turns import own_generators

__all__ = ["checked_seed", "derived_seed", "seeded"]


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
