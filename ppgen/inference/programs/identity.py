"""What is known of an object for as long as it lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["ByIdentity"]

V = TypeVar("V")


class ByIdentity(Generic[V]):
    """A value for each of some objects, which need not be hashable: it goes when its object does.

    Objects that no weak reference can be made of (with ``__slots__``) stay alive with their value.

    Args:
        make: the value of an object that has none yet.
    """

    def __init__(self, make: Callable[[], V]) -> None:
        self.make = make
        self._known: dict[int, tuple[Callable[[], Any], V]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, owner: Any) -> V:
        key = id(owner)
        if key not in self._known or self._known[key][0]() is not owner:
            try:
                reference: Callable[[], Any] = weakref.ref(owner, lambda _: self._known.pop(key, None))
            except TypeError:
                reference = lambda: owner  # noqa: E731
            self._known[key] = (reference, self.make())
        return self._known[key][1]
