"""PixelCNN and gated PixelCNN: networks whose output for a pixel depends on the pixels before it alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.numbers import positive_integer

from .masked import Cursor, MaskedConv2d, Pointwise, at, left, raster, rows_above
from .raster import ChannelHead, Computed, ContextMap, PixelInput, image_shapes, whole
from .shapes import Shape


def gate(x: Tensor) -> Tensor:
    """One half of the channels through tanh, times the other half through a sigmoid."""
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()


class PixelCNN(nn.Module):
    r"""The PixelCNN of masked convolutions: one stack of residual blocks.

    .. math:: h_0 = W_A * x, \qquad h_{l+1} = h_l + V_l \, \mathrm{relu}(W_B * \mathrm{relu}(U_l \, \mathrm{relu}(h_l)))

    with :math:`W_A` a large convolution whose mask hides the pixel itself, :math:`W_B` one whose mask lets it through.
    It is the cheapest of its kind, and has a blind spot: no number of layers shows it the pixels that lie to the right
    above a line through the pixel, at an angle that the kernel decides. :class:`GatedPixelCNN` has none.

    References:
        Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner & Kavukcuoglu, 2016),
        https://arxiv.org/abs/1601.06759

    Args:
        in_shape: of the images, (C, H, W).
        out_shape: (P, H, W): what a decoder's ``outputs_shape(in_shape)`` says.
        channels: h, of a block's masked convolution; 2 h lie between the blocks.
        num_layers: masked convolutions, the first one included.
        kernel_size: of the blocks, odd.
        first_kernel_size: of the first convolution, odd.
        context_shapes: of the contexts that it is conditional on: D for a vector (a label, a latent), (D, h, w) for a
            map (a spatial latent), which is enlarged to the image.
        levels: if given, images hold integer levels 0, ..., levels - 1, which are mapped to [-1, 1].
        categories: if given, images hold categories without an order (codes), which are embedded.
        channels_in_turn: whether a channel's parameters see the pixel's earlier channels.

    Shape:
        (\*, C, H, W) and contexts (\*, \*shape), leading axes broadcast, to (\*, P, H, W).

    Raises:
        ValueError: shapes that do not fit, an even kernel size, or contexts of other shapes.

    Example:
        >>> net = PixelCNN((1, 28, 28), (1, 28, 28), channels=16, num_layers=3)
        >>> net(torch.zeros(2, 4, 1, 28, 28)).shape
        torch.Size([2, 4, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: int = 32,
        num_layers: int = 8,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        context_shapes: Sequence[Shape] = (),
        levels: int | None = None,
        categories: int | None = None,
        channels_in_turn: bool = True,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = image_shapes("PixelCNN", in_shape, out_shape)
        self.period = 1
        self.input = PixelInput(self.in_shape[0], levels, categories)
        self.context = ContextMap(context_shapes, self.in_shape[1:])
        width = 2 * positive_integer("channels", channels)
        self.first = MaskedConv2d(self.input.width, width, raster(first_kernel_size, strict=True))
        self.reduce = nn.ModuleList(
            Pointwise(width, channels) for _ in range(positive_integer("num_layers", num_layers) - 1)
        )
        self.masked = nn.ModuleList(MaskedConv2d(channels, channels, raster(kernel_size)) for _ in self.reduce)
        self.expand = nn.ModuleList(Pointwise(channels, width) for _ in self.reduce)
        self.shifts = nn.ModuleList(
            Pointwise(self.context.width, width, bias=False) for _ in range(num_layers if self.context.width else 0)
        )
        self.head = ChannelHead(width, self.input, self.in_shape[0], self.out_shape[0], channels_in_turn)

    def above(self, x: Tensor | None, context: Tensor | None, cursor: Cursor | None = None) -> list[Tensor | None]:
        """What the context adds to each layer; rows are seen by the layers themselves."""
        if context is None:
            return [None] * (len(self.masked) + 1)
        return [shift(context) for shift in self.shifts]

    def along(self, x: Tensor | None, above: list[Tensor | None], cursor: Cursor | None = None) -> Tensor:
        """The features of pixels."""
        h = self.first(x, cursor)
        h = h if above[0] is None else h + at(above[0], cursor)
        for reduce, masked, expand, shift in zip(self.reduce, self.masked, self.expand, above[1:], strict=True):
            new = expand(masked(reduce(h.relu()).relu(), cursor).relu())
            h = h + (new if shift is None else new + at(shift, cursor))
        return h

    def forward(self, x: Tensor | Computed, *context: Tensor) -> Tensor:
        return whole(self, x, context)


class _GatedLayer(nn.Module):
    """One layer of both stacks. The first one hides the row (from the vertical) and the pixel (from the horizontal)."""

    shift: Pointwise | None

    def __init__(
        self, in_channels: int, channels: int, kernel_size: int, context_width: int, *, first: bool, last: bool
    ) -> None:
        super().__init__()
        self.vertical = MaskedConv2d(in_channels, 2 * channels, rows_above(kernel_size, strict=first))
        self.horizontal = MaskedConv2d(in_channels, 2 * channels, left(kernel_size, strict=first))
        self.link = Pointwise(2 * channels, 2 * channels)
        self.shift = Pointwise(context_width, 4 * channels, bias=False) if context_width else None
        self.out = Pointwise(channels, channels if last else 2 * channels)  # to the output, and to the next layer
        self.channels, self.first, self.last = channels, first, last

    def above(self, v: Tensor | None, context: Tensor | None, cursor: Cursor | None) -> tuple[Tensor, Tensor]:
        v = self.vertical(v, cursor)
        link = self.link(v)
        if self.shift is not None:
            shift_v, shift_h = self.shift(context).chunk(2, 1)
            v, link = v + shift_v, link + shift_h
        return gate(v), link

    def along(self, h: Tensor | None, above: Tensor, cursor: Cursor | None) -> tuple[Tensor | None, Tensor]:
        new = self.out(gate(self.horizontal(h, cursor) + above))
        if self.last:
            return None, new
        new, skip = new.split(self.channels, 1)
        return (new if self.first else new + h), skip


class GatedPixelCNN(nn.Module):
    r"""The gated PixelCNN: a stack that sees all rows above, and one that sees the row to the left.

    .. math:: v' = \tanh(W_v * v + V_v s) \odot \sigma(\cdots), \qquad
        h' = h + U \bigl(\tanh(W_h * h + L (W_v * v) + V_h s) \odot \sigma(\cdots)\bigr)

    Together the stacks see every earlier pixel within reach, without a blind spot: L layers of kernel k, the first of
    kernel K, reach (K - 1) / 2 + (L - 1) (k - 1) / 2 rows and columns. Each layer has a short-cut to the output. The
    context s (a label, a latent, a map) enters every layer.

    References:
        Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016),
        https://arxiv.org/abs/1606.05328

    Args:
        in_shape: of the images, (C, H, W).
        out_shape: (P, H, W): what a decoder's ``outputs_shape(in_shape)`` says.
        channels: of each stack.
        num_layers: L. Few layers of a small kernel see little, and leave the rest to a latent (see PixelVAE).
        kernel_size: k, odd.
        first_kernel_size: of the first layer, odd.
        context_shapes: of the contexts that it is conditional on: D for a vector (a label, a latent), (D, h, w) for a
            map (a spatial latent), which is enlarged to the image.
        levels: if given, images hold integer levels 0, ..., levels - 1, which are mapped to [-1, 1].
        categories: if given, images hold categories without an order (codes), which are embedded.
        channels_in_turn: whether a channel's parameters see the pixel's earlier channels.

    Shape:
        (\*, C, H, W) and contexts (\*, \*shape), leading axes broadcast, to (\*, P, H, W).

    Raises:
        ValueError: shapes that do not fit, an even kernel size, or contexts of other shapes.

    Example:
        >>> net = GatedPixelCNN((1, 28, 28), (1, 28, 28), channels=16, num_layers=3, context_shapes=[10])
        >>> net(torch.zeros(4, 1, 28, 28), torch.zeros(2, 4, 10)).shape
        torch.Size([2, 4, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: int = 32,
        num_layers: int = 7,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        context_shapes: Sequence[Shape] = (),
        levels: int | None = None,
        categories: int | None = None,
        channels_in_turn: bool = True,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = image_shapes("GatedPixelCNN", in_shape, out_shape)
        self.period = 1
        self.input = PixelInput(self.in_shape[0], levels, categories)
        self.context = ContextMap(context_shapes, self.in_shape[1:])
        widths = [self.input.width] + [positive_integer("channels", channels)] * positive_integer(
            "num_layers", num_layers
        )
        self.layers: Any = nn.ModuleList(
            _GatedLayer(
                width,
                channels,
                kernel_size if i else first_kernel_size,
                self.context.width,
                first=i == 0,
                last=i == num_layers - 1,
            )
            for i, width in enumerate(widths[:-1])
        )
        self.head = ChannelHead(channels, self.input, self.in_shape[0], self.out_shape[0], channels_in_turn)

    def above(self, x: Tensor | None, context: Tensor | None, cursor: Cursor | None = None) -> list[Tensor]:
        """The vertical stack: what each layer of the horizontal one takes from it, of a row in one piece."""
        links = []
        for layer in self.layers:
            x, link = layer.above(x, context, cursor)
            links.append(link)
        return links if cursor is None else [torch.cat(links, 1)]

    def along(self, x: Tensor | None, above: list[Tensor], cursor: Cursor | None = None) -> Tensor:
        """The horizontal stack: the features of pixels."""
        links: Sequence[Tensor] = above if cursor is None else at(above[0], cursor).chunk(len(self.layers), 1)
        skips = []
        for layer, link in zip(self.layers, links, strict=True):
            x, skip = layer.along(x, link, cursor)
            skips.append(skip)
        return torch.stack(skips).sum(0)

    def forward(self, x: Tensor | Computed, *context: Tensor) -> Tensor:
        return whole(self, x, context)
