"""What a model is made of, before it is made."""

from __future__ import annotations

from torch import nn

__all__ = ["CONDITIONAL", "NETWORK", "check_modules"]

CONDITIONAL = "a module whose forward(*context) returns a distribution"
NETWORK = "a network"


def check_modules(owner: str, what: str, **parts: object) -> None:
    """Makes sure that parts, by name, are modules.

    Raises:
        TypeError: one is none; `what` it must be.
    """
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            raise TypeError(f"{owner}: {name} must be {what}, got {type(part).__name__}.")
