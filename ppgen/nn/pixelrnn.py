"""PixelRNNs: recurrent networks along the rows or the diagonals of an image, whose state reaches beyond any kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen.numbers import positive_integer

from .masked import Cursor, MaskedConv2d, Pointwise, at, left, raster
from .raster import ChannelHead, Computed, ContextMap, PixelInput, image_shapes, whole
from .shapes import Shape


def cell(gates: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """One step of a long short-term memory: the new state and the new memory."""
    output, forget, input, new = gates.chunk(4, 1)
    memory = forget.sigmoid() * memory + input.sigmoid() * new.tanh()
    return output.sigmoid() * memory.tanh(), memory


class RowLSTM(nn.Module):
    r"""Long short-term memory from the top row to the bottom one, a row at a time.

    .. math:: (o, f, i, g)_r = W_{is} * x_r + W_{ss} * h_{r-1}, \qquad
        c_r = \sigma(f) \odot c_{r-1} + \sigma(i) \odot \tanh(g), \quad h_r = \sigma(o) \odot \tanh(c_r)

    Both convolutions lie along the row; the one of the input sees no pixel to the right. What is seen of the image is a
    triangle above the pixel, as wide as the rows are far; its corners at the top stay unseen near the image's middle.

    References:
        Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner & Kavukcuoglu, 2016),
        https://arxiv.org/abs/1601.06759

    Args:
        in_channels: channels of the input.
        pixel_channels: channels of the pixels themselves, at which this layer does not look again.
        channels: channels of the state.
        kernel_size: of both convolutions, odd.

    Shape:
        (B, in_channels, H, W) and (B, pixel_channels, H, W) to (B, channels, H, W).

    Example:
        >>> RowLSTM(8, 2, 4)(torch.zeros(5, 8, 28, 28), torch.zeros(5, 2, 28, 28)).shape
        torch.Size([5, 4, 28, 28])
    """

    def __init__(self, in_channels: int, pixel_channels: int, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.channels = positive_integer("channels", channels)
        self.input_to_state = MaskedConv2d(in_channels, 4 * channels, left(kernel_size))
        self.state_to_state = nn.Conv2d(
            channels, 4 * channels, (1, kernel_size), padding=(0, kernel_size // 2), bias=False
        )

    def above(self, pixels: Tensor | None, cursor: Cursor) -> Tensor:
        """What the cursor's row takes from the states of the row above it, behind that row's memories."""
        states, memories = self._rows(cursor)[:, :, :1].chunk(2, 1)
        return torch.cat([memories, self.state_to_state(states)], 1)

    def _rows(self, cursor: Cursor) -> Tensor:
        """States and memories of the row above and of this one."""
        return cursor.rows(self, self.state_to_state.weight, 2 * self.channels, height=2)

    def forward(
        self, x: Tensor, pixels: Tensor | None, above: Tensor | None = None, cursor: Cursor | None = None
    ) -> Tensor:
        gates = self.input_to_state(x, cursor)
        if cursor is not None:
            assert above is not None and cursor.column is not None
            memory, carried = above.split((self.channels, 4 * self.channels), 1)
            state, memory = cell(gates + carried, memory)
            held = self._rows(cursor)
            new = torch.cat([state, memory], 1)[:, :, 0].to(held.dtype)
            held[:, :, 1].index_copy_(2, cursor.columns(), new)
            return state
        state = memory = gates.new_zeros(len(x), self.channels, 1, x.shape[-1])
        states = []
        for row in gates.split(1, 2):
            state, memory = cell(row + self.state_to_state(state), memory)
            states.append(state)
        return torch.cat(states, 2)


def skew(x: Tensor) -> Tensor:
    """Rows (*, H, W), each moved one further to the right than the one above it: (*, H, W + H − 1)."""
    height, width = x.shape[-2:]
    flat = functional.pad(x, (0, height)).flatten(-2)
    return flat[..., : height * (width + height - 1)].unflatten(-1, (height, -1))


def unskew(x: Tensor) -> Tensor:
    """The rows moved back."""
    height, width = x.shape[-2], x.shape[-1] - x.shape[-2] + 1
    return functional.pad(x.flatten(-2), (0, height)).unflatten(-1, (height, -1))[..., :width]


class _Diagonal(nn.Module):
    """Memory along the diagonals, from the upper left corner: a pixel takes up its neighbours to the left and above."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.input_to_state = Pointwise(in_channels, 4 * channels)
        self.from_left = Pointwise(channels, 4 * channels, bias=False)
        self.from_above = Pointwise(channels, 4 * channels, bias=False)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        gates = skew(self.input_to_state(x))  # a diagonal is a column now; (i - 1, j) lies left above (i, j)
        state = memory = gates.new_zeros(len(x), self.channels, x.shape[-2], 1)
        states = []
        for column in gates.split(1, -1):
            lower = functional.pad(state, (0, 0, 1, -1))
            # Outside the image gates are zero, and with them states.
            state, memory = cell(column + self.from_left(state) + self.from_above(lower), memory)
            states.append(state)
        return unskew(torch.cat(states, -1))


class DiagonalBiLSTM(nn.Module):
    r"""Long short-term memory along the diagonals, once from the left and once from the right.

    .. math:: (o, f, i, g)_{ij} = W x_{ij} + U h_{i,j-1} + V h_{i-1,j}, \qquad
        c_{ij} = \sigma(f) \odot c_{i,j-1} + \sigma(i) \odot \tanh(g), \quad h_{ij} = \sigma(o) \odot \tanh(c_{ij})

    and the same from the right, whose states are moved one row down before the two are added, so that no pixel sees
    one to its right. Together they see all earlier pixels, however far, in a single layer. All pixels of a diagonal are
    computed at once. Being one row behind, the way from the right may see the pixels themselves, and does: in the paper
    it sees only what the features of a pixel hold, which is not the pixel, so that the last one of the row above stays
    unseen from the left of the image.

    References:
        Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner & Kavukcuoglu, 2016),
        https://arxiv.org/abs/1601.06759

    Args:
        in_channels: channels of the input.
        pixel_channels: channels of the pixels themselves.
        channels: channels of the state.

    Shape:
        (B, in_channels, H, W) and (B, pixel_channels, H, W) to (B, channels, H, W).

    Example:
        >>> DiagonalBiLSTM(8, 2, 4)(torch.zeros(5, 8, 28, 28), torch.zeros(5, 2, 28, 28)).shape
        torch.Size([5, 4, 28, 28])
    """

    def __init__(self, in_channels: int, pixel_channels: int, channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.channels = positive_integer("channels", channels)
        self.rightwards = _Diagonal(in_channels, channels)
        self.leftwards = _Diagonal(in_channels + pixel_channels, channels)

    def above(self, pixels: Tensor | None, cursor: Cursor) -> Tensor:
        """The states of the row above from the right, which is complete only now, behind those from the left."""
        like = self.leftwards.input_to_state.weight
        from_left = self._rows(cursor)[:, :, :1]
        inputs = cursor.rows((self, "inputs"), like, self.in_channels, height=2)[:, :, :1]
        states = cursor.rows((self, "states from the right"), like, self.channels, height=2)
        if pixels is not None:  # states holds the row two above, then room for the one above
            gates = self.leftwards.input_to_state(torch.cat([inputs, pixels], 1))
            gates = gates + self.leftwards.from_above(states[:, :, :1])
            state = memory = like.new_zeros(cursor.batch, self.channels, 1, 1)
            for j in reversed(range(cursor.width)):
                state, memory = cell(gates[:, :, :, j : j + 1] + self.leftwards.from_left(state), memory)
                states[:, :, 1:, j : j + 1] = state
        return torch.cat([states[:, :, 1:], self.rightwards.from_above(from_left)], 1)

    def _rows(self, cursor: Cursor) -> Tensor:
        """States from the left of the row above and of this one."""
        return cursor.rows(self, self.leftwards.input_to_state.weight, self.channels, height=2)

    def forward(
        self, x: Tensor, pixels: Tensor | None, above: Tensor | None = None, cursor: Cursor | None = None
    ) -> Tensor:
        if cursor is None:
            assert pixels is not None
            from_right = self.leftwards(torch.cat([x, pixels], 1).flip(-1)).flip(-1)
            return self.rightwards(x) + functional.pad(from_right, (0, 0, 1, -1))
        assert above is not None and cursor.column is not None
        inputs = cursor.rows((self, "inputs"), x, self.in_channels, height=2)
        inputs[:, :, 1].index_copy_(2, cursor.columns(), x[:, :, 0].to(inputs.dtype))
        last = cursor.rows((self, "last"), x, 2 * self.channels)[:, :, :, :1]  # the pixel to the left
        state, memory = (torch.zeros_like(last) if cursor.column == 0 else last).chunk(2, 1)
        from_right, carried = above.split((self.channels, 4 * self.channels), 1)
        gates = self.rightwards.input_to_state(x) + self.rightwards.from_left(state) + carried
        state, memory = cell(gates, memory)
        held = self._rows(cursor)
        held[:, :, 1].index_copy_(2, cursor.columns(), state[:, :, 0].to(held.dtype))
        last.copy_(torch.cat([state, memory], 1))
        return state + from_right


class PixelRNN(nn.Module):
    r"""The PixelRNN: recurrent layers with residual connections behind one masked convolution.

    .. math:: h_0 = W_A * x, \qquad h_{l+1} = h_l + U_l \, \mathrm{LSTM}_l(h_l + V_l s)

    A Diagonal BiLSTM sees all earlier pixels, at the price of H + W − 1 steps one after the other for each direction
    and layer; a Row LSTM takes H and sees a triangle. For the densities that a PixelCNN has too, in fewer layers.

    References:
        Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner & Kavukcuoglu, 2016),
        https://arxiv.org/abs/1601.06759

    Args:
        in_shape: of the images, (C, H, W).
        out_shape: (P, H, W): what a decoder's ``outputs_shape(in_shape)`` says.
        layer: the kind of layer, made as ``layer(in_channels, pixel_channels, channels)``: :class:`RowLSTM` or
            :class:`DiagonalBiLSTM`.
        channels: h, of the states; 2 h lie between the layers.
        num_layers: of them.
        first_kernel_size: of the masked convolution, odd.
        context_shapes: of the contexts that it is conditional on: D for a vector, (D, h, w) for a map.
        levels: if given, images hold integer levels 0, ..., levels - 1, which are mapped to [-1, 1].
        categories: if given, images hold categories without an order (codes), which are embedded.
        channels_in_turn: whether a channel's parameters see the pixel's earlier channels.

    Shape:
        (\*, C, H, W) and contexts (\*, \*shape), leading axes broadcast, to (\*, P, H, W).

    Raises:
        ValueError: shapes that do not fit, an even kernel size, or contexts of other shapes.

    Example:
        >>> net = PixelRNN((1, 8, 8), (1, 8, 8), DiagonalBiLSTM, channels=4, num_layers=2)
        >>> net(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        layer: Callable[[int, int, int], nn.Module] = DiagonalBiLSTM,
        *,
        channels: int = 16,
        num_layers: int = 4,
        first_kernel_size: int = 7,
        context_shapes: Sequence[Shape] = (),
        levels: int | None = None,
        categories: int | None = None,
        channels_in_turn: bool = True,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = image_shapes("PixelRNN", in_shape, out_shape)
        self.period = 1
        self.input = PixelInput(self.in_shape[0], levels, categories)
        self.context = ContextMap(context_shapes, self.in_shape[1:])
        width = 2 * positive_integer("channels", channels)
        self.first = MaskedConv2d(self.input.width, width, raster(first_kernel_size, strict=True))
        self.layers: Any = nn.ModuleList(
            layer(width, self.input.width, channels) for _ in range(positive_integer("num_layers", num_layers))
        )
        self.expand = nn.ModuleList(Pointwise(channels, width) for _ in self.layers)
        self.shifts = nn.ModuleList(
            Pointwise(self.context.width, width, bias=False) for _ in (self.layers if self.context.width else ())
        )
        self.head = ChannelHead(width, self.input, self.in_shape[0], self.out_shape[0], channels_in_turn)

    def above(self, x: Tensor | None, context: Tensor | None, cursor: Cursor | None = None) -> list[Tensor | None]:
        """What the context adds to each layer, then what each takes from the rows above it."""
        shifts = [None for _ in self.layers] if context is None else [shift(context) for shift in self.shifts]
        return [*shifts, *(None if cursor is None else layer.above(x, cursor) for layer in self.layers)]

    def along(self, x: Tensor | None, above: list[Tensor | None], cursor: Cursor | None = None) -> Tensor:
        """The features of pixels."""
        h = self.first(x, cursor)
        shifts, rows = above[: len(self.layers)], above[len(self.layers) :]
        for layer, expand, shift, row in zip(self.layers, self.expand, shifts, rows, strict=True):
            shifted = h if shift is None else h + at(shift, cursor)
            h = h + expand(layer(shifted, x, None if row is None else at(row, cursor), cursor))
        return h

    def forward(self, x: Tensor | Computed, *context: Tensor) -> Tensor:
        return whole(self, x, context)
