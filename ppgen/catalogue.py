"""The parts by the names that the command line uses, and models made of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import nn as torch_nn

from ppgen import decoders, models, nn, posteriors, priors

__all__ = ["POSTERIORS", "PRIORS", "Recipe", "lookup"]


class Part(NamedTuple):
    """A part's constructor, and what to say of it."""

    build: Callable[..., torch_nn.Module]
    line: str
    paper: str


@dataclass(frozen=True)
class Recipe:
    """Everything that a VAE is made of; a run's ``config.json`` holds one.

    Args:
        prior: a name in :data:`PRIORS`.
        posterior: a name in :data:`POSTERIORS`.
        shape: event shape of the data.
        latent_dim: coordinates of the latent.
        num_components: of a mixture or a VampPrior.
        hidden: sizes of the networks' hidden layers.
    """

    prior: str
    posterior: str
    shape: tuple[int, ...]
    latent_dim: int = 40
    num_components: int = 500
    hidden: tuple[int, ...] = (300, 300)
    model: str = field(default="vae", kw_only=True)

    def __post_init__(self) -> None:
        lookup("model", self.model, ("vae",))
        lookup("prior", self.prior, PRIORS)
        lookup("posterior", self.posterior, POSTERIORS)
        for name in ("latent_dim", "num_components"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}.")
        for name in ("shape", "hidden"):
            sizes = tuple(getattr(self, name))
            if not sizes or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
                raise ValueError(f"{name} must be positive whole numbers, got {sizes}.")
            object.__setattr__(self, name, sizes)

    def encoder(self, num_outputs: int) -> torch_nn.Module:
        """A gated network from data to so many numbers."""
        return nn.GatedMLP(self.shape, *self.hidden, num_outputs)

    def build(self, pseudo_inputs: Tensor | None = None) -> models.VAE:
        """The model, with fresh parameters from torch's generator; pseudo-inputs start from data if any are given."""
        decoder = decoders.Bernoulli(nn.GatedMLP(self.latent_dim, *reversed(self.hidden), self.shape))
        posterior = POSTERIORS[self.posterior].build(self)
        prior = PRIORS[self.prior].build(self, posterior, pseudo_inputs)
        return models.VAE(prior, decoder, posterior)

    @property
    def note(self) -> str | None:
        """What should be said about this combination, if anything."""
        if self.prior == "vamp" and self.posterior == "iaf":
            return (
                "an IAF scores values drawn elsewhere in as many passes as dimensions, "
                "so this VampPrior has a diagonal encoder of its own"
            )
        return None

    def settings(self) -> dict[str, Any]:
        """The recipe as plain values, for JSON."""
        return asdict(self)


def _standard(recipe: Recipe, posterior: torch_nn.Module, pseudo_inputs: Tensor | None) -> torch_nn.Module:
    return priors.StandardNormal(recipe.latent_dim)


def _mog(recipe: Recipe, posterior: torch_nn.Module, pseudo_inputs: Tensor | None) -> torch_nn.Module:
    return priors.MixtureOfGaussians(recipe.num_components, recipe.latent_dim)


def _vamp(recipe: Recipe, posterior: torch_nn.Module, pseudo_inputs: Tensor | None) -> torch_nn.Module:
    own = _diagonal(recipe) if recipe.posterior == "iaf" else posterior
    if pseudo_inputs is not None:
        return priors.VampPrior(own, pseudo_inputs[: recipe.num_components])
    return priors.VampPrior(own, num_components=recipe.num_components, shape=recipe.shape)


def _flow(recipe: Recipe, posterior: torch_nn.Module, pseudo_inputs: Tensor | None) -> torch_nn.Module:
    width = max(64, 2 * recipe.latent_dim)
    return priors.Flow.maf(recipe.latent_dim, num_transforms=3, hidden=(width, width))


def _diagonal(recipe: Recipe) -> torch_nn.Module:
    return posteriors.DiagNormal(recipe.encoder(posteriors.DiagNormal.num_outputs(recipe.latent_dim)))


def _full(recipe: Recipe) -> torch_nn.Module:
    d = recipe.latent_dim
    return posteriors.FullNormal(recipe.encoder(posteriors.FullNormal.num_outputs(d)), d)


def _householder(recipe: Recipe) -> torch_nn.Module:
    d = recipe.latent_dim
    return posteriors.Householder(recipe.encoder(posteriors.Householder.num_outputs(d)), d)


def _iaf(recipe: Recipe) -> torch_nn.Module:
    d = recipe.latent_dim
    return posteriors.IAF(recipe.encoder(posteriors.IAF.num_outputs(d)), d)


PRIORS: dict[str, Part] = {
    "standard": Part(_standard, "standard normal", "Kingma & Welling 2013, arXiv:1312.6114"),
    "mog": Part(_mog, "mixture of learned Gaussians", "Nalisnick, Hertel & Smyth 2016"),
    "vamp": Part(_vamp, "mixture of posteriors at learned pseudo-inputs", "Tomczak & Welling 2018, arXiv:1705.07120"),
    "flow": Part(_flow, "masked autoregressive flow", "Papamakarios et al. 2017, arXiv:1705.07057"),
}

POSTERIORS: dict[str, Part] = {
    "diagonal": Part(_diagonal, "diagonal Gaussian", "Kingma & Welling 2013, arXiv:1312.6114"),
    "full": Part(_full, "Gaussian with a full covariance", "Challis & Barber 2013"),
    "householder": Part(_householder, "Householder flow, 10 reflections", "Tomczak & Welling 2016, arXiv:1611.09630"),
    "iaf": Part(_iaf, "inverse autoregressive flow, 2 steps", "Kingma et al. 2016, arXiv:1606.04934"),
}


def lookup(kind: str, name: str, known: Iterable[str]) -> str:
    """A name that is known.

    Raises:
        ValueError: it is not; the message lists those that are.
    """
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown {kind} {name!r}: it must be one of {', '.join(names)}.{hint}")
    return name


def pseudo_inputs(train: Any, count: int, seed: int) -> Tensor:
    """Data, drawn without replacement, for pseudo-inputs to start from.

    Raises:
        ValueError: more are asked for than there are data.
    """
    if count > len(train):
        raise ValueError(f"num_components={count} pseudo-inputs cannot start from {len(train)} data: ask for fewer.")
    index = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]
    chosen = train[index]
    assert isinstance(chosen, Tensor) and chosen.numel() == count * prod(train.shape[1:])
    return chosen
