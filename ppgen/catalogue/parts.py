"""The parts by the names that the command line uses."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, nn

from ppgen import decoders, posteriors, priors
from ppgen.nn.shapes import Shape

__all__ = [
    "DECODERS", "POSTERIORS", "PRIORS", "Latent", "Observed", "Part",
    "decoder", "imported", "lookup", "posterior", "prior", "shares_posterior",
]  # fmt: skip


class Observed(NamedTuple):
    """What a model must know of the data.

    Attributes:
        shape: event shape.
        num_levels: 2 for binary data, None for real values in [0, 1].
        num_classes: of the labels, where there are two or more.
        start: some of the data, for pseudo-inputs to start from, where a prior has any.
    """

    shape: tuple[int, ...]
    num_levels: int | None = 2
    num_classes: int | None = None
    start: Tensor | None = None

    @property
    def rescaled_levels(self) -> int | None:
        """The levels that an encoder must rescale: binary data are numbers as they are."""
        return self.num_levels if self.num_levels != 2 else None

    @property
    def size(self) -> int:
        """Numbers in a datum."""
        return prod(self.shape)

    @property
    def classes(self) -> int:
        """The number of classes.

        Raises:
            ValueError: the data have no labels, or all the same one.
        """
        if self.num_classes is None:
            raise ValueError(
                "This model is of data with classes, and these data have no labels, or all the same one: choose other "
                "data."
            )
        return self.num_classes

    @property
    def high(self) -> float:
        """The greatest value of the data."""
        return float(self.num_levels - 1) if self.num_levels else 1.0


class Latent(NamedTuple):
    """What a prior is built for.

    Attributes:
        dim: coordinates of the latent.
        num_components: of a mixture or a VampPrior.
        x: the data that pseudo-inputs are like.
        posterior: the guide's q(z | x), which a VampPrior shares where it can.
        own: makes a diagonal q(z | x) where it cannot.
        conditional: whether the posterior takes a context.
    """

    dim: int
    num_components: int
    x: Observed
    posterior: nn.Module
    own: Callable[[], nn.Module]
    conditional: bool = False


class Part(NamedTuple):
    """A part's constructor, what to say of it, and (of a decoder) the kind of data that it is for."""

    build: Callable[..., nn.Module]
    line: str
    paper: str
    kind: str = ""


def prior(name: str, latent: Latent) -> nn.Module:
    """A prior by its name, or by its import path: called as ``Class(latent_dim)``."""
    lookup("prior", name, PRIORS, importable=True)
    if ":" not in name:
        return PRIORS[name].build(latent)
    kind = imported(name)
    with _made("prior", name, "latent_dim"):
        return kind(latent.dim)


def posterior(name: str, encoder: Callable[[int], nn.Module], latent_dim: int) -> nn.Module:
    """A posterior by its name, or by its import path: called as ``Class(net, latent_dim)``.

    Args:
        name: in :data:`POSTERIORS`, or ``module:Class``.
        encoder: makes a network of so many outputs, which ``Class.num_outputs(latent_dim)`` says.
        latent_dim: coordinates of the latent.
    """
    lookup("posterior", name, POSTERIORS, importable=True)
    kind: Any = imported(name) if ":" in name else POSTERIORS[name].build
    if not hasattr(kind, "num_outputs"):
        raise ValueError(
            f"posterior {name!r} does not say how many outputs the network in front of it must have: give its class a "
            "static method num_outputs(latent_dim)."
        )
    net = encoder(kind.num_outputs(latent_dim))
    with _made("posterior", name, "net, latent_dim"):
        return kind(net, latent_dim)


def decoder(name: str, generator: Callable[[Shape], nn.Module], x: Observed) -> nn.Module:
    """A decoder by its name, of a network that ``generator`` makes with outputs of the shape that it needs."""
    return DECODERS[lookup("decoder", name, DECODERS)].build(generator, x)


def shares_posterior(prior: str, posterior: str) -> bool:
    """Whether a VampPrior can be made of the guide's own posterior: one that scores foreign values cheaply."""
    kind = imported(posterior) if ":" in posterior else POSTERIORS[posterior].build
    return prior != "vamp" or bool(getattr(kind, "scores_foreign_values", True))


@contextmanager
def _made(kind: str, name: str, arguments: str) -> Iterator[None]:
    """Says of a class that does not take what it is called with which it is, and what that is."""
    try:
        yield
    except TypeError as error:
        raise ValueError(
            f"{kind} {name!r} is made as {name.partition(':')[2] or name}({arguments}): {error}"
        ) from error


def imported(path: str) -> type[nn.Module]:
    """The class behind an import path, ``module:Class``.

    Raises:
        ValueError: there is no such module, or no such class of modules in it.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{path!r} cannot be imported ({error}): it must be module:Class, importable from here."
        ) from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{path!r} is {found!r}, and a part must be a class of torch.nn.Module.")
    return found


def _vamp(latent: Latent) -> nn.Module:
    own = latent.posterior if getattr(latent.posterior, "scores_foreign_values", True) else latent.own()
    options: Any = {"high": latent.x.high, "conditional": latent.conditional}
    if latent.x.start is not None:
        low, high = latent.x.start.min().item(), latent.x.start.max().item()
        if low < 0 or high > latent.x.high:
            raise ValueError(
                f"prior 'vamp' by its name keeps pseudo-inputs in [0, {latent.x.high:g}], and these data have values "
                f"from {low:g} to {high:g}: bring them there, choose another prior, or give priors.VampPrior its low "
                "and high in Python."
            )
        return priors.VampPrior(own, latent.x.start.float(), **options)
    return priors.VampPrior(own, num_components=latent.num_components, shape=latent.x.shape, **options)


def _flow(latent: Latent) -> nn.Module:
    width = max(64, 2 * latent.dim)
    return priors.Flow.maf(latent.dim, num_transforms=3, hidden=(width, width))


def _categorical(generator: Callable[[Shape], nn.Module], x: Observed) -> nn.Module:
    levels = x.num_levels or 256
    return decoders.Categorical(generator(decoders.Categorical.outputs_shape(x.shape, levels)), levels)


def _logistic(generator: Callable[[Shape], nn.Module], x: Observed) -> nn.Module:
    shape = decoders.DiscretizedLogistic.outputs_shape(x.shape)
    return decoders.DiscretizedLogistic(generator(shape), x.num_levels or 256)


def _logistic_mixture(generator: Callable[[Shape], nn.Module], x: Observed) -> nn.Module:
    net = generator(decoders.LogisticMixture.outputs_shape(x.shape))
    return decoders.LogisticMixture(net, x.shape[0], num_levels=x.num_levels or 256)


PRIORS: dict[str, Part] = {
    "standard": Part(
        lambda latent: priors.StandardNormal(latent.dim), "standard normal", "Kingma & Welling 2013, arXiv:1312.6114"
    ),
    "normal": Part(
        lambda latent: priors.DiagNormal(latent.dim),
        "learned diagonal normal",
        "Kingma & Welling 2013, arXiv:1312.6114",
    ),
    "mog": Part(
        lambda latent: priors.MixtureOfGaussians(latent.num_components, latent.dim),
        "mixture of learned Gaussians",
        "Nalisnick, Hertel & Smyth 2016",
    ),
    "vamp": Part(_vamp, "mixture of posteriors at learned pseudo-inputs", "Tomczak & Welling 2018, arXiv:1705.07120"),
    "flow": Part(_flow, "masked autoregressive flow", "Papamakarios et al. 2017, arXiv:1705.07057"),
    "autoregressive": Part(
        lambda latent: priors.Autoregressive(latent.dim),
        "inverse of an IAF posterior",
        "Chen et al. 2017, arXiv:1611.02731",
    ),
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
    "bernoulli": Part(
        lambda generator, x: decoders.Bernoulli(generator(x.shape)),
        "binary pixels on logits",
        "Kingma & Welling 2013, arXiv:1312.6114",
        "binary",
    ),
    "continuous-bernoulli": Part(
        lambda generator, x: decoders.ContinuousBernoulli(generator(x.shape)),
        "values in [0, 1]",
        "Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845",
        "real",
    ),
    "normal": Part(
        lambda generator, x: decoders.Normal(generator(x.shape), 0.1, learn_scale=True),
        "Gaussian with a learned scale",
        "Rybkin et al. 2021, arXiv:2006.13202",
        "real",
    ),
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
