"""Convolutional networks between images of any size and vectors, in both directions, plain and gated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from ppgen.numbers import natural_number, positive_integer, positive_integers

from .gated import GatedLinear
from .levels import input_levels, rescale
from .shapes import Shape, as_shape, batched, check_event, flatten_event

Layer = Callable[..., nn.Module]


class GatedConv2d(nn.Module):
    r"""Convolution times a sigmoid gate.

    .. math:: y = (W * x + b) \odot \sigma(V * x + c)

    References:
        Language Modeling with Gated Convolutional Networks (Dauphin et al., 2017), https://arxiv.org/abs/1612.08083

    Args:
        convolution: the kind, ``torch.nn.Conv2d`` or ``torch.nn.ConvTranspose2d``.
        arguments: what it takes: channels in, channels out, kernel size, ...
        options: what it takes by name: stride, padding, ...

    Shape:
        (B, C, H, W) to what the convolution makes of it.

    Example:
        >>> import torch
        >>> GatedConv2d(nn.Conv2d, 1, 8, 3, padding=1)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 8, 28, 28])
    """

    def __init__(self, convolution: Layer, *arguments: int, **options: object) -> None:
        super().__init__()
        self.linear = convolution(*arguments, **options)
        self.gate = convolution(*arguments, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.gate(x).sigmoid()


def _convolution(gated: bool, kind: Layer, *arguments: int, **options: object) -> nn.Module:
    if gated:
        return GatedConv2d(kind, *arguments, **options)
    return nn.Sequential(kind(*arguments, **options), nn.ReLU())


def _dense(gated: bool, width_in: int, width_out: int) -> nn.Module:
    return GatedLinear(width_in, width_out) if gated else nn.Sequential(nn.Linear(width_in, width_out), nn.ReLU())


def image_shape(owner: str, name: str, shape: Shape) -> tuple[int, ...]:
    """A shape (channels, height, width); a ValueError for any other."""
    shape = as_shape(shape, name)
    if len(shape) != 3:
        raise ValueError(f"{owner}: {name} must be an image (channels, height, width), got {shape}.")
    return shape


def halvings(size: tuple[int, ...], times: int) -> list[tuple[int, int]]:
    """The sizes of an image that is halved so many times, rounding up: 28, 14, 7, 4."""
    height, width = size
    sizes = [(height, width)]
    for _ in range(times):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def channel_numbers(owner: str, channels: Sequence[int]) -> tuple[int, ...]:
    """The channels of some layers, at least one; a ValueError for none."""
    if not (numbers := positive_integers("channels", channels)):
        raise ValueError(f"{owner}: channels must state at least one number of channels, got none.")
    return numbers


class ConvNet(nn.Module):
    r"""Convolutional network from images to a vector or any other shape.

    Convolutions of stride 2 halve the image (28, 14, 7, ...), each with its number of channels; dense layers follow,
    and take further contexts. Everything in front of the event broadcasts.

    Args:
        in_shape: (channels, height, width), of any size.
        out_shape: event shape of the output.
        channels: channels after each halving.
        hidden: widths of the dense layers behind the convolutions.
        kernel_size: of the convolutions, odd.
        gated: whether all hidden layers are gated; otherwise they are rectified.
        context_dim: numbers that further contexts bring (a label, say), joined to the convolutions' output.
        levels: if given, the input holds integer levels 0, ..., levels - 1, which are mapped to [-1, 1].

    Shape:
        (\*, C, H, W) and contexts (\*, D) to (\*, \*out_shape).

    Raises:
        ValueError: an input shape that is no image, an even kernel size, or an input of another shape.

    Example:
        >>> import torch
        >>> ConvNet((3, 32, 32), 80)(torch.zeros(5, 100, 3, 32, 32)).shape
        torch.Size([5, 100, 80])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (256,),
        kernel_size: int = 5,
        gated: bool = False,
        context_dim: int = 0,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = image_shape("ConvNet", "in_shape", in_shape)
        self.out_shape = as_shape(out_shape, "out_shape")
        self.context_dim = natural_number("context_dim", context_dim)
        self.levels = input_levels(levels)
        channels, hidden = positive_integers("channels", channels), positive_integers("hidden", hidden)
        padding = _padding(kernel_size)
        self.convolutions = nn.Sequential(
            *(
                _convolution(gated, nn.Conv2d, a, b, kernel_size, stride=2, padding=padding)
                for a, b in pairwise((self.in_shape[0], *channels))
            )
        )
        self.smallest = ((self.in_shape[0], *channels)[-1], *halvings(self.in_shape[1:], len(channels))[-1])
        widths = (prod(self.smallest) + context_dim, *hidden)
        self.dense = nn.Sequential(*(_dense(gated, a, b) for a, b in pairwise(widths)))
        self.output = nn.Linear(widths[-1], prod(self.out_shape))
        _initialize(self)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        check_event(x, self.in_shape, f"ConvNet(in_shape={self.in_shape})")
        x = rescale(x, self.levels, self.output.weight.dtype)
        features = batched(self.convolutions, x, 3)
        width = prod(self.smallest) + self.context_dim
        features = flatten_event(features, context, self.smallest, width, "ConvNet behind its convolutions")
        return self.output(self.dense(features)).unflatten(-1, self.out_shape)

    def extra_repr(self) -> str:
        return f"in_shape={self.in_shape}, out_shape={self.out_shape}"


class DeconvNet(nn.Module):
    r"""Convolutional network from vectors or any other shape to images.

    The reverse of :class:`ConvNet`: dense layers, then transposed convolutions of stride 2 that double a small image
    up to the size wanted, which may be any (7, 14, 28 or 4, 7, 14, 28, ...), and a convolution to its channels.

    Args:
        in_shape: event shape of the input.
        out_shape: (channels, height, width), of any size.
        channels: channels before each doubling.
        hidden: widths of the dense layers in front of the convolutions.
        kernel_size: of the convolutions, odd.
        gated: whether all hidden layers are gated; otherwise they are rectified.
        context_dim: numbers that further contexts bring (a label, say), joined to the flattened input.

    Shape:
        (\*, \*in_shape) and contexts (\*, D) to (\*, C, H, W).

    Raises:
        ValueError: an output shape that is no image, an even kernel size, or an input of another shape.

    Example:
        >>> import torch
        >>> DeconvNet(40, (1, 28, 20))(torch.zeros(5, 100, 40)).shape
        torch.Size([5, 100, 1, 28, 20])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: Sequence[int] = (64, 32),
        hidden: Sequence[int] = (256,),
        kernel_size: int = 5,
        gated: bool = False,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = as_shape(in_shape, "in_shape")
        self.out_shape = image_shape("DeconvNet", "out_shape", out_shape)
        self.context_dim = natural_number("context_dim", context_dim)
        padding = _padding(kernel_size)
        channels, hidden = channel_numbers("DeconvNet", channels), positive_integers("hidden", hidden)
        sizes = halvings(self.out_shape[1:], len(channels))[::-1]
        self.smallest = (channels[0], *sizes[0])
        widths = (prod(self.in_shape) + context_dim, *hidden, prod(self.smallest))
        self.dense = nn.Sequential(*(_dense(gated, a, b) for a, b in pairwise(widths)))
        steps = []
        for (a, b), (small, large) in zip(pairwise((*channels, channels[-1])), pairwise(sizes), strict=True):
            # One of two sizes halves to the small one: 2 n or 2 n - 1.
            extra = tuple(big - (2 * little - 1) for big, little in zip(large, small, strict=True))
            kind = nn.ConvTranspose2d
            options = {"stride": 2, "padding": padding, "output_padding": extra}
            steps.append(_convolution(gated, kind, a, b, kernel_size, **options))
        self.convolutions = nn.Sequential(*steps)
        self.output = nn.Conv2d(channels[-1], self.out_shape[0], kernel_size, padding=padding)
        _initialize(self)

    def forward(self, z: Tensor, *context: Tensor) -> Tensor:
        width = prod(self.in_shape) + self.context_dim
        z = rescale(z, None, self.output.weight.dtype)
        z = flatten_event(z, context, self.in_shape, width, f"DeconvNet(in_shape={self.in_shape})")
        small = self.dense(z).unflatten(-1, self.smallest)
        return batched(lambda h: self.output(self.convolutions(h)), small, 3)

    def extra_repr(self) -> str:
        return f"in_shape={self.in_shape}, out_shape={self.out_shape}"


def _padding(kernel_size: int) -> int:
    if positive_integer("kernel_size", kernel_size) % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that strides halve images exactly, got {kernel_size}.")
    return kernel_size // 2


def _initialize(net: nn.Module) -> None:
    """He's rule; with torch's own the signal is gone after these many layers."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
