"""PixelCNN++: gated residual blocks on several scales, with short-cuts from the way down to the way up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.numbers import positive_integer

from .masked import Cursor, Field, MaskedConv2d, Pointwise, at, left, rows_above
from .raster import ChannelHead, Computed, ContextMap, PixelInput, image_shapes, whole
from .shapes import Shape


def concat_elu(x: Tensor) -> Tensor:
    """Twice the channels: the exponential linear unit of x, and of −x."""
    return nn.functional.elu(torch.cat([x, -x], 1))


class _Block(nn.Module):
    """A gated residual block of one of the stacks; ``link`` are the channels of what it takes from elsewhere."""

    def __init__(self, channels: int, field: Field, link: int, context_width: int, dropout: float) -> None:
        super().__init__()
        self.first = MaskedConv2d(2 * channels, channels, field)
        self.link = Pointwise(2 * link, channels, bias=False) if link else None
        self.dropout = nn.Dropout(dropout)
        self.second = MaskedConv2d(2 * channels, 2 * channels, field)
        self.shift = Pointwise(context_width, 2 * channels, bias=False) if context_width else None
        nn.init.normal_(self.second.weight, std=0.1 * (2 * channels * sum(map(sum, field.rows))) ** -0.5)

    def forward(self, x: Tensor, linked: Tensor | None, shift: Tensor | None, cursor: Cursor | None) -> Tensor:
        h = self.first(concat_elu(x), cursor)
        if self.link is not None:
            assert linked is not None
            h = h + self.link(concat_elu(linked))
        h = self.second(self.dropout(concat_elu(h)), cursor)
        a, b = (h if shift is None else h + at(shift, cursor)).chunk(2, 1)
        return x + a * b.sigmoid()

    def shifted(self, context: Tensor | None) -> Tensor | None:
        """What the context adds."""
        return None if self.shift is None or context is None else self.shift(context)


class _Scale(nn.Module):
    """Blocks on the way down, all of the coarser scales, and as many blocks on the way up, with a short-cut each."""

    def __init__(
        self, num_scales: int, num_blocks: int, channels: int, kernel_size: int, context_width: int, dropout: float
    ) -> None:
        super().__init__()

        def blocks(field: Field, links: int) -> Any:
            return nn.ModuleList(_Block(channels, field, links, context_width, dropout) for _ in range(num_blocks))

        vertical, horizontal = rows_above(kernel_size), left(kernel_size)
        self.down_vertical, self.down_horizontal = blocks(vertical, 0), blocks(horizontal, channels)
        self.up_vertical, self.up_horizontal = blocks(vertical, channels), blocks(horizontal, 2 * channels)
        self.inner: Any = None
        if num_scales > 1:
            self.inner = _Scale(num_scales - 1, num_blocks, channels, kernel_size, context_width, dropout)
        self.channels = channels

    def above(self, v: Tensor, context: Tensor | None, cursor: Cursor | None) -> tuple[Tensor, dict[str, Any]]:
        """The vertical stack, and what the horizontal one takes from it."""
        shortcuts, links = [], []
        for block, beside in zip(self.down_vertical, self.down_horizontal, strict=True):
            v = block(v, None, block.shifted(context), cursor)
            shortcuts.append(v)
            links.append((v, beside.shifted(context)))
        found: dict[str, Any] = {"down": links, "up": []}
        if self.inner is not None:
            size = v.shape[-2:]
            context_below = context if context is None or context.shape[-1] == 1 else context[..., ::2, ::2]
            if cursor is None or cursor.row % 2 == 0:
                below = self.inner.above(v[..., ::2, ::2], context_below, None if cursor is None else cursor.coarser())
                if cursor is not None:
                    cursor.notes[self] = below  # for the odd row, too
            else:
                below = cursor.notes[self]
            v, found["inner"] = enlarged(below[0], size), below[1]
        for block, beside in zip(self.up_vertical, self.up_horizontal, strict=True):
            v = block(v, shortcuts.pop(), block.shifted(context), cursor)
            found["up"].append((v, beside.shifted(context)))
        return v, found

    def along(self, h: Tensor, above: dict[str, Any], cursor: Cursor | None) -> Tensor:
        """The horizontal stack."""
        shortcuts = []
        for block, (v, shift) in zip(self.down_horizontal, above["down"], strict=True):
            h = block(h, at(v, cursor), shift, cursor)
            shortcuts.append(h)
        if self.inner is not None:
            h = self._below(h, above["inner"], cursor)
        for block, (v, shift) in zip(self.up_horizontal, above["up"], strict=True):
            h = block(h, torch.cat([at(v, cursor), shortcuts.pop()], 1), shift, cursor)
        return h

    def _below(self, h: Tensor, above: dict[str, Any], cursor: Cursor | None) -> Tensor:
        """The coarser scales, at every second pixel of every second row; the pixels between take what is there."""
        if cursor is None:
            return enlarged(self.inner.along(h[..., ::2, ::2], above, None), h.shape[-2:])
        assert cursor.column is not None
        coarse = cursor.coarser()
        row = coarse.rows((self, "enlarged"), h, self.channels)
        if cursor.row % 2 == 0 and cursor.column % 2 == 0:
            row[:, :, 0].index_copy_(2, coarse.columns(), self.inner.along(h, above, coarse)[:, :, 0].to(row.dtype))
        return row.index_select(3, coarse.columns())


def enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    """Twice the size, each pixel four times, cut off where the size is odd (or a single row)."""
    return x.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., : size[0], : size[1]]


class PixelCNNPlusPlus(nn.Module):
    r"""The PixelCNN++: gated residual blocks on several scales, with short-cuts between them.

    .. math:: h' = h + a \odot \sigma(b), \qquad
        (a, b) = W_2 * e\bigl(W_1 * e(h) + L \, e(v, h_{\text{short-cut}})\bigr) + V s

    where e is an exponential linear unit of both signs. On the way down, an image of features is halved from scale to
    scale by leaving out every second row and column; on the way up, pixels are repeated. So the field is wide at little
    cost; what is lost on the way comes back through the short-cuts. A vertical and a horizontal stack, so that there is
    no blind spot.

    With ``decoders.LogisticMixture``, the strongest network here for 8-bit images; take ``channels_in_turn=False``.

    References:
        PixelCNN++ (Salimans, Karpathy, Chen & Kingma, 2017), https://arxiv.org/abs/1701.05517

    Args:
        in_shape: of the images, (C, H, W), of any size.
        out_shape: (P, H, W): what a decoder's ``outputs_shape(in_shape)`` says.
        channels: of each stack.
        num_blocks: residual blocks on each scale and way.
        num_scales: how many; 1 keeps the size.
        kernel_size: of the blocks, odd.
        first_kernel_size: of the first convolutions, odd.
        dropout: the share of features that is dropped in each block while training.
        context_shapes: of the contexts that it is conditional on: D for a vector, (D, h, w) for a map.
        levels: if given, images hold integer levels 0, ..., levels - 1, which are mapped to [-1, 1].
        categories: if given, images hold categories without an order (codes), which are embedded.
        channels_in_turn: whether a channel's parameters see the pixel's earlier channels.

    Shape:
        (\*, C, H, W) and contexts (\*, \*shape), leading axes broadcast, to (\*, P, H, W).

    Raises:
        ValueError: shapes that do not fit, an even kernel size, or contexts of other shapes.

    Example:
        >>> net = PixelCNNPlusPlus((3, 8, 8), (100, 8, 8), channels=8, num_blocks=1, levels=256, channels_in_turn=False)
        >>> net(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 100, 8, 8])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: int = 32,
        num_blocks: int = 2,
        num_scales: int = 3,
        kernel_size: int = 3,
        first_kernel_size: int = 3,
        dropout: float = 0.0,
        context_shapes: Sequence[Shape] = (),
        levels: int | None = None,
        categories: int | None = None,
        channels_in_turn: bool = True,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = image_shapes("PixelCNNPlusPlus", in_shape, out_shape)
        self.period = 2 ** (positive_integer("num_scales", num_scales) - 1)
        self.input = PixelInput(self.in_shape[0], levels, categories)
        self.context = ContextMap(context_shapes, self.in_shape[1:])
        width = positive_integer("channels", channels)
        self.vertical = MaskedConv2d(self.input.width, width, rows_above(first_kernel_size, strict=True))
        self.horizontal = MaskedConv2d(self.input.width, width, left(first_kernel_size, strict=True))
        self.link = Pointwise(width, width)
        self.scales = _Scale(
            num_scales,
            positive_integer("num_blocks", num_blocks),
            width,
            kernel_size,
            self.context.width,
            dropout,
        )
        self.head = ChannelHead(width, self.input, self.in_shape[0], self.out_shape[0], channels_in_turn)

    def above(self, x: Tensor | None, context: Tensor | None, cursor: Cursor | None = None) -> Any:
        """The vertical stack: what the horizontal one takes from it."""
        v = self.vertical(x, cursor)
        return self.link(v), self.scales.above(v, context, cursor)[1]

    def along(self, x: Tensor | None, above: Any, cursor: Cursor | None = None) -> Tensor:
        """The horizontal stack: the features of pixels."""
        return self.scales.along(self.horizontal(x, cursor) + at(above[0], cursor), above[1], cursor)

    def forward(self, x: Tensor | Computed, *context: Tensor) -> Tensor:
        return whole(self, x, context)
