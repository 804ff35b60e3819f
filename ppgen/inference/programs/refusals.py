"""What a pair's programs may not do, each with the words that say what to do instead."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from pyro import poutine
from torch import Tensor

from ppgen.inference.programs.traces import (
    frame_of_data,
    is_point,
    length_of_batch,
    sites,
    support,
)
from ppgen.pair import tracing

SHARED = (
    " A latent shared by all data (weights, locations of components, an AutoDiagonalNormal's single vector) has no "
    "per-datum likelihood: fit() takes it; to score log p(x | w) at one value w, leave it out of the guide and hide it "
    "in the model, poutine.block(poutine.condition(model, data={'w': w}), hide=['w'])."
)


def check_pair(pair: Any) -> None:
    """Makes sure that there is a model and a guide.

    Raises:
        TypeError: one is missing, as the guide of a GAN.
    """
    for name in ("model", "guide"):
        if not callable(getattr(pair, name, None)):
            raise TypeError(
                f"pair must have .model and .guide, and {type(pair).__name__} has no .{name}. What has no guide (a "
                "GAN) can only be sampled: it has no likelihood, and is trained by train(Adversarial(gan), ...)."
            )
    if isinstance(pair, type):
        raise TypeError(f"pair must be an object, and {pair.__name__} is a class: make one of it.")


def check_axes(found: dict[str, Any], where: str) -> None:
    """Makes sure that a site in a plate has no axes beside its plates': each datum would meet every other one.

    Raises:
        ValueError: it has.
    """
    for name, site in found.items():
        own = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
        event, value = tuple(site["fn"].event_shape), site["value"]
        shape = site["fn"].batch_shape
        if isinstance(value, Tensor) and value.dim() - len(event) > len(shape):  # a value that another site drew
            shape = value.shape[: value.dim() - len(event)]
        if own and (axes := [d for d in range(-len(shape), 0) if d not in own and shape[d] != 1]):
            raise ValueError(
                f"The {where}'s site {name!r} has the batch shape {tuple(shape)}, of which axis {axes[-1]} belongs to "
                "no plate: every datum would be combined with every other. Data have one axis of rows, (N, *event): "
                "leave out axes of length 1 between them (x.squeeze(1), x.flatten(1)), or declare the rest an event "
                "(.to_event)."
            )
        if (
            own
            and site["is_observed"]
            and math.prod(event)
            and isinstance(value, Tensor)
            and 0 < len(event) >= value.dim()
        ):
            raise ValueError(
                f"The {where}'s site {name!r} observes a value of shape {tuple(value.shape)}, and one datum has the "
                f"shape {event}: data have an axis of rows before it. Give a single datum as x.unsqueeze(0)."
            )


def check_names(model_sites: dict[str, Any], guide_sites: dict[str, Any], from_prior: Sequence[str] = ()) -> None:
    """Makes sure that every latent of the model is proposed, and that the guide proposes nothing else.

    Raises:
        ValueError: a latent that nobody proposes, a guide's site that the model lacks, or no observation.
    """
    latents = [n for n, s in model_sites.items() if not s["is_observed"]]
    if unknown := [n for n in from_prior if n not in latents]:
        raise ValueError(f"from_prior names {unknown}, but the latent sites of the model are {latents}.")
    sampled = [n for n, s in model_sites.items() if s["infer"].get("_enumerate_dim") and s["infer"].get("num_samples")]
    if sampled:
        raise ValueError(
            f"The model marks {sampled} with infer={{'enumerate': …, 'num_samples': …}}, draws that would be summed as "
            "if they were all values there are: leave num_samples out of a site with finitely many values, and sample "
            "any other in the guide."
        )
    left_out = [
        n
        for n in latents
        if n not in guide_sites and n not in from_prior and model_sites[n]["infer"].get("_enumerate_dim") is None
    ]
    if left_out:
        raise ValueError(
            f"The model draws {left_out} and the guide does not: without a proposal these latents cannot be weighed. "
            f"Sample them in the guide, mark discrete ones infer={{'enumerate': 'parallel'}} so that they are summed "
            f"out, or draw log_weights(…, from_prior={left_out}), for which the prior proposes them."
        )
    foreign = [n for n, s in guide_sites.items() if n not in model_sites and not s["infer"].get("is_auxiliary")]
    if foreign:
        raise ValueError(
            f"The guide draws {foreign}, which the model does not have (its latents are {latents}): give the sites of "
            "model and guide the same names, or mark the guide's own infer={'is_auxiliary': True}."
        )
    if not any(s["is_observed"] for s in model_sites.values()):
        raise ValueError("The model observes nothing: give one of its sample sites obs=… from the batch.")


def check_point(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """Makes sure that a guide proposes nothing continuous at a point, where a point has no probability.

    A point that hands on what an auxiliary site drew, as the autoguides' do, is a draw; so many numbers must have been
    drawn there as stand at points.

    Raises:
        ValueError: it does, as an autoencoder's.
    """
    if tracing():  # a graph holds no comparison
        return
    points = [n for n, s in guide_sites.items() if n in model_sites and is_point(s) and _has_density(model_sites[n])]
    others = model_sites.keys() - points
    drawn = [
        name
        for name, site in guide_sites.items()
        if site["infer"].get("is_auxiliary")
        and not is_point(site)
        and _has_density(site)
        and name.removesuffix("_unconstrained") not in others  # an autoguide's draw for a site that has a density
    ]
    if _numbers(guide_sites, points) > _numbers(guide_sites, drawn):
        own = {name.removesuffix("_unconstrained") for name in drawn}
        points = [name for name in points if name not in own] or points
        raise ValueError(
            f"The guide proposes the continuous {points} at a point, and nothing around it: a point has no probability "
            "there, so there is no weight p(x, z) / q(z | x) and no likelihood of x. Propose a distribution, whose "
            "draw may come from a site marked infer={'is_auxiliary': True}. An autoencoder has no density of x for "
            "that reason: fit a prior to its codes and take models.DensityNetwork(prior, decoder), or train a "
            "models.VAE, whose guide is a distribution."
        )


def check_weighable(model_trace: poutine.Trace, guide_trace: poutine.Trace, from_prior: Sequence[str]) -> int:
    """The number of data, once it is sure that every site can be weighed per datum.

    Raises:
        ValueError: what :func:`check_names` and :func:`check_point` refuse, a site outside the data plate, or plates of
            different lengths.
    """
    model_sites, guide_sites = sites(model_trace), sites(guide_trace)
    check_names(model_sites, guide_sites, from_prior)
    length = num_data(model_sites, guide_sites)
    check_point(model_sites, guide_sites)
    return length


def num_data(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> int:
    """How many data the plate on axis −1 holds, of which every site must be.

    Raises:
        ValueError: one is not, or the plates differ in length.
    """
    sizes: dict[str, int] = {}
    for where, found in (("model", model_sites), ("guide", guide_sites)):
        for name, site in found.items():
            if (frame := frame_of_data(site)) is None:
                kind = "observed" if site["is_observed"] else "latent"
                raise ValueError(
                    f"The {where}'s {kind} site {name!r} has no per-datum axis: it is outside every plate on axis −1, "
                    "so its weight belongs to no single datum. Open pyro.plate('data', len(x)) around it."
                    + (SHARED if kind == "latent" else "")
                )
            sizes[name] = frame.size if frame.size > 0 else (1, *site["fn"].batch_shape)[-1]  # a plate without a size
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"The plates on axis −1 differ in length: {sizes}. The data plate must be the innermost, on axis −1, and "
            "every other plate left of it." + SHARED
        )
    return next(iter(sizes.values()), 0)


def check_innermost(found: Iterable[Any], num_rows: int | None) -> None:
    """Makes sure that the data plate is not left of another one, whose members would be taken for the data.

    Raises:
        ValueError: the plate on axis −1 is not as long as the batch, and one left of it is.
    """
    frames = {f.name: f for site in found for f in site["cond_indep_stack"] if f.vectorized and f.size > 0}
    frames = {name: f for name, f in frames.items() if (f.full_size or f.size) == f.size}  # not a subsample
    inner = [f for f in frames.values() if f.dim == -1]
    if not inner or any(f.size == num_rows for f in inner):
        return
    for frame in frames.values():
        if frame.dim < -1 and frame.size == num_rows:
            raise ValueError(
                f"The plate {frame.name!r} has a member for each row of the batch, and is on axis {frame.dim}, left of "
                f"{inner[0].name!r} of length {inner[0].size} on axis −1, whose members would be taken for the data: "
                f"give {frame.name!r} dim=-1 and open the other plates left of it (dim=-2, …)."
            )


def check_rows_of_plate(num_data: int, batch: Sequence[Any]) -> None:
    """Makes sure that the plate on axis −1 has a member for each row of a batch.

    Raises:
        ValueError: it has more or fewer.
    """
    if (rows := length_of_batch(batch)) is not None and rows != num_data:
        raise ValueError(
            f"The plate on axis −1 has {num_data} members, and the batch has {rows} rows. Data have their rows first, "
            "(N, *event), and the plate of the data one member for each: pyro.plate('data', len(x)), of x as it is "
            "given, not squeezed or transposed."
        )


def check_data_plate(model_sites: dict[str, Any], batch: Sequence[Any]) -> None:
    """Makes sure that the plate which observations stand in on axis −1, if there is one, is that of a batch's rows.

    Raises:
        ValueError: it has another length, and does not choose its members among so many either.
    """
    frames = [frame_of_data(site) for site in model_sites.values() if site["is_observed"]]
    plates = [frame for frame in frames if frame is not None and frame.size > 0]
    if plates and not any(length_of_batch(batch) in (frame.size, frame.full_size) for frame in plates):
        check_rows_of_plate(plates[0].size, batch)


def check_subsamples(*traces: poutine.Trace, num_rows: int) -> None:
    """Makes sure that no plate chooses its members itself: each call would weigh others, and only some of them.

    A data plate that chooses as many as it is given rows only says how many data there are.

    Raises:
        ValueError: one does.
    """
    for trace in traces:
        frames = {frame.name: frame for site in sites(trace).values() for frame in site["cond_indep_stack"]}
        for name, frame in frames.items():
            chosen = getattr(trace.nodes.get(name, {}).get("fn"), "subsample_size", None)  # None where they are given
            if chosen is None or chosen == frame.full_size or (frame.dim == -1 and chosen == num_rows):
                continue
            raise ValueError(
                f"The plate {name!r} draws {chosen} of its {frame.full_size} members at each call, so that the "
                "likelihood would be that of some of them. Evaluate the model without subsample_size; fit() takes the "
                "data in mini-batches of its own (batch_size)."
            )


def _numbers(found: dict[str, Any], names: Sequence[str]) -> int:
    """How many numbers the values of some sites hold."""
    return sum(found[name]["value"].numel() for name in names)


def _has_density(site: Any) -> bool:
    """Whether a site is scored by a density, which is not a probability."""
    if getattr(site["fn"], "_mask", None) is False:  # left out of the score, as dist.mask(False) says
        return False
    return not support(site["fn"]).is_discrete
