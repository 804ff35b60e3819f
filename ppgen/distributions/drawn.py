"""What a distribution remembers of its own draw, so that it scores that one cheaply."""

from __future__ import annotations

import torch
from torch import Tensor


class Drawn:
    """What a distribution remembers of the value that it drew last, with the copies that ``expand`` makes of it."""

    def __init__(self) -> None:
        self._last: tuple[Tensor | None, int, bool, tuple[Tensor, ...]] = (None, 0, False, ())

    def keep(self, value: Tensor, *of: Tensor) -> None:
        """Remembers tensors, such as the noise, of the value drawn just now."""
        if not value.is_inference():  # which would not tell that it was edited in place
            self._last = (value, value._version, torch.is_grad_enabled(), of)

    def of(self, value: Tensor) -> tuple[Tensor, ...] | None:
        """What was kept, if this very tensor was drawn last and is as it was; None of any other value.

        A draw made without gradients is a constant, whose density still depends on the parameters: None, too.
        """
        drawn, version, graph, kept = self._last
        same = drawn is value and value._version == version
        return kept if same and (graph or not torch.is_grad_enabled()) else None
