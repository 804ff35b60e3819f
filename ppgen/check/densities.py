"""Densities that integrate to one, and probabilities that sum to one: over everything that there is."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ppgen import decoders, priors
from ppgen import nn as nets
from ppgen.check.rung import Change, Rung, unchanged

__all__ = ["autoregressive", "discretized", "flow_priors"]


def flow_priors(change: Change = unchanged) -> Rung:
    """Flows over a plane integrate to one: a log-determinant that is wrong would show."""
    flows = [priors.Flow.realnvp, priors.Flow.maf, priors.Flow.nsf, priors.Autoregressive]
    built = [change(flow(2, hidden=(16,))) for flow in flows]
    axis = torch.linspace(-20, 20, 1001)
    worst = 0.0
    with torch.no_grad():
        for prior in built:
            log_p = torch.cat([prior().log_prob(z) for z in torch.cartesian_prod(axis, axis).split(50_000)])
            worst = max(worst, abs(log_p.double().exp().sum().item() * (40 / 1000) ** 2 - 1))
    return Rung("flow priors, by quadrature", "largest |∫p − 1|", worst, 2e-3)


def _images(shape: tuple[int, ...], levels: int) -> Tensor:
    """All images of a shape."""
    return torch.tensor(list(itertools.product(range(levels), repeat=math.prod(shape)))).reshape(-1, *shape)


def _total(likelihood: Distribution, images: Tensor) -> float:
    with torch.no_grad():
        return likelihood.log_prob(images).double().exp().sum().item()


def discretized(change: Change = unchanged) -> Rung:
    """Likelihoods of levels sum to one over all images of 2 × 2 pixels, or of two channels."""
    worst = 0.0
    for shape in ((1, 2, 2), (2, 1, 2)):
        images = _images(shape, 4).float()
        kinds: list[tuple[Any, Any]] = [
            (decoders.Categorical.outputs_shape(shape, 4), lambda net: decoders.Categorical(net, 4)),
            (decoders.DiscretizedLogistic.outputs_shape(shape), lambda net: decoders.DiscretizedLogistic(net, 4)),
            (
                decoders.LogisticMixture.outputs_shape(shape, num_components=3),
                lambda net, c=shape[0]: decoders.LogisticMixture(net, c, num_components=3, num_levels=4),
            ),
        ]
        for out_shape, make in kinds:
            likelihood = change(make(nets.MLP(3, 8, out_shape))(2 * torch.randn(1, 3)))
            worst = max(worst, abs(_total(likelihood, images) - 1))
    return Rung("likelihoods of levels, all tiny images", "largest |Σp − 1|", worst, 1e-5)


def autoregressive(change: Change = unchanged) -> Rung:
    """PixelCNNs sum to one over all images: a pixel that saw itself or what follows would show."""
    worst, shape = 0.0, (1, 2, 2)
    images = _images(shape, 3)
    for kind in (nets.PixelCNN, nets.GatedPixelCNN):
        out_shape = decoders.Categorical.outputs_shape(shape, 3)
        net = kind(shape, out_shape, channels=6, num_layers=2, levels=3)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.3 * torch.randn_like(p))  # some start at zero, and would hide what they do
        decoder = decoders.Autoregressive(decoders.Categorical(net, 3))
        worst = max(worst, abs(_total(change(decoder)(), images) - 1))
    return Rung("PixelCNNs, all tiny images", "largest |Σp − 1|", worst, 1e-5)
