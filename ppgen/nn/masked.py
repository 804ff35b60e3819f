r"""Masked convolutions over images in raster order, for whole images and for one pixel at a time.

Everything in a PixelCNN but its convolutions works pixel by pixel. So the same code computes a whole image, a row of
it, or one pixel: only :class:`MaskedConv2d` needs to know which, and then takes what surrounds the pixel from what the
:class:`Cursor` remembers of earlier ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen.numbers import positive_integer


class Field(NamedTuple):
    """What a masked convolution sees around a pixel.

    Attributes:
        rows: which weights of the kernel are kept, row by row; the last row is the pixel's own.
        centre: the column of the kernel at which the pixel itself is.
        strict: whether the pixel itself is hidden (a mask of type A), as it must be in a network's first layer.
    """

    rows: tuple[tuple[bool, ...], ...]
    centre: int
    strict: bool


def raster(kernel_size: int, *, strict: bool = False) -> Field:
    """The rows above and what is left in the pixel's own row: the masks A (strict) and B of the PixelCNN.

    Example:
        >>> raster(3, strict=True).rows
        ((True, True, True), (True, False, False))
    """
    reach = _reach(kernel_size)
    own = tuple(column < reach or (column == reach and not strict) for column in range(kernel_size))
    return Field(((True,) * kernel_size,) * reach + (own,), reach, strict)


def rows_above(kernel_size: int, *, strict: bool = False) -> Field:
    """The rows above, and the own row unless strict: the field of a vertical stack.

    Example:
        >>> rows_above(3, strict=True).rows
        ((True, True, True), (False, False, False))
    """
    reach = _reach(kernel_size)
    return Field(((True,) * kernel_size,) * reach + ((not strict,) * kernel_size,), reach, strict)


def left(kernel_size: int, *, strict: bool = False) -> Field:
    """What is left in the own row, and the pixel itself unless strict: the field of a horizontal stack.

    Example:
        >>> left(3).rows
        ((True, True),)
    """
    reach = _reach(kernel_size)
    return Field(((True,) * reach + (not strict,),), reach, strict)


def _reach(kernel_size: int) -> int:
    if positive_integer("kernel_size", kernel_size) % 2 == 0 or kernel_size == 1:
        raise ValueError(f"kernel_size must be odd and at least 3, so that a pixel sees neighbours, got {kernel_size}.")
    return kernel_size // 2


class MaskedConv2d(nn.Module):
    r"""Convolution that sees, of each pixel's surroundings, only what comes before it in raster order.

    .. math:: y_{ij} = b + \sum_{(u, v) \in F} W_{uv} \, x_{i + u, j + v}, \qquad F \subseteq \{(u, v) : u < 0
        \text{ or } u = 0, v \leq 0\} \text{ in effect}

    The kernel ends at the pixel's own row, so no work is spent on what is masked below it. Outside the image there
    are zeros. (The field of a vertical stack holds the whole own row: its input has none of that row in it.)

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016), https://arxiv.org/abs/1601.06759

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        field: what is seen: :func:`raster`, :func:`rows_above` or :func:`left`.

    Shape:
        (B, in_channels, H, W) to (B, out_channels, H, W); with a cursor that stands on a row, (B, in_channels, 1, W)
        to (B, out_channels, 1, W), and with one on a pixel, (B, in_channels, 1, 1) to (B, out_channels, 1, 1). A
        strict convolution then takes the row, or the pixel, before; None if there is none.

    Example:
        >>> MaskedConv2d(1, 8, raster(7, strict=True))(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 8, 28, 28])
    """

    mask: Tensor

    def __init__(self, in_channels: int, out_channels: int, field: Field) -> None:
        super().__init__()
        self.in_channels = positive_integer("in_channels", in_channels)
        self.out_channels = positive_integer("out_channels", out_channels)
        self.field = field
        mask = torch.tensor(field.rows)
        self.height, self.width = mask.shape
        self.margins = field.centre, self.width - 1 - field.centre  # columns seen to the left and to the right
        self.register_buffer("mask", mask, persistent=False)
        # So that outputs vary as much as inputs; with torch's own rule little is left of the signal after a few gates.
        scale = (in_channels * int(mask.sum())) ** -0.5
        self.weight = nn.Parameter(scale * torch.randn(out_channels, in_channels, *mask.shape))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def kernel(self) -> Tensor:
        """The weights, zero where they are masked."""
        return self.weight * self.mask

    def forward(self, x: Tensor | None, cursor: Cursor | None = None) -> Tensor:
        if cursor is not None:
            return cursor.convolve(self, x)
        assert x is not None
        padded = functional.pad(x, (*self.margins, self.height - 1, 0))
        return functional.conv2d(padded, self.kernel(), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, rows={[sum(row) for row in self.field.rows]}"


class Pointwise(nn.Conv2d):
    r"""Convolution of size 1: a linear map of each pixel's channels, quick for a single pixel too.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        groups: blocks of channels that are mapped each by itself.
        bias: whether a constant is added.

    Shape:
        (B, in_channels, H, W) to (B, out_channels, H, W).

    Example:
        >>> Pointwise(4, 8)(torch.zeros(5, 4, 1, 1)).shape
        torch.Size([5, 8, 1, 1])
    """

    def __init__(self, in_channels: int, out_channels: int, *, groups: int = 1, bias: bool = True) -> None:
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            positive_integer(name, channels)
        super().__init__(in_channels, out_channels, 1, groups=groups, bias=bias)
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] == (1, 1) and self.groups == 1:
            y = functional.linear(x.flatten(1), self.weight.flatten(1), self.bias)
            return y.unflatten(1, (-1, 1, 1))
        return super().forward(x)


class Cursor:
    """Where an incremental pass over a batch of images stands, and what its layers remember of earlier pixels.

    Each layer remembers as many rows as it looks back, and no more, in one place. By :meth:`columns`, a tensor in one
    place, too, layers find what they need; so what they do at one pixel are the same operations as at another, and can
    be replayed (:class:`ppgen.nn.replay.Replay`).

    Args:
        batch: number of images.
        size: their height and width.
        device: of the tensors.

    Attributes:
        row: the current row.
        column: the current column; None while the whole row is computed.
        notes: what an owner keeps of the current row.
    """

    def __init__(self, batch: int, size: tuple[int, int], device: torch.device | None = None) -> None:
        self.batch = batch
        self.height, self.width = size
        self.device = device
        self.row = 0
        self.column: int | None = None
        self.notes: dict[object, Any] = {}
        self._rows: dict[object, Tensor] = {}
        self._kernels: dict[MaskedConv2d, Tensor] = {}
        self._columns: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._coarser: Cursor | None = None

    def go(self, row: int, column: int | None) -> None:
        """Goes to a pixel, or to the start of a row."""
        self.row, self.column = row, column
        for columns, offsets in self._columns.values():
            torch.add(offsets, column or 0, out=columns)
        if self._coarser is not None:
            self._coarser.go(row // 2, None if column is None else column // 2)

    def move_up(self) -> None:
        """Makes room for the row in what is remembered, once the cursor went there."""
        for held in self._rows.values():
            held.copy_(functional.pad(held[:, :, 1:], (0, 0, 0, 1)))
        if self._coarser is not None and self.row % 2 == 0:
            self._coarser.move_up()

    def columns(self, offset: int = 0, width: int = 1) -> Tensor:
        """So many columns from an offset to the cursor's on, as a tensor (width,)."""
        if (offset, width) not in self._columns:
            offsets = torch.arange(offset, offset + width, device=self.device)
            self._columns[offset, width] = offsets + (self.column or 0), offsets
        return self._columns[offset, width][0]

    def coarser(self) -> Cursor:
        """The cursor of the image of every second row and column."""
        if self._coarser is None:
            self._coarser = Cursor(self.batch, (-(-self.height // 2), -(-self.width // 2)), self.device)
            self.go(self.row, self.column)
        return self._coarser

    def rows(
        self, owner: object, like: Tensor, channels: int, height: int = 1, margins: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """What an owner remembers, to read and to write: its last rows, of which the last is the current one.

        Shape:
            (B, channels, height, left + W + right)
        """
        if owner not in self._rows:
            self._rows[owner] = like.new_zeros(self.batch, channels, height, sum(margins) + self.width)
        return self._rows[owner]

    def convolve(self, conv: MaskedConv2d, x: Tensor | None) -> Tensor:
        """A masked convolution at the cursor, once what is new has been noted."""
        before, column, strict = conv.margins[0], self.column, conv.field.strict
        held = self.rows(conv, conv.weight, conv.in_channels, conv.height, conv.margins)
        kernel = self._kernels.get(conv)
        if kernel is None:
            kernel = self._kernels[conv] = conv.kernel() if column is None else conv.kernel().flatten(1)
        if column is None:
            if x is not None:
                held[:, :, -2 if strict else -1, before : before + self.width] = x[:, :, 0]
            return functional.conv2d(held, kernel, conv.bias)
        if x is not None:
            # What a strict convolution takes is the pixel before: the last one of the row above at a row's start.
            back, place = 1, column
            if strict:
                back, place = (1, column - 1) if column else (2, self.width - 1)
            if back <= conv.height:
                held[:, :, -back].index_copy_(2, self.columns(before + place - column), x[:, :, 0].to(held.dtype))
        window = held.index_select(3, self.columns(0, conv.width))
        return functional.linear(window.flatten(1), kernel, conv.bias).unflatten(1, (-1, 1, 1))


def at(values: Tensor, cursor: Cursor | None) -> Tensor:
    """The cursor's column of the values of a row; what is the same everywhere, and a whole image, stay as they are."""
    if cursor is None or cursor.column is None or values.shape[-1] == 1:
        return values
    return values.index_select(3, cursor.columns())
