"""What a trained pair is used for: samples, representations, reconstructions."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppgen.errors import first_line
from ppgen.inference.execution.batches import checked_rows
from ppgen.inference.execution.members import as_member
from ppgen.inference.programs.masks import masked
from ppgen.inference.programs.modes import drawing
from ppgen.inference.programs.observation import observation_of
from ppgen.inference.programs.refusals import check_axes
from ppgen.inference.programs.traces import as_data, device_batch, innermost, is_factor, run_without_data, sites
from ppgen.numbers import positive_integer
from ppgen.pair import Pair

__all__ = ["decode", "encode", "reconstruct", "sample"]


def sample(pair: Any, n: int, *y: Any, mean: bool = False, seed: int | None = None) -> Tensor:
    r"""Draws of the observation, :math:`z \sim p(z \mid y),\ x \sim p(x \mid z, y)`, by ancestral sampling.

    Args:
        pair: anything with ``.model``, which takes ``None`` for the observation.
        n: how many.
        y: the context of a conditional pair, tensors or arrays: n rows, or one row for all.
        mean: the mean of p(x | z, y) for each drawn latent, in place of a draw from it; a draw where it has none.
        seed: of the noise; without it torch's generator goes on, and the next call draws others.

    Shape:
        (n, *event), on the CPU; plates inside the data's stand between the two, as in data that the model transposes.

    Raises:
        ValueError: n is not a positive whole number, or the context has another number of rows.
        TypeError: the model cannot be run without data, or the context is no numbers.

    Example:
        >>> from ppgen import decoders, models, nn, posteriors, priors
        >>> vae = models.VAE(
        ...     priors.StandardNormal(2),
        ...     decoders.Bernoulli(nn.MLP(2, 64)),
        ...     posteriors.DiagNormal(nn.MLP(64, 4)),
        ... )
        >>> sample(vae, 3, mean=True).shape
        torch.Size([3, 64])
    """
    positive_integer("n", n)
    context = []
    for i, member in enumerate(y):
        member = as_member(member, f"y[{i}]")[:]
        if len(member) not in (1, n):
            raise ValueError(
                f"y[{i}] has {len(member)} rows, and n={n} samples were asked for: give n rows, or one for all."
            )
        context.append(member.expand(n, *member.shape[1:]))
    return _observe(pair, {}, n, context, mean=mean, seed=seed, use="sample")


def decode(pair: Any, z: Tensor | dict[str, Tensor], *y: Any, mean: bool = True, seed: int | None = None) -> Tensor:
    """The observation that goes with given latents: the mean of p(x | z, y), or a draw from it.

    Args:
        pair: anything with ``.model``, which takes ``None`` for the observation.
        z: the latent as :func:`encode` gives it, shape (N, ...), with plates inside the data's in front of N; or a
            dictionary of several by site name.
        y: the context of a conditional pair, tensors or arrays of N rows.
        mean: the mean in place of a draw; a draw where there is none.
        seed: of the noise.

    Shape:
        (N, *event), on the CPU.

    Raises:
        ValueError: a latent that the model does not have, or one tensor for a model of several latents.
    """
    latents = z if isinstance(z, dict) else {"": z}
    if not latents or any(not isinstance(value, Tensor) or value.dim() == 0 for value in latents.values()):
        raise ValueError("z must be a tensor (N, ...), or a dictionary of such by the names of the latents.")
    context = [as_member(m, f"y[{i}]")[:] if isinstance(m, np.ndarray) else m for i, m in enumerate(y)]
    n = 1
    while True:
        try:
            return _observe(pair, latents, n, context, mean=mean, seed=seed, use="decode")
        except _MoreRows as found:
            n = found.n
        except (RuntimeError, IndexError) as error:
            given = {name or "z": (tuple(value.shape), value.dtype) for name, value in latents.items()}
            raise ValueError(
                f"The model cannot be run at latents of shapes and types {given}: {first_line(error)}. Give "
                "what encode gives for such a pair."
            ) from error


def encode(pair: Pair, *batch: Any, mask: Any = None, mean: bool = True, seed: int | None = None) -> Any:
    """The guide's latents of a batch: means where the guide's distributions have one, otherwise draws.

    Args:
        pair: anything with ``.guide``.
        batch: the data, N rows.
        mask: True where the first member was observed, if not everywhere.
        mean: the mean of q(z | x) where it has a closed form; otherwise (or with ``mean=False``) a draw.
        seed: of the noise.

    Shape:
        (N, latent_dim) for a single latent, otherwise a dictionary by site name; on the CPU. Plates inside the data's
        stand in front of N, as the guide draws them and :func:`decode` takes them.

    Raises:
        ValueError: data that is empty or not finite, or a guide without latents.
    """
    pair, batch = masked(pair, batch, mask)
    rows = checked_rows(batch)
    with drawing(pair, seed, "encode"):
        given = device_batch(pair, rows(slice(None)))
        guide = Mean()(pair.guide) if mean else pair.guide
        found = sites(poutine.trace(guide).get_trace(*given))
    check_axes(found, "guide")
    drawn = {name: site for name, site in found.items() if not site["is_observed"]}
    own = {name: site for name, site in drawn.items() if not site["infer"].get("is_auxiliary")}  # of the model, too
    latents = {name: site["value"].cpu() for name, site in (own or drawn).items()}
    if not latents:
        raise ValueError("The guide draws no latents, so there is nothing to encode (an explicit density has none).")
    return next(iter(latents.values())) if len(latents) == 1 else latents


def reconstruct(pair: Pair, *batch: Any, mean: bool = True, seed: int | None = None) -> Tensor:
    """The data as the pair sees them: :func:`decode` of :func:`encode`.

    Args:
        pair: a pair whose model takes ``None`` for the observation.
        batch: the data, the observation first, then contexts.
        mean: means of q(z | x) and p(x | z) in place of draws.
        seed: of the noise.

    Shape:
        (N, *event), on the CPU.
    """
    latents = encode(pair, *batch, mean=mean, seed=seed)
    return decode(pair, latents, *batch[1:], mean=mean, seed=seed)


def mean_of(distribution: Any) -> Tensor | None:
    """The mean of a distribution; None where it has no closed form, or there is none (a Categorical's, a Cauchy's).

    A mean that is NaN because a parameter is stays NaN: no draw is to cover up a network that has diverged.
    """
    try:
        mean: Tensor = distribution.mean
    except (NotImplementedError, AttributeError):
        return None
    if not mean.isnan().any():
        return mean
    inner = innermost(distribution)
    parameters = [p for name in inner.arg_constraints if isinstance(p := getattr(inner, name, None), Tensor)]
    return mean if not parameters or any(p.isnan().any() for p in parameters) else None


class Mean(poutine.messenger.Messenger):
    """Puts the mean of a latent's distribution in the place of a draw, where there is a closed form."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or msg["value"] is not None:
            return
        if (mean := mean_of(msg["fn"])) is not None:
            msg["value"], msg["done"] = mean.expand(msg["fn"].shape()), True


def _observe(
    pair: Any, latents: dict[str, Tensor], n: int, y: Any, *, mean: bool, seed: int | None, use: str
) -> Tensor:
    with drawing(pair, seed, use):
        context = device_batch(pair, y)
        given = dict(zip(latents, device_batch(pair, tuple(latents.values())), strict=True))
        try:
            found = _drawn(pair, given, n, context)
        except (ValueError, RuntimeError):  # the value may not be what the first of several latents is
            if "" in given:
                _check_only_latent(free := _drawn(pair, {}, n, context), observation_of(pair.model, free, context))
            raise
        if unknown := [name for name in given if name and name not in found]:
            raise ValueError(f"The model has no latent {unknown}: its sites are {list(found)}.")
        if not found:
            raise ValueError("The model draws nothing: it has no sample sites.")
        observation = observation_of(pair.model, found, context)
        if "" in given:
            _check_only_latent(found, observation)
        site = found[observation]
        if mean and (value := mean_of(site["fn"])) is not None:
            value = value.expand(site["fn"].shape())
        else:
            value = torch.as_tensor(site["value"])
        return as_data(site, value).cpu()


def _drawn(pair: Any, given: dict[str, Tensor], n: int, context: Any) -> dict[str, Any]:
    """The sites of the model in n rows, or in those of its context, with given latents."""
    rows = nullcontext() if context else pyro.plate("data_drawn", n, dim=-1)
    with rows, _Given(given, None if context else n):
        found = run_without_data(pair.model, context)
    return {name: site for name, site in found.items() if not is_factor(site)}


def _check_only_latent(found: dict[str, Any], observation: str) -> None:
    if len(latents := [name for name in found if name != observation]) != 1:
        raise ValueError(f"The model has the latents {latents}: give decode a dictionary of them by name.")


class _MoreRows(Exception):
    """A latent has more rows than the plate around the run, which has to begin anew: how many."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.n = n


class _Given(poutine.messenger.Messenger):
    """Puts values in the place of draws: by name, or the only one in that of the first draw, whatever its name.

    Which axis of a value has the rows is known at its site only: the one before the axes of the event.
    """

    def __init__(self, latents: dict[str, Tensor], n: int | None) -> None:
        super().__init__()
        self.latents, self.n = dict(latents), n

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or site_is_subsample(msg):
            return
        value = self.latents.pop("" if "" in self.latents else msg["name"], None)
        if value is None:
            return
        axis = value.dim() - 1 - msg["fn"].event_dim
        if self.n is not None and axis >= max(1, len(msg["fn"].batch_shape)):
            raise ValueError(
                f"The latent {msg['name']} was given with shape {tuple(value.shape)}, and has "
                f"{msg['fn'].event_dim} axes in a datum: give rows of them, as encode does, (N, ...)."
            )
        if self.n is not None and axis >= 0 and value.shape[axis] > self.n:
            raise _MoreRows(value.shape[axis])
        msg["value"], msg["done"] = value, True
