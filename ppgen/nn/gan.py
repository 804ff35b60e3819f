"""The bodies of generative adversarial networks for images: DCGAN's generator and discriminator, spectral norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ppgen.numbers import natural_number

from .conv import channel_numbers, halvings, image_shape
from .levels import rescale
from .shapes import Shape, as_shape, batched, check_event, flatten_event

Norm = Callable[[int], nn.Module]


class DCGANGenerator(nn.Module):
    r"""DCGAN's generator: transposed convolutions, rectifiers, and a hyperbolic tangent.

    The latent becomes a small image of many channels, which is doubled (7, 14, 28 or 4, 7, 14, 28, ...) up to the size
    wanted. Weights start from N(0, 0.02²), without normalisation by He's rule.

    References:
        Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks
        (Radford, Metz & Chintala, 2015), https://arxiv.org/abs/1511.06434

    Args:
        in_shape: event shape of the latent.
        out_shape: (channels, height, width), of any size.
        channels: channels before each doubling.
        context_dim: numbers that further contexts bring (a one-hot label, say), joined to the latent.
        norm: from a number of channels to the layer between convolution and rectifier; None for none.

    Shape:
        (\*, \*in_shape) and contexts (\*, D) to (\*, C, H, W), in (−1, 1).

    Raises:
        ValueError: an output shape that is no image, no channels, or an input of another shape.

    Example:
        >>> DCGANGenerator(64, (1, 28, 28))(torch.zeros(5, 64)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: Sequence[int] = (128, 64),
        context_dim: int = 0,
        norm: Norm | None = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.in_shape = as_shape(in_shape, "in_shape")
        self.out_shape = image_shape("DCGANGenerator", "out_shape", out_shape)
        self.context_dim = natural_number("context_dim", context_dim)
        channels = channel_numbers("DCGANGenerator", channels)
        sizes = halvings(self.out_shape[1:], len(channels))[::-1]
        self.smallest = (channels[0], *sizes[0])
        self.dense = nn.Linear(prod(self.in_shape) + context_dim, prod(self.smallest), bias=norm is None)
        layers: list[nn.Module] = [*_between(norm, channels[0]), nn.ReLU()]
        for (a, b), large in zip(pairwise(channels), sizes[1:-1], strict=True):
            layers.append(nn.ConvTranspose2d(a, b, _kernel(large), stride=2, padding=1, bias=norm is None))
            layers += [*_between(norm, b), nn.ReLU()]
        layers.append(nn.ConvTranspose2d(channels[-1], self.out_shape[0], _kernel(sizes[-1]), stride=2, padding=1))
        layers.append(nn.Tanh())
        self.convolutions = nn.Sequential(*layers)
        _initialize(self, norm)

    def forward(self, z: Tensor, *context: Tensor) -> Tensor:
        width = prod(self.in_shape) + self.context_dim
        z = rescale(z, None, self.dense.weight.dtype)
        z = flatten_event(z, context, self.in_shape, width, f"DCGANGenerator(in_shape={self.in_shape})")
        return batched(self.convolutions, self.dense(z).unflatten(-1, self.smallest), 3)

    def extra_repr(self) -> str:
        return f"in_shape={self.in_shape}, out_shape={self.out_shape}"


class DCGANDiscriminator(nn.Module):
    r"""DCGAN's discriminator: strided convolutions, leaky rectifiers, and a linear score.

    As the critic of a Wasserstein GAN with gradient penalty, it takes ``norm=None`` (or a layer norm, such as
    ``lambda channels: torch.nn.GroupNorm(1, channels)``): batch normalisation makes the score of an image depend on
    the others of its batch, and the penalty asks for each image's own gradient.

    References:
        Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks
        (Radford, Metz & Chintala, 2015), https://arxiv.org/abs/1511.06434

    Args:
        in_shape: (channels, height, width), of any size.
        out_shape: event shape of the output: 1 for a score, 1 + K for a score and the logits of K classes.
        channels: channels after each halving.
        context_dim: numbers that further contexts bring (a one-hot label, a latent). Each becomes a constant channel of
            the input, so that it meets the image in every layer.
        norm: from a number of channels to the layer between convolution and rectifier, except in the first; None for
            none.

    Shape:
        (\*, C, H, W) and contexts (\*, D) to (\*, \*out_shape).

    Raises:
        ValueError: an input shape that is no image, no channels, or an input of another shape.

    Example:
        >>> discriminator = DCGANDiscriminator((1, 28, 28), context_dim=10)
        >>> discriminator(torch.zeros(5, 1, 28, 28), torch.zeros(5, 10)).shape
        torch.Size([5, 1])
        >>> discriminator.features(torch.zeros(5, 1, 28, 28), torch.zeros(5, 10)).shape
        torch.Size([5, 6272])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape = 1,
        *,
        channels: Sequence[int] = (64, 128),
        context_dim: int = 0,
        norm: Norm | None = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.in_shape = image_shape("DCGANDiscriminator", "in_shape", in_shape)
        self.out_shape = as_shape(out_shape, "out_shape")
        self.context_dim = natural_number("context_dim", context_dim)
        channels = channel_numbers("DCGANDiscriminator", channels)
        sizes = halvings(self.in_shape[1:], len(channels))
        layers: list[nn.Module] = []
        for i, ((a, b), large) in enumerate(
            zip(pairwise((self.in_shape[0] + context_dim, *channels)), sizes[:-1], strict=True)
        ):
            between = [] if i == 0 else _between(norm, b)
            layers.append(nn.Conv2d(a, b, _kernel(large), stride=2, padding=1, bias=not between))
            layers += [*between, nn.LeakyReLU(0.2)]
        self.convolutions = nn.Sequential(*layers)
        self.output = nn.Linear(channels[-1] * prod(sizes[-1]), prod(self.out_shape))
        _initialize(self, norm)

    def features(self, x: Tensor, *context: Tensor) -> Tensor:
        """The last hidden layer, as vectors."""
        check_event(x, self.in_shape, f"DCGANDiscriminator(in_shape={self.in_shape})")
        if context:
            vector = flatten_event(
                context[0], context[1:], (self.context_dim,), self.context_dim, "DCGANDiscriminator's context"
            )
            lead = torch.broadcast_shapes(x.shape[:-3], vector.shape[:-1])
            planes = vector[..., None, None].expand(*lead, -1, *self.in_shape[1:])
            x = torch.cat([x.expand(*lead, *self.in_shape), planes], -3)
        return batched(self.convolutions, x, 3).flatten(-3)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        return self.output(self.features(x, *context)).unflatten(-1, self.out_shape)

    def extra_repr(self) -> str:
        return f"in_shape={self.in_shape}, out_shape={self.out_shape}"


def spectrally_normalized(net: nn.Module) -> nn.Module:
    r"""The same network with every dense and convolutional weight divided by its largest singular value.

    .. math:: \bar W = W / \sigma(W)

    Each such layer then changes no distance by more than a factor of 1 (a convolution: about that), and so does the
    network behind rectifiers: a discriminator that cannot become arbitrarily steep. The singular value is torch's, by
    one step of the power method at each forward pass in train mode.

    References:
        Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018),
        https://arxiv.org/abs/1802.05957

    Args:
        net: changed in place, and returned.

    Raises:
        ValueError: there is nothing to normalise in it.

    Example:
        >>> layer = spectrally_normalized(nn.Linear(20, 30)).eval()
        >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 1)
        1.0
    """
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    if not layers:
        raise ValueError(f"{type(net).__name__} has no dense or convolutional layer to normalise.")
    for layer in layers:
        spectral_norm(layer)
    return net


def _between(norm: Norm | None, channels: int) -> list[nn.Module]:
    return [] if norm is None else [norm(channels)]


def _kernel(large: tuple[int, int]) -> tuple[int, int]:
    """With stride 2 and padding 1, kernels of 4 go between 2 n and n, kernels of 3 between 2 n − 1 and n."""
    height, width = (4 if side % 2 == 0 else 3 for side in large)
    return height, width


def _initialize(net: nn.Module, norm: Norm | None) -> None:
    """DCGAN's rule; He's where no normalisation brings the signal back to size: scores hardly depended on images."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            if norm is None:
                nn.init.kaiming_normal_(module.weight, a=0.2)
            else:
                nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
