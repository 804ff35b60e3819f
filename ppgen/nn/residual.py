"""Residual convolutional networks from image to image, which keep the places of things."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen.numbers import positive_integer

from .conv import image_shape
from .levels import input_levels, rescale
from .shapes import Shape, as_shape, batched, check_event


class _Block(nn.Module):
    """h + W₂ relu(W₁ * relu(h)), with a narrow middle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, max(1, channels // 2), 3, padding=1)
        self.narrow = nn.Conv2d(max(1, channels // 2), channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.narrow(self.wide(h.relu()).relu())


class _Halve(nn.Conv2d):
    """Half of the size, rounded up."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 4, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(functional.pad(h, (0, h.shape[-1] % 2, 0, h.shape[-2] % 2)))


class _Double(nn.ConvTranspose2d):
    """Twice the size, or one less."""

    def __init__(self, channels_in: int, channels_out: int, size: tuple[int, int]) -> None:
        super().__init__(channels_in, channels_out, 4, stride=2, padding=1)
        self.size = size

    def forward(self, h: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(h, output_size)[..., : self.size[0], : self.size[1]]


class ResidualConvNet(nn.Module):
    r"""Residual convolutional network between images of two sizes, down or up by any number of halvings.

    Convolutions of stride 2 halve the image (28, 14, 7, ...), or transposed ones double it, and residual blocks work at
    the smaller size: the encoder and the decoder of the VQ-VAE, whose latents are images, too. With equal sizes it is
    a residual network at that size.

    Further inputs are joined to the image as channels: vectors are repeated at every place, images of other sizes are
    scaled to it by their nearest neighbours.

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017),
        https://arxiv.org/abs/1711.00937
        Deep Residual Learning for Image Recognition (He et al., 2016), https://arxiv.org/abs/1512.03385

    Args:
        in_shape: (channels, height, width).
        out_shape: (channels, height, width), smaller or larger by halvings of both axes, odd sizes rounded up.
        channels: of the hidden layers at the smaller size; each doubling in size halves them.
        num_blocks: residual blocks.
        context_shapes: event shapes of further inputs: (D,), or (channels, height, width) of any size.
        levels: if given, the input holds integer levels 0, ..., levels - 1, which are mapped to [-1, 1].

    Shape:
        (\*, \*in_shape) and contexts (\*, \*context_shapes[i]), leading axes broadcast, to (\*, \*out_shape).

    Raises:
        ValueError: shapes that are no images or no halvings of each other, or inputs of other shapes or another number.

    Example:
        >>> encoder = ResidualConvNet((1, 28, 28), (16, 7, 7))
        >>> encoder(torch.zeros(5, 100, 1, 28, 28)).shape
        torch.Size([5, 100, 16, 7, 7])
        >>> decoder = ResidualConvNet((16, 14, 14), (1, 28, 28), context_shapes=[(16, 7, 7), 10])
        >>> decoder(torch.zeros(5, 16, 14, 14), torch.zeros(5, 16, 7, 7), torch.zeros(5, 10)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: int = 64,
        num_blocks: int = 2,
        context_shapes: Sequence[Shape] = (),
        levels: int | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = image_shape("ResidualConvNet", "in_shape", in_shape)
        self.out_shape = image_shape("ResidualConvNet", "out_shape", out_shape)
        self.context_shapes = [as_shape(shape, "context_shapes") for shape in context_shapes]
        self.levels = input_levels(levels)
        positive_integer("channels", channels)
        if any(len(shape) not in (1, 3) for shape in self.context_shapes):
            raise ValueError(
                f"ResidualConvNet: context_shapes must be vectors or images (channels, height, width), got "
                f"{self.context_shapes}."
            )
        down = self.in_shape[1:] >= self.out_shape[1:]  # by the first side that differs: a side of 1 stays 1
        large, small = (self.in_shape, self.out_shape) if down else (self.out_shape, self.in_shape)
        sizes = _between(large[1:], small[1:])
        widths = [max(1, channels >> i) for i in range(len(sizes) - 1)]  # from the smallest image to the largest
        entry = sum(shape[0] for shape in (self.in_shape, *self.context_shapes))
        blocks = [*(_Block(channels) for _ in range(positive_integer("num_blocks", num_blocks))), nn.ReLU()]
        layers: list[nn.Module] = []
        if down:
            for width in reversed(widths):
                layers += [_Halve(entry, width), nn.ReLU()]
                entry = width
            layers += [nn.Conv2d(entry, channels, 3, padding=1), *blocks, nn.Conv2d(channels, self.out_shape[0], 1)]
        else:
            layers += [nn.Conv2d(entry, channels, 3, padding=1), *blocks]
            for width, size in zip([*widths[1:], self.out_shape[0]], reversed(sizes[:-1]), strict=True):
                layers += [_Double(channels, width, size), nn.ReLU()]
                channels = width
            layers.pop()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        owner = f"ResidualConvNet(in_shape={self.in_shape})"
        check_event(x, self.in_shape, owner)
        if len(context) != len(self.context_shapes):
            raise ValueError(
                f"{owner} takes {len(self.context_shapes)} contexts, of shapes {self.context_shapes}, but was given "
                f"{len(context)}, of shapes {[tuple(c.shape) for c in context]}: build it with context_shapes for each."
            )
        dtype = next(self.parameters()).dtype
        maps = [rescale(x, self.levels, dtype)]
        for c, shape in zip(context, self.context_shapes, strict=True):
            check_event(c, shape, f"A context of {owner}")
            c = rescale(c, None, dtype)
            maps.append(c[..., None, None] if len(shape) == 1 else self._resized(c))
        lead = torch.broadcast_shapes(*(m.shape[:-3] for m in maps))
        joined = torch.cat([m.expand(*lead, m.shape[-3], *self.in_shape[1:]) for m in maps], -3)
        return batched(self.layers, joined, 3)

    def _resized(self, image: Tensor) -> Tensor:
        size = list(self.in_shape[1:])
        return batched(lambda i: functional.interpolate(i, size=size, mode="nearest"), image, 3)

    def extra_repr(self) -> str:
        return f"in_shape={self.in_shape}, out_shape={self.out_shape}"


def _between(large: tuple[int, ...], small: tuple[int, ...]) -> list[tuple[int, int]]:
    """The sizes from the large to the small one by halving, rounding up: 28, 14, 7."""
    (height, width), (last_height, last_width) = large, small
    sizes = [(height, width)]
    while height > last_height or width > last_width:
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    if (height, width) != (last_height, last_width):
        raise ValueError(
            f"ResidualConvNet: {tuple(small)} is no halving of {tuple(large)}, which goes {sizes}: both axes must be "
            "halved alike, odd sizes rounded up."
        )
    return sizes
