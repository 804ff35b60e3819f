"""Autoregressive decoders: images pixel by pixel, given a latent, a label, both, or nothing; on several scales."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen import distributions
from ppgen.nn import as_shape, feed
from ppgen.nn.levels import rescale
from ppgen.nn.shapes import Shape

from .levels import LogisticMixture


class Autoregressive(nn.Module):
    r"""Images drawn pixel by pixel in raster order, each given those before it (PixelCNN, PixelRNN).

    .. math:: p(x \mid z) = \prod_{i} p(x_i \mid x_{<i}, z)

    It is made of a decoder of images whose network sees, beside the contexts, the image itself, through masks:

    - binary images: ``Autoregressive(Bernoulli(net))``;
    - levels, 256-way: ``Autoregressive(Categorical(net, 256))``, the network with ``levels=256``;
    - levels under a mixture of logistics: ``Autoregressive(LogisticMixture(net, 3))``, the network with
      ``levels=256, channels_in_turn=False``, since that mixture's channels depend on each other by themselves;
    - a grid (H, W) of K codes: ``Autoregressive(Categorical(net, K), event_shape=(H, W))``, the network with
      ``categories=K``.

    ``net`` is ``nn.PixelCNN``, ``nn.GatedPixelCNN``, ``nn.PixelRNN``, ... with ``out_shape`` what that decoder's
    ``outputs_shape`` says. The same module is a density by itself, ``models.ExplicitDensity(Autoregressive(...))``; the
    decoder of a VAE (then a PixelVAE), with ``context_shapes=[latent_dim]``; and a prior, of codes for example, given a
    class or not.

    A network that sees much of the image needs no latent, and a VAE with it may leave the latent unused: the KL term is
    then zero (:func:`ppgen.inference.latent_report`). A smaller field (``num_layers``, ``kernel_size``) or free bits,
    ``elbo(free_bits=...)``, mend that.

    References:
        Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016),
        https://arxiv.org/abs/1606.05328
        PixelVAE: A Latent Variable Model for Natural Images (Gulrajani et al., 2017),
        https://arxiv.org/abs/1611.05013
        Variational Lossy Autoencoder (Chen et al., 2017), https://arxiv.org/abs/1611.02731

    Args:
        output: a decoder of images in front of a raster network.
        features: if given, called as ``features(z, *y)``, makes the one context that the network takes, such as a
            ``nn.DeconvNet`` that gives a map (D, H, W).
        event_shape: of x, if it is another arrangement of the network's (C, H, W): (H, W) for a grid of codes, or a
            vector.
        progress: whether sampling shows a progress bar; an attribute that may be set later.

    Shape:
        batch: leading axes of the contexts, event: (C, H, W), or ``event_shape``.

    Raises:
        TypeError: an output that is no decoder in front of a raster network.
        ValueError: an event shape of another number of elements, or channels that depend on each other twice.

    Example:
        >>> import torch
        >>> from ppgen import decoders, nn
        >>> net = nn.GatedPixelCNN((1, 8, 8), (1, 8, 8), channels=8, num_layers=2, context_shapes=[40])
        >>> decoder = Autoregressive(decoders.Bernoulli(net))
        >>> decoder(torch.zeros(5, 100, 40)).log_prob(torch.zeros(100, 1, 8, 8)).shape
        torch.Size([5, 100])
    """

    def __init__(
        self,
        output: nn.Module,
        *,
        features: nn.Module | None = None,
        event_shape: Shape | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__()
        net: Any = getattr(output, "net", None)
        if not all(hasattr(net, name) for name in ("above", "along", "head", "in_shape")):
            raise TypeError(
                "Autoregressive takes a decoder in front of a network over pixels in raster order, such as "
                f"decoders.Bernoulli(nn.GatedPixelCNN(...)), but got {type(output).__name__} of {type(net).__name__}."
            )
        if isinstance(output, LogisticMixture) and net.head.groups > 1:
            raise ValueError(
                "The channels of a mixture of logistics depend on each other by themselves: build its network with "
                "channels_in_turn=False."
            )
        self.output: Any = output
        self.features = features
        self.event_shape: tuple[int, ...] = (
            net.in_shape if event_shape is None else as_shape(event_shape, "event_shape")
        )
        if prod(self.event_shape) != prod(net.in_shape):
            raise ValueError(
                f"event_shape {self.event_shape} has {prod(self.event_shape)} elements, and the network's in_shape "
                f"{net.in_shape} has {prod(net.in_shape)}: they must be the same elements."
            )
        self.progress = progress

    def forward(self, *context: Tensor) -> distributions.AutoregressiveImage:
        if self.features is not None:
            context = (feed(self.features, *context),)
        return distributions.AutoregressiveImage(self.output, context, self.event_shape, progress=self.progress)


class MultiScale(nn.Module):
    r"""Images of which every second pixel, in rows and columns, is drawn first, as an image by itself.

    .. math:: p(x \mid z) = p(x_{\text{small}} \mid z)
        \prod_{i \notin \text{small}} p(x_i \mid x_{<i}, x_{\text{small}}, z), \qquad x_{\text{small}} = x_{::2, ::2}

    For images so large that what one side shows is hard to bring to the other pixel by pixel; ``small`` may be of
    several scales in turn.

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016: Multi-Scale PixelRNN),
        https://arxiv.org/abs/1601.06759

    Args:
        small: the decoder of small images (C, ⌈H/2⌉, ⌈W/2⌉): :class:`Autoregressive`, or another of this kind.
        large: the decoder of the large ones, whose network takes the small image as its last context: a map
            (C, ⌈H/2⌉, ⌈W/2⌉), rescaled as its ``levels`` say.

    Shape:
        batch: leading axes of the contexts, event: (C, H, W).

    Raises:
        ValueError: networks for images of other sizes.

    Example:
        >>> import torch
        >>> from ppgen import decoders, nn
        >>> size, half = (1, 8, 8), (1, 4, 4)
        >>> small = nn.GatedPixelCNN(half, half, channels=8, num_layers=2)
        >>> large = nn.GatedPixelCNN(size, size, channels=8, num_layers=2, context_shapes=[half])
        >>> pair = MultiScale(Autoregressive(decoders.Bernoulli(small)), Autoregressive(decoders.Bernoulli(large)))
        >>> pair().log_prob(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    def __init__(self, small: Autoregressive | MultiScale, large: Autoregressive) -> None:
        super().__init__()
        channels, height, width = large.output.net.in_shape
        half = (channels, -(-height // 2), -(-width // 2))
        contexts = large.output.net.context.shapes
        if tuple(small.event_shape) != half or tuple(large.event_shape) != (channels, height, width):
            raise ValueError(
                f"MultiScale: large is of images {tuple(large.event_shape)}, so small must be of images {half}, but is "
                f"of {tuple(small.event_shape)}."
            )
        if not contexts or contexts[-1] != half:
            raise ValueError(
                f"MultiScale: large takes the small image as its last context, so its network needs context_shapes "
                f"that end in {half}, but they are {contexts}."
            )
        self.small, self.large = small, large
        self.event_shape: tuple[int, ...] = large.event_shape

    def _given(self, context: Sequence[Tensor], small: Tensor) -> distributions.AutoregressiveImage:
        net = self.large.output.net
        return self.large(*context, rescale(small, net.input.levels, net.input.one.dtype))

    def forward(self, *context: Tensor) -> Distribution:
        given = functools.partial(self._given, context)
        return distributions.MultiScaleImage(self.small(*context), given, self.event_shape)
