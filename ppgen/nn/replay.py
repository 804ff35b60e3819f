"""Tensor operations that are noted once and done again without the Python around them.

A single pixel is little work for a processor: most of its time goes into modules, views and checks. What happens again
and again, on tensors that stay where they are, is the same list of operations every time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

Result = TypeVar("Result")
Operation = tuple[Callable[..., Any], Any, dict[str, Any]]


class Replay:
    """Functions of no arguments that work on tensors in fixed places, such as buffers that are written into.

    Called with a key for the first time, a function runs, and its operations are noted. From then on they are done
    again, one after the other, into the same places: the same kernels on the same numbers as before, and the same draws
    from torch's generators. What the function returned lies where it lay.

    A key must stand for the same operations on the same tensors, whatever their values; what a function makes only once
    (a cache, a buffer) must be there before. A function that reads a value on the host could go another way next time:
    it always runs as it is. So does everything while another mode of torch's watches the operations.

    Args:
        constants: tensors that nobody changes meanwhile; what is computed from them alone is computed once.

    Example:
        >>> x, y = torch.zeros(2), torch.zeros(2)
        >>> replay = Replay()
        >>> for step in range(3):
        ...     replay("step", lambda: y.copy_(x.add_(1).square()))
        tensor([1., 1.])
        tensor([4., 4.])
        tensor([9., 9.])
    """

    def __init__(self, constants: Iterable[Tensor] = ()) -> None:
        self._constants = {_place(c): c for c in constants}
        self._programs: dict[Hashable, tuple[list[Operation], Any] | None] = {}
        self._watched = _get_current_dispatch_mode() is not None

    def __call__(self, key: Hashable, function: Callable[[], Result]) -> Result:
        if self._watched:
            return function()
        if key not in self._programs:
            with _Notes(self._constants) as notes:
                result = function()
            self._programs[key] = (notes.operations, result) if notes.repeatable else None
            return result
        program = self._programs[key]
        if program is None:
            return function()
        operations, noted = program
        for operation, arguments, options in operations:
            operation(*arguments, **options)
        return noted


# What torch has no quick function with a place for the result for.
QUICK: dict[str, Callable[..., Any]] = {"relu": lambda x, out: torch.clamp_min(x, 0, out=out)}


class _Notes(TorchDispatchMode):
    """The operations that change anything, each with where its result goes."""

    def __init__(self, constants: dict[int, Tensor]) -> None:
        super().__init__()
        self.constants = constants
        self.operations: list[Operation] = []
        self.repeatable = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # for which torch would import its compiler, which takes longer than drawing an image

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operator = _operator(func)
        inputs = [_place(t) for t in _tensors((*args, *kwargs.values()))]
        outputs = _tensors([result])
        if operator.reads_values:
            self.repeatable = False
        if operator.changes_inputs:
            self.operations.append((operator.method or func, args, kwargs))
        elif inputs and not operator.random and all(place in self.constants for place in inputs):
            self.constants.update((_place(t), t) for t in outputs)
        elif any(_place(t) not in inputs for t in outputs):  # or they are views
            self.operations.append(_into(outputs, func, args, kwargs))
        return result


def _place(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


class _Operator(NamedTuple):
    """What is known of one of torch's operators; the method of tensors is what calls it soonest, where there is one."""

    random: bool
    reads_values: bool
    changes_inputs: bool
    method: Callable[..., Any] | None


@functools.cache
def _operator(func: Any) -> _Operator:
    name, tags = _name(func), func.tags
    return _Operator(
        torch.Tag.nondeterministic_seeded in tags,
        torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags,
        func._schema.is_mutable,
        getattr(Tensor, name, None) if name.endswith("_") else None,
    )


def _name(func: Any) -> str:
    return str(func._schema.name.partition("::")[2])


def _into(outputs: list[Tensor], func: Any, args: Any, kwargs: Any) -> Operation:
    """An operation whose result goes into the tensors that it gave."""
    way = _with_place(func, args, kwargs) if len(outputs) == 1 else None
    if way is not None:
        return way, args, {**kwargs, "out": outputs[0]}

    def copied(*args: Any, **kwargs: Any) -> None:
        for place, new in zip(outputs, _tensors([func(*args, **kwargs)]), strict=True):
            place.copy_(new)

    return copied, args, kwargs


_ways: dict[tuple[Any, ...], Callable[..., Any] | None] = {}  # that were found to give the same


def _with_place(func: Any, args: Any, kwargs: Any) -> Callable[..., Any] | None:
    """What computes the same into a place that it is given, the quickest that torch has; None if nothing does."""
    key = (func, *kwargs)
    if key not in _ways:
        name, operator = _name(func), getattr(func.overloadpacket, "out", None)
        known = () if operator is None else {argument.name for argument in operator._schema.arguments}
        ways = [operator] if set(kwargs) <= set(known) else []
        if not _operator(func).random:  # trying those out would cost draws
            ways = [QUICK.get(name, getattr(torch, name, None)), *ways]
            ways = [way for way in ways if way is not None and _agrees(way, func, args, kwargs)]
        _ways[key] = next(iter(ways), None)
    return _ways[key]


def _agrees(way: Callable[..., Any], func: Any, args: Any, kwargs: Any) -> bool:
    """Whether it takes a place for its result, and gives the same."""
    result = func(*args, **kwargs)
    try:
        return torch.equal(result, way(*args, **kwargs, out=torch.empty_like(result)))
    except (TypeError, RuntimeError):  # it takes no place, or other arguments
        return False
