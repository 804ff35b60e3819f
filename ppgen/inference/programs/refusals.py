"""What a pair's programs may not do, each with the words that say what to do instead."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ppgen.inference.programs.traces import (
    delta_of,
    frame_of_data,
    innermost,
    is_point,
    length_of_batch,
    mask_of,
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


def check_masks(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """Makes sure that what is masked of a latent is masked in both programs: its other density would stand alone.

    All of the model's density may be left out, ``fn.mask(False)``, as a flat prior is written; and at a point the guide
    has none.

    Raises:
        ValueError: a latent is masked in one of them, or otherwise in the other.
    """
    if tracing():  # a graph holds no comparison
        return
    for name in guide_sites.keys() & model_sites.keys():
        masks = _mask(model_sites[name]), _mask(guide_sites[name])
        if not (masks[0] is False or is_point(guide_sites[name]) or _same(*masks)):
            one, other = ("model", "guide") if masks[1] is True else ("guide", "model")
            raise ValueError(
                f"The latent {name!r} is masked in the {one}, and not, or otherwise, in the {other}, so that one of "
                "its two densities would count where the other does not: draw it under the same mask in both programs."
            )


def check_supports(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """Makes sure that the guide proposes of each latent what the model can draw, and all of it.

    Raises:
        ValueError: one program draws a number from a density and the other from a set of values, or the guide reaches
            only a part of the latent's range, or more than one period of an angle.
    """
    if tracing():
        return
    for name in guide_sites.keys() & model_sites.keys():
        p, q = model_sites[name], guide_sites[name]
        if delta_of(q) is not None:  # which hands on what another site drew, wherever that lies
            continue
        kinds = type(innermost(p["fn"])).__name__, type(innermost(q["fn"])).__name__
        of_p, of_q = _range(p["fn"]), _range(q["fn"])
        if support(p["fn"]).is_discrete != support(q["fn"]).is_discrete:
            fault = "one is a probability and the other a density, whose quotient is no weight"
        elif kinds[0] == "VonMises" != kinds[1] and of_q is not None and -math.inf in of_q:
            fault = "a density on one period of an angle is asked for at draws from all of them"
        elif of_p is not None and of_q is not None and _reaches_less(of_q, of_p):
            fault = "the guide's draws reach only a part of its range, and the mean weight would be of that part alone"
        else:
            continue
        raise ValueError(
            f"The latent {name!r} is {kinds[0]} in the model and {kinds[1]} in the guide: {fault}. Propose it from a "
            "distribution with the support that it has in the model."
        )


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


def _mask(site: Any) -> Any:
    """What a site's density is masked by, by the program or by its distribution; True for nothing."""
    own = mask_of(site["fn"])
    return own if site["mask"] is None or site["mask"] is True else own & site["mask"]


def _same(one: Any, other: Any) -> bool:
    """Whether two masks hide the same; of those that do not fit each other that is not known."""
    if one is other:
        return True
    try:
        return bool((torch.as_tensor(one).cpu() == torch.as_tensor(other).cpu()).all())
    except RuntimeError:
        return True


def _range(fn: Any) -> tuple[Any, Any] | None:
    """From where to where the values of a distribution go, if its support is an interval, a half-line or the line."""
    constraint = support(fn)
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    if isinstance(constraint, type(constraints.real)):
        return -math.inf, math.inf
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    if low is None and high is None:
        return None
    return -math.inf if low is None else low, math.inf if high is None else high


def _reaches_less(inner: tuple[Any, Any], outer: tuple[Any, Any]) -> bool:
    """Whether a range leaves out a part of another one, for any datum; of those that do not fit that is not known."""
    (low, high), (lowest, highest) = (tuple(torch.as_tensor(end).cpu() for end in ends) for ends in (inner, outer))
    try:
        return bool((low > lowest).any() or (high < highest).any())
    except RuntimeError:
        return False
