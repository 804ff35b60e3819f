"""The protocol of the VampPrior paper's experiments: data, networks, optimiser, schedule and stopping.

Facts are those of the paper and of its authors' repository (github.com/jmtomczak/vae_vampprior, bb6ff3e). Every linear
layer of a published network is drawn by He's rule, a network for a Gaussian ends in one linear layer for the means and
another for the log-variances (the optimiser normalises the gradient of each by itself), and log-variances are clamped
to [−6, 2].

Where this departs from the authors' code: the KL term's coefficient rises from step to step (theirs from epoch to
epoch); early stopping waits for 50 epochs (51), looks at the losses behind the warm-up only (at all), and at validation
data with the same noise every time (with fresh noise); probabilities are not clamped at 1e-5; Adam's epsilon is added
behind its correction of the bias; and the outermost grey levels reach to infinity, so that probabilities sum to one.
Flows, the PixelCNN and the PixelVAE are no part of the protocol, which lends them its optimiser and its stopping.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppgen import data, decoders, models, posteriors, priors
from ppgen.inference import elbo, normalize_gradients, warmup
from ppgen.nn import DeconvNet, GatedConv2d, GatedLinear, GatedPixelCNN, concat, feed
from ppgen.nn.shapes import batched

Prior = Callable[..., nn.Module]  # of the settings, a posterior for components, the event shape and the levels
Posterior = Callable[..., Any]  # of an encoder, which makes a network of so many outputs, and latent_dim
LOG_SCALES: dict[str, Any] = {"log_scale_range": (-3.0, 1.0)}  # log σ² in [−6, 2]


class Settings(NamedTuple):
    """The numbers of the protocol."""

    latent_dim: int = 40
    hidden: int = 300
    num_components: int = 500
    batch_size: int = 100
    lr: float = 5e-4
    warmup: int = 100
    patience: int = 50
    epochs: int = 2000
    num_samples: int = 5000


QUICK = Settings(
    latent_dim=4, hidden=16, num_components=10, lr=5e-3, warmup=1, patience=2, epochs=3, num_samples=50
)  # for tests, on scikit-learn's digits


def load(name: str, quick: bool = False) -> Any:
    """Data as the protocol has them: MNIST binarised anew at every use, its other two parts once; others as levels.

    Raises:
        RuntimeError: the binarised validation or test images are not those of the protocol.
    """
    binarize = "dynamic" if name == "mnist" else "none"
    return data.load("digits" if quick else name, binarize=binarize)


def objective(settings: Settings) -> nn.Module:
    """The ELBO, its KL term warmed up linearly; validation looks at it without."""
    return elbo(beta=warmup(settings.warmup))


def optimizer(settings: Settings) -> Callable[[Any], torch.optim.Optimizer]:
    """Adam on gradients that are normalised tensor by tensor."""
    return lambda parameters: normalize_gradients(torch.optim.Adam(parameters, lr=settings.lr, fused=True))


def _he(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight)


class Dense(nn.Module):
    """Two gated layers. Several inputs have a first layer each; images of integer levels are mapped into (0, 1)."""

    def __init__(self, *in_shapes: tuple[int, ...], width: int = 300, levels: int | None = None) -> None:
        super().__init__()
        self.in_shapes, self.in_shape, self.levels = in_shapes, in_shapes[0], levels
        self.first = nn.ModuleList(GatedLinear(prod(shape), width) for shape in in_shapes)
        self.joint = GatedLinear(width * len(in_shapes), width)

    def forward(self, *inputs: Tensor) -> Tensor:
        first, *others = inputs
        first = first.to(self.joint.linear.weight.dtype)
        if self.levels:
            first = (first + 0.5) / self.levels
        flat = [x.flatten(-len(s)) for x, s in zip((first, *others), self.in_shapes, strict=True)]
        return self.joint(concat(*(layer(x) for layer, x in zip(self.first, flat, strict=True))))


class Convolutions(nn.Module):
    """Five gated convolutions of an image, whose result meets the other inputs in one gated layer if there are any."""

    def __init__(self, in_shape: tuple[int, int, int], *others: int, kernels: tuple[int, int], width: int) -> None:
        super().__init__()
        self.in_shape = in_shape
        (first, third), (channels, height, side) = kernels, in_shape
        sizes = ((channels, 32, first, 1), (32, 32, 3, 2), (32, 64, third, 1), (64, 64, 3, 2), (64, 6, 3, 1))
        self.convolutions = nn.Sequential(
            *(GatedConv2d(nn.Conv2d, a, b, k, stride=s, padding=k // 2) for a, b, k, s in sizes)
        )
        features = 6 * -(-height // 4) * -(-side // 4)
        self.others = nn.ModuleList(GatedLinear(other, features) for other in others)
        self.joint = GatedLinear(features * (1 + len(others)), width) if others else nn.Identity()
        self.num_outputs = width if others else features

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        features = batched(self.convolutions, x, 3).flatten(-3)
        return self.joint(concat(features, *(layer(z) for layer, z in zip(self.others, others, strict=True))))


class Heads(nn.Module):
    """A linear layer for the means, one for the log-variances, and one for what else a posterior needs."""

    def __init__(self, body: nn.Module, width: int, latent_dim: int, others: int = 0) -> None:
        super().__init__()
        self.body, self.in_shape = body, body.in_shape
        self.loc, self.log_variance = nn.Linear(width, latent_dim), nn.Linear(width, latent_dim)
        self.others = nn.Linear(width, others) if others else None
        _he(self)

    def forward(self, *inputs: Tensor) -> Tensor:
        h = feed(self.body, *inputs)
        found = [self.loc(h), self.log_variance(h) / 2]
        return torch.cat(found if self.others is None else [*found, self.others(h)], -1)


class Pixels(nn.Module):
    """A number for each pixel, linear in the features; for levels a location in (0, 1) and a bounded log-scale."""

    def __init__(self, body: nn.Module, width: int, shape: tuple[int, ...], levels: int | None) -> None:
        super().__init__()
        self.body = body
        self.loc = nn.Linear(width, prod(shape))
        self.log_scale = nn.Linear(width, prod(shape)) if levels else None
        self.shape, self.out_shape = shape, (shape[0] * (2 if levels else 1), *shape[1:])
        _he(self)

    def forward(self, *inputs: Tensor) -> Tensor:
        h = feed(self.body, *inputs)
        loc = self.loc(h).unflatten(-1, self.shape)
        if self.log_scale is None:
            return loc
        log_scale = self.log_scale(h).clamp(-4.5, 0.0).unflatten(-1, self.shape)
        loc = loc.sigmoid().clamp(1 / 512, 1 - 1 / 512)
        return torch.cat([2 * loc - 1, log_scale + torch.tensor(2.0).log()], -len(self.shape))  # of [−1, 1]


class Images(nn.Module):
    """Two latents to an image: a gated layer each, a dense one to the image's size, and gated convolutions."""

    def __init__(self, latent_dim: int, width: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = self.out_shape = shape
        self.first = nn.ModuleList(GatedLinear(latent_dim, width) for _ in range(2))
        self.joint = GatedLinear(2 * width, prod(shape))
        layers = [GatedConv2d(nn.Conv2d, a, 64, 3, padding=1) for a in (shape[0], 64, 64, 64)]
        self.convolutions = nn.Sequential(*layers, nn.Conv2d(64, shape[0], 1))
        _he(self)

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        h = self.joint(concat(self.first[0](z1), self.first[1](z2)))
        return batched(self.convolutions, h.unflatten(-1, self.shape), 3)


def one_layer(x: data.Dataset, s: Settings, prior: Prior, posterior: Posterior) -> models.VAE:
    """The VAE with one layer of latents."""
    shape, levels = x.event_shape, x.num_levels if x.num_levels != 2 else None

    def encoder(num_outputs: int) -> Heads:
        others = num_outputs - 2 * s.latent_dim
        return Heads(Dense(shape, width=s.hidden, levels=levels), s.hidden, s.latent_dim, others)

    q = posterior(encoder, s.latent_dim)
    # A VampPrior's components must score foreign values: it has a diagonal encoder of its own where q does not.
    component = q if q.scores_foreign_values else diagonal(encoder, s.latent_dim)
    pixels = Pixels(Dense((s.latent_dim,), width=s.hidden), s.hidden, shape, levels)
    decoder = decoders.DiscretizedLogistic(pixels, levels) if levels else decoders.Bernoulli(pixels)
    return models.VAE(prior(s, component, shape, levels), decoder, q)


def two_layers(x: data.Dataset, s: Settings, prior: Prior, *, convolutional: bool = False) -> models.HierarchicalVAE:
    """The VAE with two layers of Gaussian latents, dense or convolutional; the prior is the upper one's."""
    shape, d, width = x.event_shape, s.latent_dim, s.hidden
    q1, q2, pixels = (_convolutional if convolutional else _dense)(shape, d, width)
    top = posteriors.DiagNormal(q2, d, **LOG_SCALES)
    bottom = posteriors.DiagNormal(q1, d, **LOG_SCALES)
    between = priors.DiagNormal(d, Heads(Dense((d,), width=width), width, d), **LOG_SCALES)
    decoder = decoders.Bernoulli(pixels)
    return models.HierarchicalVAE(prior(s, top, shape, None), [between], decoder, [bottom, top])


def _dense(shape: tuple[int, ...], d: int, width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return (
        Heads(Dense(shape, (d,), width=width), width, d),
        Heads(Dense(shape, width=width), width, d),
        Pixels(Dense((d,), (d,), width=width), width, shape, None),
    )


def _convolutional(shape: tuple[int, ...], d: int, width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    below, above = Convolutions(shape, d, kernels=(3, 3), width=width), Convolutions(shape, kernels=(7, 5), width=width)
    return Heads(below, width, d), Heads(above, above.num_outputs, d), Images(d, width, shape)


def pixelcnn(x: data.Dataset, s: Settings) -> models.ExplicitDensity:
    """A gated PixelCNN of 7 layers; the protocol has none, and gives it its optimiser and its stopping."""
    net = GatedPixelCNN(x.event_shape, x.event_shape, channels=32, num_layers=7, levels=None)
    return models.ExplicitDensity(decoders.Autoregressive(decoders.Bernoulli(net)))


def pixelvae(x: data.Dataset, s: Settings, prior: Prior) -> models.VAE:
    """The one-layer VAE's encoder, and a gated PixelCNN of 3 layers that sees the latent as a map."""
    shape, features = x.event_shape, (8, *x.event_shape[1:])
    net = GatedPixelCNN(shape, shape, channels=32, num_layers=3, levels=None, context_shapes=[features])
    pixels = decoders.Autoregressive(decoders.Bernoulli(net), features=DeconvNet(s.latent_dim, features, gated=True))
    q = diagonal(lambda _: Heads(Dense(shape, width=s.hidden), s.hidden, s.latent_dim), s.latent_dim)
    return models.VAE(prior(s, q, shape, None), pixels, q)


def of(kind: Any, sizes: dict[str, Any] | None = None, **options: Any) -> Posterior:
    """A posterior of the library behind the published encoder; ``sizes`` are what its number of outputs depends on."""
    sizes = sizes or {}

    def posterior(encoder: Callable[[int], nn.Module], d: int) -> Any:
        return kind(encoder(kind.num_outputs(d, **sizes)), d, **sizes, **options, **LOG_SCALES)

    return posterior


diagonal = of(posteriors.DiagNormal)


def standard(s: Settings, q: nn.Module, shape: tuple[int, ...], levels: int | None) -> nn.Module:
    return priors.StandardNormal(s.latent_dim)


def mixture(s: Settings, q: nn.Module, shape: tuple[int, ...], levels: int | None) -> nn.Module:
    return priors.MixtureOfGaussians(s.num_components, s.latent_dim)


def flow(s: Settings, q: nn.Module, shape: tuple[int, ...], levels: int | None) -> nn.Module:
    return priors.Flow.maf(s.latent_dim, num_transforms=3, hidden=(128, 128))


def vamp(s: Settings, q: nn.Module, shape: tuple[int, ...], levels: int | None) -> nn.Module:
    """Pseudo-inputs from N(0.05, 0.01²) for binary images; from N(0.5, 0.02²) for grey ones, on [0, 1] as published."""
    if not levels:
        return priors.VampPrior(q, num_components=s.num_components, shape=shape)
    return priors.VampPrior(OfUnit(q, levels), 0.5 + 0.02 * torch.randn(s.num_components, *shape))


class OfUnit(nn.Module):
    """A posterior of integer levels as one of values in [0, 1], where the learning rate is meant for."""

    def __init__(self, posterior: nn.Module, levels: int) -> None:
        super().__init__()
        self.posterior, self.levels = posterior, levels

    def forward(self, x: Tensor) -> Any:
        return self.posterior(x * self.levels - 0.5)
