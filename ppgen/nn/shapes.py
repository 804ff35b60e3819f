"""The shapes of events: what a network takes, what it gives, and how several contexts become one input."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from ppgen.numbers import positive_integer

Shape = int | Sequence[int]


def as_shape(shape: Shape, name: str = "shape") -> tuple[int, ...]:
    """An event shape as a tuple; an integer stands for a vector of that width.

    Example:
        >>> as_shape(784), as_shape((1, 28, 28))
        ((784,), (1, 28, 28))
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not sizes or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise ValueError(
            f"{name} is {shape!r}, but an event shape is a positive integer (a vector) or a tuple of positive "
            "integers such as (1, 28, 28)."
        )
    return sizes


def hidden_widths(owner: str, in_shape: object, sizes: Sequence[Shape]) -> list[int]:
    """The widths of the layers in front of an output, whose shape is the last of the sizes.

    Raises:
        ValueError: one is no positive whole number; a list of two would be a single layer as wide as their product.
    """
    *widths, out_shape = sizes
    if any(isinstance(width, Sequence) for width in widths):
        flat = chain.from_iterable(width if isinstance(width, Sequence) else [width] for width in widths)
        meant = ", ".join(map(repr, (in_shape, *flat, out_shape)))
        raise ValueError(f"{owner}: a hidden width is a whole number, got {widths}: write {owner}({meant}).")
    return [positive_integer(f"{owner}: a hidden width", width) for width in widths]


def concat(*context: Tensor) -> Tensor:
    r"""Several context vectors side by side.

    One context is returned as it is, whatever its shape. Several are vectors: their leading axes are broadcast
    and their last axes joined.

    Args:
        context: one tensor, or several of shape (\*, D_i) whose leading axes broadcast.

    Shape:
        (\*, D_1 + D_2 + ...)

    Raises:
        ValueError: there is no context, the leading axes do not broadcast, or a context holds class indices.

    Example:
        >>> z, y = torch.zeros(5, 100, 40), torch.zeros(100, 10)
        >>> concat(z, y).shape
        torch.Size([5, 100, 50])
    """
    if not context:
        raise ValueError("concat needs at least one context, but none was given.")
    if len(context) == 1:
        return context[0]
    for i, c in enumerate(context):
        if c.dim() == 0 or (c.dim() == 1 and not c.is_floating_point() and any(o.dim() > 1 for o in context)):
            raise ValueError(
                f"context {i} has shape {tuple(c.shape)} and type {c.dtype}: contexts that are joined are vectors on "
                "the last axis. Encode class indices first, for example with torch.nn.functional.one_hot(y).float()."
            )
    try:
        lead = torch.broadcast_shapes(*(c.shape[:-1] for c in context))
    except RuntimeError:
        raise ValueError(
            f"contexts of shapes {[tuple(c.shape) for c in context]} cannot be joined: all axes but the last must "
            "broadcast. A network that merges an image with a vector takes both in its forward(x, *context); "
            "nn.MLP and nn.ConvNet do so if given context_dim."
        ) from None
    return torch.cat([c.expand(*lead, c.shape[-1]) for c in context], -1)


def feed(net: Callable[..., Tensor], *context: Tensor) -> Tensor:
    """The output of a network for one or several contexts.

    A network whose ``forward`` takes as many arguments as there are contexts gets them one by one; any other
    network gets them joined by :func:`concat`.

    Example:
        >>> z, y = torch.zeros(3, 4), torch.zeros(3, 2)
        >>> feed(nn.Linear(6, 1), z, y).shape
        torch.Size([3, 1])
        >>> feed(nn.Bilinear(4, 2, 1), z, y).shape
        torch.Size([3, 1])
    """
    if len(context) > 1 and not _accepts(net, len(context)):
        context = (concat(*context),)
    return net(*context)


def _accepts(net: Callable[..., Tensor], num_contexts: int) -> bool:
    try:
        signature = inspect.signature(net.forward if isinstance(net, nn.Module) else net)
    except ValueError:  # a builtin without a signature
        return False
    try:
        signature.bind(*[None] * num_contexts)
    except TypeError:
        return False
    return True


def batched(function: Callable[[Tensor], Tensor], x: Tensor, event_dim: int) -> Tensor:
    """A function of one batch axis, applied over any number of leading axes.

    ``Conv2d`` refuses (S, N, C, H, W), and ``BatchNorm1d`` takes N for the channels of (S, N, C) without a word.
    All leading axes (particles, enumeration, data) are flattened into one in front of the function and restored
    behind it.

    Args:
        function: takes (B, *event) and returns (B, *other).
        x: tensor of shape (*lead, *event).
        event_dim: number of axes of the event.

    Shape:
        (*lead, *other)

    Example:
        >>> batched(nn.Conv2d(1, 8, 3), torch.zeros(5, 2, 1, 28, 28), event_dim=3).shape
        torch.Size([5, 2, 8, 26, 26])
    """
    lead, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
    y = function(x.reshape(lead.numel(), *event))
    return y.reshape(*lead, *y.shape[1:])


def check_event(x: Tensor, shape: tuple[int, ...], owner: str) -> None:
    """Raises a ValueError unless the last axes of ``x`` are ``shape``."""
    if tuple(x.shape[-len(shape) :]) != shape:
        classes = len(shape) == 1 and x.dim() == 1 and not x.is_floating_point()
        encode = " Class numbers become vectors by torch.nn.functional.one_hot(y, num_classes).float()."
        raise ValueError(
            f"{owner} takes events of shape {shape}, but the input has shape {tuple(x.shape)}: its last "
            f"{len(shape)} axes must be {shape}, with any number of axes before them. Reshape the data, or build "
            f"the network for the shape that the data have.{encode if classes else ''}"
        )


def flatten_event(x: Tensor, context: Sequence[Tensor], in_shape: tuple[int, ...], width: int, owner: str) -> Tensor:
    """One vector for an event and its contexts, of ``width`` numbers.

    A vector event may bring its contexts already joined to it; an image is flattened first.
    """
    if len(in_shape) > 1:
        check_event(x, in_shape, owner)
        x = x.flatten(-len(in_shape))
    vector = concat(x, *context)
    if vector.dim() == 0 or vector.shape[-1] != width:
        widths = [tuple(c.shape) for c in (x, *context)]
        missing = vector.dim() > 0 and vector.shape[-1] < width
        raise ValueError(
            f"{owner} takes {width} numbers, but was given tensors of shapes {widths}. The last axes of the event "
            f"(flattened) and of its contexts must add up to {width}: "
            f"{'hand over a context that is missing (the y of a batch (x, y), say), ' if missing else ''}"
            "give the network another in_shape or context_dim, or reshape the data."
        )
    return vector
