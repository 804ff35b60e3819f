"""The parts by the names that the command line uses, and models made of them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import nn as torch_nn

from ppgen import decoders, models, nn, posteriors, priors

__all__ = ["DECODERS", "POSTERIORS", "PRIORS", "Recipe", "imported", "lookup", "pseudo_inputs"]


class Part(NamedTuple):
    """A part's constructor, what to say of it, and (of a decoder) the kind of data that it is for."""

    build: Callable[..., torch_nn.Module]
    line: str
    paper: str
    kind: str = ""


@dataclass(frozen=True)
class Recipe:
    """Everything that a VAE is made of; a run's ``config.json`` holds one.

    Args:
        prior: a name in :data:`PRIORS`, or the import path of your own, ``module:Class``, called as
            ``Class(latent_dim)``.
        posterior: a name in :data:`POSTERIORS`, or an import path, called as ``Class(net, latent_dim)`` with a network
            of ``Class.num_outputs(latent_dim)`` outputs.
        shape: event shape of the data.
        decoder: a name in :data:`DECODERS`.
        num_levels: of the data; None for real values in [0, 1].
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
    decoder: str = "bernoulli"
    num_levels: int | None = 2
    model: str = field(default="vae", kw_only=True)

    def __post_init__(self) -> None:
        lookup("model", self.model, ("vae",))
        lookup("prior", self.prior, PRIORS, importable=True)
        lookup("posterior", self.posterior, POSTERIORS, importable=True)
        lookup("decoder", self.decoder, DECODERS)
        for name in ("latent_dim", "num_components"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}.")
        for name in ("shape", "hidden"):
            sizes = tuple(getattr(self, name))
            if not sizes or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
                raise ValueError(f"{name} must be positive whole numbers, got {sizes}.")
            object.__setattr__(self, name, sizes)

    @property
    def imports(self) -> list[str]:
        """The parts that are not the library's, by import path."""
        return [name for name in (self.prior, self.posterior) if ":" in name]

    def encoder(self, num_outputs: int) -> torch_nn.Module:
        """A gated network from data to so many numbers."""
        levels = self.num_levels if self.num_levels != 2 else None  # binary data are numbers as they are
        return nn.GatedMLP(self.shape, *self.hidden, num_outputs, levels=levels)

    def build(self, pseudo_inputs: Tensor | None = None) -> models.VAE:
        """The model, with fresh parameters from torch's generator; pseudo-inputs start from data if any are given."""
        decoder = DECODERS[self.decoder].build(self)
        posterior = self.build_posterior(self.posterior)
        if ":" in self.prior:
            return models.VAE(imported(self.prior)(self.latent_dim), decoder, posterior)
        return models.VAE(PRIORS[self.prior].build(self, posterior, pseudo_inputs), decoder, posterior)

    def build_posterior(self, name: str) -> torch_nn.Module:
        """A posterior of that name, behind an encoder of the width that it needs."""
        kind: Any = imported(name) if ":" in name else POSTERIORS[name].build
        net = self.encoder(kind.num_outputs(self.latent_dim))
        return kind(net) if kind is posteriors.DiagNormal else kind(net, self.latent_dim)

    @property
    def note(self) -> str | None:
        """What should be said about this combination, if anything."""
        if self.prior == "vamp" and not _scores_foreign_values(self.posterior):
            return (
                f"a posterior of kind {self.posterior} scores values drawn elsewhere slowly, "
                "so this VampPrior has a diagonal encoder of its own"
            )
        return None

    def settings(self) -> dict[str, Any]:
        """The recipe as plain values, for JSON."""
        return asdict(self)


def _scores_foreign_values(posterior: str) -> bool:
    kind = imported(posterior) if ":" in posterior else POSTERIORS[posterior].build
    return bool(getattr(kind, "scores_foreign_values", True))


def imported(path: str) -> Any:
    """The class behind an import path, ``module:Class``.

    Raises:
        ValueError: there is no such module, or no such class in it.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{path!r} cannot be imported ({error}): it must be module:Class, importable from here."
        ) from None


def _standard(recipe: Recipe, posterior: torch_nn.Module, pseudo_inputs: Tensor | None) -> torch_nn.Module:
    return priors.StandardNormal(recipe.latent_dim)


def _mog(recipe: Recipe, posterior: torch_nn.Module, pseudo_inputs: Tensor | None) -> torch_nn.Module:
    return priors.MixtureOfGaussians(recipe.num_components, recipe.latent_dim)


def _vamp(recipe: Recipe, posterior: torch_nn.Module, pseudo_inputs: Tensor | None) -> torch_nn.Module:
    own = posterior if _scores_foreign_values(recipe.posterior) else recipe.build_posterior("diagonal")
    high = float(recipe.num_levels - 1) if recipe.num_levels else 1.0
    if pseudo_inputs is not None:
        return priors.VampPrior(own, pseudo_inputs[: recipe.num_components].float(), high=high)
    return priors.VampPrior(own, num_components=recipe.num_components, shape=recipe.shape, high=high)


def _normal(recipe: Recipe, posterior: torch_nn.Module, pseudo_inputs: Tensor | None) -> torch_nn.Module:
    return priors.DiagNormal(recipe.latent_dim)


def _autoregressive(recipe: Recipe, posterior: torch_nn.Module, pseudo_inputs: Tensor | None) -> torch_nn.Module:
    return priors.Autoregressive(recipe.latent_dim)


def _flow(recipe: Recipe, posterior: torch_nn.Module, pseudo_inputs: Tensor | None) -> torch_nn.Module:
    width = max(64, 2 * recipe.latent_dim)
    return priors.Flow.maf(recipe.latent_dim, num_transforms=3, hidden=(width, width))


def _generator(recipe: Recipe, shape: tuple[int, ...]) -> torch_nn.Module:
    """A gated network from the latent to numbers of a shape."""
    return nn.GatedMLP(recipe.latent_dim, *reversed(recipe.hidden), shape)


def _bernoulli(recipe: Recipe) -> torch_nn.Module:
    return decoders.Bernoulli(_generator(recipe, recipe.shape))


def _continuous_bernoulli(recipe: Recipe) -> torch_nn.Module:
    return decoders.ContinuousBernoulli(_generator(recipe, recipe.shape))


def _gaussian(recipe: Recipe) -> torch_nn.Module:
    return decoders.Normal(_generator(recipe, recipe.shape), 0.1, learn_scale=True)


def _categorical(recipe: Recipe) -> torch_nn.Module:
    levels = recipe.num_levels or 256
    return decoders.Categorical(_generator(recipe, decoders.Categorical.outputs_shape(recipe.shape, levels)), levels)


def _logistic(recipe: Recipe) -> torch_nn.Module:
    shape = decoders.DiscretizedLogistic.outputs_shape(recipe.shape)
    return decoders.DiscretizedLogistic(_generator(recipe, shape), recipe.num_levels or 256)


def _logistic_mixture(recipe: Recipe) -> torch_nn.Module:
    net = _generator(recipe, decoders.LogisticMixture.outputs_shape(recipe.shape))
    return decoders.LogisticMixture(net, recipe.shape[0], num_levels=recipe.num_levels or 256)


PRIORS: dict[str, Part] = {
    "standard": Part(_standard, "standard normal", "Kingma & Welling 2013, arXiv:1312.6114"),
    "normal": Part(_normal, "learned diagonal normal", "Kingma & Welling 2013, arXiv:1312.6114"),
    "mog": Part(_mog, "mixture of learned Gaussians", "Nalisnick, Hertel & Smyth 2016"),
    "vamp": Part(_vamp, "mixture of posteriors at learned pseudo-inputs", "Tomczak & Welling 2018, arXiv:1705.07120"),
    "flow": Part(_flow, "masked autoregressive flow", "Papamakarios et al. 2017, arXiv:1705.07057"),
    "autoregressive": Part(_autoregressive, "inverse of an IAF posterior", "Chen et al. 2017, arXiv:1611.02731"),
}

POSTERIORS: dict[str, Part] = {
    "diagonal": Part(posteriors.DiagNormal, "diagonal Gaussian", "Kingma & Welling 2013, arXiv:1312.6114"),
    "full": Part(posteriors.FullNormal, "Gaussian with a full covariance", "Challis & Barber 2013"),
    "lowrank": Part(
        posteriors.LowRankNormal, "Gaussian, diagonal plus rank 4", "Rezende, Mohamed & Wierstra 2014, arXiv:1401.4082"
    ),
    "mog": Part(posteriors.MixtureOfGaussians, "mixture of 5 Gaussians", "Morningstar et al. 2021, arXiv:2003.01687"),
    "planar": Part(posteriors.Planar, "planar flow, 8 steps", "Rezende & Mohamed 2015, arXiv:1505.05770"),
    "radial": Part(posteriors.Radial, "radial flow, 8 steps", "Rezende & Mohamed 2015, arXiv:1505.05770"),
    "householder": Part(
        posteriors.Householder, "Householder flow, 10 reflections", "Tomczak & Welling 2016, arXiv:1611.09630"
    ),
    "sylvester": Part(posteriors.Sylvester, "Sylvester flow, 4 steps", "van den Berg et al. 2018, arXiv:1803.05649"),
    "iaf": Part(posteriors.IAF, "inverse autoregressive flow, 2 steps", "Kingma et al. 2016, arXiv:1606.04934"),
    "spline": Part(posteriors.Spline, "neural spline flow", "Durkan et al. 2019, arXiv:1906.04032"),
}


DECODERS: dict[str, Part] = {
    "bernoulli": Part(_bernoulli, "binary pixels on logits", "Kingma & Welling 2013, arXiv:1312.6114", "binary"),
    "continuous-bernoulli": Part(
        _continuous_bernoulli, "values in [0, 1]", "Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845", "real"
    ),
    "normal": Part(_gaussian, "Gaussian with a learned scale", "Rybkin et al. 2021, arXiv:2006.13202", "real"),
    "categorical": Part(_categorical, "softmax over levels", "van den Oord et al. 2016, arXiv:1601.06759", "levels"),
    "logistic": Part(_logistic, "discretized logistic", "Kingma et al. 2016, arXiv:1606.04934", "levels"),
    "logistic-mixture": Part(
        _logistic_mixture, "mixture of 10 discretized logistics", "Salimans et al. 2017, arXiv:1701.05517", "levels"
    ),
}


def lookup(kind: str, name: str, known: Iterable[str], *, importable: bool = False) -> str:
    """A name that is known, or (where that is possible) an import path.

    Raises:
        ValueError: it is not; the message lists those that are.
    """
    names = list(known)
    if importable and ":" in name:
        return name
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        own = ", or module:Class" if importable else ""
        raise ValueError(f"Unknown {kind} {name!r}: it must be one of {', '.join(names)}{own}.{hint}")
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
