r"""What all networks over images in raster order share: what goes in, what comes out, and how a pixel is computed.

A raster network has ``in_shape``, ``out_shape``, and four parts: ``input`` (:class:`PixelInput`), ``context``
(:class:`ContextMap`), ``head`` (:class:`ChannelHead`), and its own two functions, which work on whole images and, given
a :class:`Cursor`, on one row and one pixel:

- ``above(x, context, cursor)``: what each layer takes from the rows above, computed a row at a time;
- ``along(x, above, cursor) -> features``: what it makes of that and of the pixels to the left, a pixel at a time.

Where both work on the cursor's tensors, the operations at a pixel are those at any other a multiple of ``period`` rows
and columns away, and a network that states its period is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen.numbers import positive_integer

from .levels import input_levels, rescale
from .masked import Cursor, Pointwise
from .replay import Replay
from .shapes import Shape, as_shape, check_event

Result = TypeVar("Result")


class PixelInput(nn.Module):
    r"""Pixels as a network reads them: numbers, rescaled levels or embedded categories, and a channel of ones.

    The ones tell the image from the zeros around it.

    Args:
        num_channels: C.
        levels: if given, pixels hold integer levels 0, ..., levels - 1, which are mapped to [-1, 1].
        categories: if given, pixels hold categories 0, ..., categories - 1 without an order, such as codes.
        embedding_dim: width of a category's embedding.

    Shape:
        (B, C, H, W) to (B, width, H, W): the channels one after the other, then the ones.

    Example:
        >>> PixelInput(3, levels=256)(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 4, 8, 8])
    """

    one: Tensor

    def __init__(
        self, num_channels: int, levels: int | None = None, categories: int | None = None, embedding_dim: int = 32
    ) -> None:
        super().__init__()
        if levels is not None and categories is not None:
            raise ValueError(
                f"levels={levels} (ordered, read as numbers) and categories={categories} (without an order, embedded) "
                "exclude each other: give one of them."
            )
        self.levels = input_levels(levels)
        self.embedding = (
            None
            if categories is None
            else nn.Embedding(
                positive_integer("categories", categories), positive_integer("embedding_dim", embedding_dim)
            )
        )
        self.width_of_channel = 1 if categories is None else embedding_dim
        self.width = num_channels * self.width_of_channel + 1
        self.register_buffer("one", torch.ones(()), persistent=False)  # says the type of numbers

    def forward(self, x: Tensor) -> Tensor:
        if self.embedding is None:
            x = rescale(x, self.levels, self.one.dtype)
        else:
            x = self.embedding(x.long()).movedim(-1, -3).flatten(1, 2)  # (B, C, E, H, W)
        ones = self.one.to(x.dtype).expand(len(x), 1, *x.shape[2:])
        return torch.cat([x, ones], 1)


class ContextMap(nn.Module):
    r"""Contexts side by side as the channels of one map: vectors everywhere the same, maps enlarged to the image.

    Args:
        shapes: event shape of each context: D for a vector, (D, h, w) for a map.
        size: height and width of the image.

    Shape:
        contexts (B, \*shape) to (B, width, H, W), or (B, width, 1, 1) if all are vectors; None without contexts.

    Example:
        >>> ContextMap([10, (4, 7, 7)], (28, 28))(torch.zeros(5, 10), torch.zeros(5, 4, 7, 7)).shape
        torch.Size([5, 14, 28, 28])
    """

    def __init__(self, shapes: Sequence[Shape], size: tuple[int, int]) -> None:
        super().__init__()
        self.shapes = [as_shape(shape, "a context's shape") for shape in shapes]
        if bad := [shape for shape in self.shapes if len(shape) not in (1, 3)]:
            raise ValueError(f"context_shapes holds {bad[0]}: a context is a vector, D, or a map, (D, height, width).")
        self.size = size
        self.width = sum(shape[0] for shape in self.shapes)

    def lead(self, context: Sequence[Tensor]) -> torch.Size:
        """What stands in front of the contexts' events, broadcast.

        Raises:
            ValueError: another number of contexts, or a context of another shape.
        """
        given = [tuple(c.shape) for c in context]
        if len(context) != len(self.shapes) or any(
            c.dim() < len(s) or tuple(c.shape[-len(s) :]) != s for c, s in zip(context, self.shapes, strict=True)
        ):
            raise ValueError(
                f"The network takes {len(self.shapes)} contexts of shapes {self.shapes}, but was given {len(context)}, "
                f"of shapes {given}: build it with context_shapes=[...], D for a vector and (D, h, w) for a map, and "
                "encode class indices first, for example with torch.nn.functional.one_hot(y, D).float()."
            )
        return torch.broadcast_shapes(*(c.shape[: c.dim() - len(s)] for c, s in zip(context, self.shapes, strict=True)))

    def forward(self, *context: Tensor) -> Tensor | None:
        if not context:
            return None
        maps = [
            c[:, :, None, None] if c.dim() == 2 else functional.interpolate(c, self.size, mode="nearest-exact")
            for c in context
        ]
        if any(len(shape) == 3 for shape in self.shapes):
            maps = [m.expand(-1, -1, *self.size) for m in maps]
        return torch.cat(maps, 1)


class ChannelHead(nn.Module):
    r"""From a pixel's features to its parameters, channel by channel where channels are to depend on each other.

    .. math:: \theta_c = V_c \, \mathrm{relu}\bigl(W_c \, \mathrm{relu}(f) + \textstyle\sum_{b < c} U_{cb} \, x_b\bigr)

    Args:
        width: channels of the features.
        input: how the network reads pixels.
        num_channels: C, of the image.
        out_channels: parameters of a pixel, all channels' first ones before their second ones.
        in_turn: whether a channel's parameters see the pixel's earlier channels (the red, the green).

    Shape:
        features (B, width, H, W) and pixels as read to (B, out_channels, H, W).
    """

    mask: Tensor

    def __init__(self, width: int, input: PixelInput, num_channels: int, out_channels: int, in_turn: bool) -> None:
        super().__init__()
        self.groups = num_channels if in_turn else 1
        if out_channels % self.groups:
            raise ValueError(
                f"The output has {out_channels} channels, which is no multiple of the image's {num_channels}, so they "
                "cannot be parameters of one channel after the other: give the network another out_shape, or "
                "channels_in_turn=False (for mixtures of logistics, whose channels depend on each other by themselves)."
            )
        hidden = width * self.groups
        self.first = Pointwise(width, hidden)
        self.last = Pointwise(hidden, out_channels, groups=self.groups)
        self.earlier = None
        if self.groups > 1:
            self.earlier = Pointwise(input.width - 1, hidden, bias=False)
            channel = torch.arange(num_channels)
            mask = channel.repeat_interleave(width)[:, None] > channel.repeat_interleave(input.width_of_channel)
            self.register_buffer("mask", mask[:, :, None, None], persistent=False)

    def forward(self, features: Tensor, pixels: Tensor | None) -> Tensor:
        hidden = self.first(features.relu())
        if self.earlier is not None:
            assert pixels is not None
            hidden = hidden + functional.conv2d(pixels[:, :-1], self.earlier.weight * self.mask)
        out = self.last(hidden.relu())
        return out if self.groups == 1 else out.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class Computed(NamedTuple):
    """Parameters that a raster network has computed already: given them in the place of an image, it returns them."""

    parameters: Tensor


def image_shapes(owner: str, in_shape: Shape, out_shape: Shape) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The two shapes, if they are (C, H, W) and (P, H, W)."""
    first, second = as_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
    if len(first) != 3 or len(second) != 3 or first[1:] != second[1:]:
        raise ValueError(
            f"{owner} goes from images (C, H, W) to their parameters (P, H, W), of the same size, but in_shape is "
            f"{first} and out_shape {second}: a decoder's outputs_shape(in_shape) says what to make it."
        )
    return (first[0], first[1], first[2]), (second[0], second[1], second[2])


def whole(net: Any, x: Tensor | Computed, context: Sequence[Tensor]) -> Tensor:
    r"""The parameters of all pixels at once, each from the pixels before it.

    Shape:
        (\*, C, H, W) and contexts (\*, \*shape), leading axes broadcast, to (\*, P, H, W).
    """
    if isinstance(x, Computed):
        return x.parameters
    check_event(x, net.in_shape, f"{type(net).__name__}(in_shape={net.in_shape})")
    lead = torch.broadcast_shapes(x.shape[:-3], net.context.lead(context))
    x, *context = (
        c.expand(*lead, *shape).reshape(-1, *shape)
        for c, shape in zip((x, *context), (net.in_shape, *net.context.shapes), strict=True)
    )
    pixels = net.input(x)
    features = net.along(pixels, net.above(pixels, net.context(*context)))
    return net.head(features, pixels).reshape(*lead, *net.out_shape)


class Incremental:
    r"""A raster network pixel by pixel: one column of activations is computed for each, the rest is remembered.

    Call :meth:`row` at the start of each row, :meth:`pixel` for each pixel in it, and then :meth:`parameters`, for one
    channel after the other. Where the network does the same at every ``period``-th row and column, as it then says,
    its operations are noted once and replayed.

    Args:
        net: a raster network.
        context: contexts (B, \*shape).
        batch: B.

    Attributes:
        drawn: a place for the pixel (B, C, 1, 1), which is the one before it until there is another.
    """

    def __init__(self, net: Any, context: Sequence[Tensor], batch: int) -> None:
        self.net = net
        like = net.input.one
        channels, height, width = net.in_shape
        self.cursor = Cursor(positive_integer("batch", batch), (height, width), like.device)
        self.context = self._map = net.context(*context)
        if self._map is not None and self._map.shape[-2] > 1:
            self.context = self._map[:, :, :1].clone()
        self._row_before, self.drawn = (like.new_zeros(batch, channels, 1, size) for size in (width, 1))
        self._above: Any = None
        self._features: Tensor | None = None
        # Without a period, nothing is what it was before.
        self._period: int = getattr(net, "period", max(height, width))
        self._replay = Replay([*net.parameters(), *net.buffers()])
        self._key: tuple[object, ...] = ()
        self._plainly = True

    def row(self, i: int, before: Tensor | None) -> None:
        """Goes to row i, given the row above it (B, C, 1, W), of which there is none at first."""
        self.cursor.go(i, None)
        if before is not None:
            self._row_before.copy_(before)
        if self.context is not self._map:
            self.context.copy_(self._map[:, :, i : i + 1])
        # The first rows run as they are, and make what layers make only once.
        self._plainly = i < self._period
        self._key = ("first" if self._plainly else "later", i % self._period)
        self._above = self.again("above", lambda: self._rows_above(None if before is None else self._row_before))

    def _rows_above(self, before: Tensor | None) -> Any:
        if before is not None:
            self.cursor.move_up()
        return self.net.above(None if before is None else self.net.input(before), self.context, self.cursor)

    def pixel(self, j: int, before: Tensor | None) -> None:
        """Goes to pixel j of the row, given the one before it in raster order (B, C, 1, 1)."""
        i = self.cursor.row
        self.cursor.go(i, j)
        if before is not None and before is not self.drawn:
            self.drawn.copy_(before)
        self._plainly = i < self._period and j <= self._period
        self._key = (*self._key[:2], j == 0, j % self._period)
        self._features = self.again("along", lambda: self._along(None if before is None else self.drawn))

    def _along(self, before: Tensor | None) -> Tensor:
        features: Tensor = self.net.along(None if before is None else self.net.input(before), self._above, self.cursor)
        return features

    def parameters(self, pixel: Tensor) -> Tensor:
        """The pixel's parameters (B, P, 1, 1), given what is known of its channels (B, C, 1, 1)."""
        assert self._features is not None
        head = self.net.head
        return head(self._features, None if head.earlier is None else self.net.input(pixel))

    def again(self, name: str, function: Callable[[], Result]) -> Result:
        """What a function makes of the cursor's place, replayed where it can be; it is the same one for each name."""
        return function() if self._plainly else self._replay((name, *self._key), function)
