"""Models by name: what each is for, how it is trained, and the recipe from which it can be built again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ppgen.catalogue import models, neural, training
from ppgen.catalogue.parts import DECODERS, Observed, lookup, shares_posterior
from ppgen.inference.losses.adversarial import AdversarialLoss, wasserstein, wasserstein_gp
from ppgen.numbers import positive_integer

__all__ = ["MODELS", "Model", "Recipe", "pseudo_inputs", "settings_of"]


def _one_hot(classes: Tensor, num_classes: int) -> Tensor:
    return one_hot(classes, num_classes).float()


def _as_they_are(classes: Tensor, num_classes: int) -> Tensor:
    return classes


class Model(NamedTuple):
    """A model by its name.

    Attributes:
        build: makes it of what must be known of the data; its keywords are the model's settings.
        train: trains it; its keywords are the settings of its training.
        line: what it is, in a line.
        paper: where it is from.
        kind: of the data that it is for, where its decoder does not say so; "any" of one that takes all.
        flat: whether it takes data as vectors.
        labels: of a model of data with classes, what its batches hold of them.
        classifies: whether it tells the class of data by itself, where its batches hold −1.
        reconstructs: whether its guide says which latent a datum has.
        scores: whether it has a likelihood.
        samples: whether data can be drawn from it.
    """

    build: Callable[..., nn.Module]
    train: Callable[..., Any]
    line: str
    paper: str
    kind: str = ""
    flat: bool = False
    labels: Callable[[Tensor, int], Tensor] | None = None
    classifies: bool = False
    reconstructs: bool = True
    scores: bool = True
    samples: bool = True


_vectors = partial(Model, kind="real", flat=True)

_adversarial = partial(Model, kind="any", reconstructs=False, scores=False)


def _published_rate_doubled(loss: AdversarialLoss) -> AdversarialLoss:
    """With a little momentum, as in the paper's code: it is there in half the steps, and stays stable."""
    return replace(loss, optimizer=partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.9), fused=True))


MODELS: dict[str, Model] = {
    "vae": Model(models.vae, training.variational, "variational autoencoder", "Kingma & Welling 2013, arXiv:1312.6114"),
    "cvae": Model(
        models.cvae,
        training.variational,
        "conditional VAE, given the class",
        "Sohn, Lee & Yan 2015",
        labels=_one_hot,
    ),
    "hvae": Model(models.hvae, training.variational, "VAE of two layers", "Tomczak & Welling 2018, arXiv:1705.07120"),
    "conv-hvae": Model(
        models.conv_hvae,
        training.variational,
        "VAE of two layers, gated convolutions",
        "Tomczak & Welling 2018, arXiv:1705.07120",
    ),
    "ss-vae": Model(
        models.ss_vae,
        training.semi_supervised,
        "semi-supervised VAE (M2), classifies from few labels",
        "Kingma et al. 2014, arXiv:1406.5298",
        labels=_as_they_are,
        classifies=True,
    ),
    "density": Model(
        models.density,
        partial(training.variational, particles=100),
        "density network: the prior is the proposal",
        "MacKay 1995",
        reconstructs=False,
    ),
    "gmm": _vectors(
        models.gmm,
        training.restarted_em,
        line="Gaussian mixture, by EM",
        paper="Dempster, Laird & Rubin 1977",
        reconstructs=False,
    ),
    "fa": _vectors(
        models.fa, training.expectation_maximization, line="factor analysis, by EM", paper="Rubin & Thayer 1982"
    ),
    "ppca": _vectors(
        models.ppca, training.expectation_maximization, line="probabilistic PCA, by EM", paper="Tipping & Bishop 1999"
    ),
    "ae": Model(
        neural.ae,
        training.variational,
        "autoencoder, convolutional",
        "Hinton & Salakhutdinov 2006",
        scores=False,
        samples=False,
    ),
    "pixelcnn": Model(
        neural.pixelcnn,
        training.variational,
        "gated PixelCNN, an explicit density",
        "van den Oord et al. 2016, arXiv:1606.05328",
        reconstructs=False,
    ),
    "pixelrnn": Model(
        neural.pixelrnn,
        training.variational,
        "PixelRNN: Row LSTM or Diagonal BiLSTM",
        "van den Oord et al. 2016, arXiv:1601.06759",
        reconstructs=False,
    ),
    "pixelvae": Model(
        neural.pixelvae,
        training.variational,
        "VAE whose decoder is a PixelCNN",
        "Gulrajani et al. 2017, arXiv:1611.05013",
    ),
    "vqvae": Model(
        neural.vqvae,
        training.vector_quantized,
        "VQ-VAE, and a PixelCNN prior of its codes",
        "van den Oord et al. 2017, arXiv:1711.00937",
    ),
    "gan": _adversarial(
        neural.gan, training.adversarial, "generative adversarial network", "Goodfellow et al. 2014, arXiv:1406.2661"
    ),
    "acgan": _adversarial(
        neural.acgan,
        training.adversarial,
        "GAN with an auxiliary classifier, given the class",
        "Odena, Olah & Shlens 2017, arXiv:1610.09585",
        labels=_as_they_are,
    ),
    "wgan": _adversarial(
        neural.gan,
        partial(training.adversarial, loss=wasserstein()),
        "Wasserstein GAN, weights clipped",
        "Arjovsky, Chintala & Bottou 2017, arXiv:1701.07875",
    ),
    "wgan-gp": _adversarial(
        neural.wgan_gp,
        partial(training.adversarial, loss=_published_rate_doubled(wasserstein_gp())),
        "Wasserstein GAN with gradient penalty",
        "Gulrajani et al. 2017, arXiv:1704.00028",
    ),
}


def settings_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keywords of a function that builds or trains, with their defaults."""
    parameters = inspect.signature(function).parameters
    return {
        n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and n not in ("loss", "progress", "checkpoint")
    }


@dataclass(frozen=True)
class Recipe:
    """Everything that a model is made of; a run's ``config.json`` holds one.

    Args:
        model: a name in :data:`MODELS`.
        shape: event shape of the data.
        num_levels: of the data; None for real values in [0, 1].
        num_classes: of the data, where they have labels.
        settings: the keywords of the model's builder (:mod:`ppgen.catalogue.models`, :mod:`ppgen.catalogue.neural`);
            those left out are its defaults. A prior or a posterior may be the import path of your own,
            ``module:Class``: a prior is called as ``Class(latent_dim)``, a posterior as ``Class(net, latent_dim)`` with
            a network of ``Class.num_outputs(latent_dim)`` outputs.

    Raises:
        ValueError: an unknown model, a setting that it does not have, or one of another kind than its default.

    Example:
        >>> recipe = Recipe("vae", (1, 8, 8), settings={"prior": "mog", "latent_dim": 4, "num_components": 10})
        >>> type(recipe.build().prior).__name__
        'MixtureOfGaussians'
    """

    model: str
    shape: tuple[int, ...]
    num_levels: int | None = 2
    num_classes: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = settings_of(MODELS[lookup("model", self.model, MODELS)].build)
        object.__setattr__(self, "shape", _sizes("shape", self.shape))
        for name in ("num_levels", "num_classes"):
            count = getattr(self, name)
            if count is not None and _size(name, count) < 2:
                raise ValueError(f"{name} must be at least 2, or None, got {count}.")
        if not isinstance(self.settings, dict):
            raise ValueError(f"settings must be a dictionary of the builder's keywords, got {self.settings!r}.")
        for name in self.settings:
            lookup(f"setting of {self.model}", name, known)
        filled = {name: self.settings.get(name, p.default) for name, p in known.items()}
        object.__setattr__(self, "settings", {n: _like(known[n].default, n, v) for n, v in filled.items()})
        if "decoder" in filled:
            lookup("decoder", filled["decoder"], DECODERS)

    @property
    def imports(self) -> list[str]:
        """The parts that are not the library's, by import path."""
        return [value for value in self.settings.values() if isinstance(value, str) and ":" in value]

    @property
    def observed(self) -> Observed:
        """What the model knows of the data."""
        return Observed(self.shape, self.num_levels, self.num_classes)

    def build(self, pseudo_inputs: Tensor | None = None) -> Any:
        """The model, with fresh parameters from torch's generator; pseudo-inputs start from data if any are given."""
        return MODELS[self.model].build(self.observed._replace(start=pseudo_inputs), **self.settings)

    def batch(self, x: Any, classes: Tensor | None) -> tuple[Any, ...]:
        """A batch as the model takes it, of data and their classes.

        Raises:
            ValueError: the model is of data with classes, and there are none, or one only.
        """
        model = MODELS[self.model]
        if model.flat:
            return (x[:].flatten(1),)
        if model.labels is None:
            return (x,)
        if classes is None or classes.dim() != 1 or self.num_classes is None:
            raise ValueError(
                f"{self.model} is a model of data with classes, and these data have no labels, or all the same one: "
                "choose other data."
            )
        return (x, model.labels(classes, self.observed.classes))

    def scored_batch(self, x: Any, classes: Tensor | None) -> tuple[Any, ...]:
        """The batch of which a likelihood is asked: log p(x | y), or log p(x) of a model that tells y by itself."""
        if classes is not None and MODELS[self.model].classifies:
            classes = torch.full_like(classes, -1)
        return self.batch(x, classes)

    def context(self, n: int) -> tuple[Tensor, ...]:
        """What n samples are drawn for: the classes in turn, where the model has any."""
        model = MODELS[self.model]
        if model.labels is None:
            return ()
        return (model.labels(torch.arange(n) * self.observed.classes // n, self.observed.classes),)

    @property
    def note(self) -> str | None:
        """What should be said about this combination, if anything."""
        prior, posterior = self.settings.get("prior"), self.settings.get("posterior")
        if prior and posterior and not shares_posterior(prior, posterior):
            return (
                f"a posterior of kind {posterior} scores values drawn elsewhere slowly, "
                "so this VampPrior has a diagonal encoder of its own"
            )
        return None


# No model of these has more, and a file may say anything.
LARGEST_SIZE, MOST_LAYERS = 10**7, 1000


def _size(name: str, value: Any) -> int:
    most = MOST_LAYERS if name == "num_layers" else LARGEST_SIZE
    size = positive_integer(name, value)
    if size > most:
        raise ValueError(f"{name} must be at most {most:,}, got {size:,}.")
    return size


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or not value:
        raise ValueError(f"{name} must be positive whole numbers, got {value!r}.")
    if len(value) > MOST_LAYERS:
        raise ValueError(f"{name} must be at most {MOST_LAYERS:,} numbers, got {len(value):,}.")
    return tuple(_size(name, size) for size in value)


def _like(default: Any, name: str, value: Any) -> Any:
    """A setting's value, if it is of the kind of the default."""
    if isinstance(default, tuple):
        return _sizes(name, value)
    if isinstance(default, int):
        return _size(name, value)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a name such as {default!r}, got {value!r}.")
    return value


def pseudo_inputs(train: Any, count: int, seed: int) -> Tensor:
    """Data, drawn without replacement, for pseudo-inputs to start from.

    Raises:
        ValueError: more are asked for than there are data.
    """
    if count > len(train):
        raise ValueError(f"num_components={count} pseudo-inputs cannot start from {len(train)} data: ask for fewer.")
    index = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]
    chosen: Tensor = train[index]
    return chosen
