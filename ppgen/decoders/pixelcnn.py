"""Autoregressive decoders: images pixel by pixel, given a latent, a label, both, or nothing."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from ppgen import distributions
from ppgen.nn import as_shape, feed
from ppgen.nn.shapes import Shape

from .levels import LogisticMixture


class Autoregressive(nn.Module):
    r"""Images whose pixels are drawn in raster order, each given those before it: a PixelCNN or a PixelRNN.

    .. math:: p(x \mid z) = \prod_{i} p(x_i \mid x_{<i}, z)

    It is made of a decoder of images whose network sees, beside the contexts, the image itself, through masks:

    - binary images: ``Autoregressive(Bernoulli(net))``;
    - levels, 256-way: ``Autoregressive(Categorical(net, 256))``, the network with ``levels=256``;
    - levels under a mixture of logistics: ``Autoregressive(LogisticMixture(net, 3))``, the network with
      ``levels=256, channels_in_turn=False``, since that mixture's channels depend on each other by themselves;
    - a grid (H, W) of K codes: ``Autoregressive(Categorical(net, K), event_shape=(H, W))``, the network with
      ``categories=K``.

    ``net`` is ``nn.PixelCNN``, ``nn.GatedPixelCNN``, ``nn.RowLSTM``, ... with ``out_shape`` what that decoder's
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
        self.output = output
        self.features = features
        self.event_shape = net.in_shape if event_shape is None else as_shape(event_shape, "event_shape")
        if prod(self.event_shape) != prod(net.in_shape):
            raise ValueError(
                f"event_shape {self.event_shape} has {prod(self.event_shape)} elements, and the network's in_shape "
                f"{net.in_shape} has {prod(net.in_shape)}: they must be the same elements."
            )
        self.progress = progress

    def forward(self, *context: Tensor) -> Distribution:
        if self.features is not None:
            context = (feed(self.features, *context),)
        return distributions.AutoregressiveImage(self.output, context, self.event_shape, progress=self.progress)
