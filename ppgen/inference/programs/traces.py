"""Pyro programs as the library runs them: traces, and what is at their sites."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import and_
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution, constraints
from torch.nn.utils.rnn import PackedSequence

from ppgen.inference.programs.networks import device_of, dtype_of, first_tensor
from ppgen.inference.programs.turns import in_turn
from ppgen.pair import unadapted

PARTICLES = "num_particles_vectorized"
Program = Callable[..., Any]
WRAPPERS = (Independent, ExpandedDistribution, MaskedDistribution)


def sites(trace: poutine.Trace) -> dict[str, Any]:
    """The sample sites that carry a density: neither subsample indices nor deterministic values."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not (site["infer"] or {}).get("_deterministic")
    }


def log_prob(site: Any, *, scaled: bool = False, masked: bool = True) -> Tensor:
    """A site's log-probability with its mask, and with a plate's subsampling scale only if asked for."""
    if "scored" in site:  # beforehand, under other circumstances
        return site["scored"]
    given = _afresh(site["value"]) if site["is_observed"] else site["value"]
    try:
        value = site["fn"].log_prob(given, *site["args"], **site["kwargs"])
    except RuntimeError as error:
        event, shape = tuple(site["fn"].event_shape), tuple(site["value"].shape)
        if shape[len(shape) - len(event) :] == event:
            raise
        raise ValueError(
            f"The site {site['name']!r} has events of shape {event}, and its value the shape {shape}: model, guide and "
            "data do not fit each other."
        ) from error
    return scale_and_mask(value, site["scale"] if scaled else 1.0, site["mask"] if masked else None)


def _afresh(value: Any) -> Any:
    """What was observed, as a tensor that no density has seen, and of numbers that densities can calculate with.

    Transforms that keep their last result (Pyro's flows) know what it is of by the object: of data that are scored
    again it would be the result, and the graph, of the parameters before. Where a value is drawn it is what they keep.
    To a type without a sign −1 is 255, and booleans have no arithmetic.
    """
    if not isinstance(value, Tensor):
        return value
    return value.view_as(value) if value.dtype.is_signed else value.to(torch.get_default_dtype())


class _Afresh(poutine.messenger.Messenger):
    """Observations as :func:`_afresh` in the trace of an objective of Pyro's, and to the program as they were."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            self.given, msg["value"] = msg["value"], _afresh(msg["value"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"]:  # which is traced by now, further out
            msg["value"] = self.given


def observing(model: Program) -> Program:
    """A model for an objective of Pyro's, which scores what it observes as :func:`log_prob` does."""
    return _Afresh()(model)


def own_scale(site: Any) -> Any:
    """What a program weighs a site by (``poutine.scale``): its scale without that of subsampled plates."""
    of_plates = 1.0
    for frame in reversed(site["cond_indep_stack"]):  # in Pyro's order, so that the quotient is 1, not nearly 1
        of_plates = of_plates * (frame.full_size or frame.size) / frame.size
    return site["scale"] / of_plates


def per_datum(value: Tensor, nesting: int, num_particles: int, num_data: int) -> Tensor:
    """A site's log-probability summed over every plate but particles and data: shape (S, N)."""
    beyond = max(value.dim() - nesting - 1, 0)  # axes of length 1, of sums over a single value
    value = value.reshape((1,) * (nesting + 1 - value.dim()) + value.shape[beyond:])
    if nesting > 1:
        value = value.sum(tuple(range(-nesting, -1)))
    return value.expand(num_particles, num_data)


def coordinates(site: Any, nesting: int, num_particles: int, num_data: int) -> Tensor:
    """A site's value, with all that one datum has of it, in other plates and the event, in a row: shape (S, N, D)."""
    value, event = site["value"], len(site["fn"].event_shape)
    value = value.reshape((1,) * (nesting + 1 + event - value.dim()) + value.shape).movedim(nesting, 1)
    inner = value.shape[2:]
    return value.expand(num_particles, num_data, *inner).reshape(num_particles, num_data, inner.numel())


def is_factor(site: Any) -> bool:
    """Whether a site is a ``pyro.factor``, which has a density and no value."""
    return bool(site["is_observed"]) and tuple(site["fn"].event_shape) == (0,)


def as_data(site: Any, value: Tensor) -> Tensor:
    """A value of a site's shape as data come, rows first: (N, *other plates, *event)."""
    batch = value.dim() - len(site["fn"].event_shape)
    return value.movedim(batch - 1, 0) if batch > 1 else value


@in_turn
def run_guide(
    guide: Program,
    batch: Sequence[Any],
    *,
    num_particles: int | None = None,
    nesting: int = 0,
    observed: Collection[str] = (),
) -> Any:
    """A trace of the guide, without what it observes, as :func:`proposing`. Particles sit on axis −1 − nesting."""
    if num_particles is not None and hasattr(guide, "with_particles"):
        trace = guide.with_particles(batch, num_particles, nesting)
    else:
        with particles(num_particles, nesting):
            trace = poutine.trace(guide).get_trace(*batch)
    _leave_out(trace, observed)
    return trace


def proposing(guide: Program, observed: Collection[str]) -> Program:
    """A guide for an objective of Pyro's, without its observed sites but those that are auxiliary and its own.

    What a guide observes is no part of what it proposes: guides that run the model (Pyro's ``GuideMessenger``) leave
    its observations and factors in their traces, whose densities would cancel the likelihood.

    Args:
        guide: the guide.
        observed: the sites that the model observes.
    """
    return poutine.block(guide, hide_fn=lambda msg: msg["type"] == "sample" and _is_left_out(msg, observed))


def _leave_out(trace: poutine.Trace, observed: Collection[str]) -> None:
    for name in [name for name, site in sites(trace).items() if _is_left_out(site, observed)]:
        trace.remove_node(name)


def _is_left_out(site: Any, observed: Collection[str]) -> bool:
    infer = site["infer"] or {}
    if not site["is_observed"] or infer.get("_deterministic"):
        return False
    return site["name"] in observed or not infer.get("is_auxiliary")


@in_turn
def run_model(
    model: Program,
    proposal: poutine.Trace,
    batch: Sequence[Any],
    *,
    num_particles: int | None = None,
    nesting: int = 0,
    enumerate_model: bool = False,
) -> poutine.Trace:
    """A trace of the model, replayed on what was proposed. Enumerated sites sit left of the particles."""
    if num_particles is not None and hasattr(model, "with_particles"):
        return model.with_particles(batch, num_particles, nesting, proposal, enumerate_model)
    if enumerate_model:  # inside of what replays, whose values may depend on what is summed out
        model = EnumMessenger(first_available_dim=-2 - nesting)(model)
    with particles(num_particles, nesting):
        return poutine.trace(poutine.replay(model, trace=proposal)).get_trace(*batch)


def particles(num_particles: int | None, nesting: int) -> AbstractContextManager[Any]:
    """The plate of the particles, left of the pair's own; nothing for a single one."""
    return nullcontext() if num_particles is None else pyro.plate(PARTICLES, num_particles, dim=-1 - nesting)


def run(model: Program, guide: Program, batch: Sequence[Any], **settings: Any) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces of the model and the guide, the model replayed on what the guide drew; settings as for the two."""
    for_guide = {name: value for name, value in settings.items() if name != "enumerate_model"}
    guide_trace = run_guide(guide, batch, **for_guide)
    model_trace = run_model(model, guide_trace, batch, **settings)
    _leave_out(guide_trace, [name for name, site in sites(model_trace).items() if site["is_observed"]])
    return model_trace, guide_trace


def run_without_data(model: Program, context: Sequence[Any]) -> dict[str, Any]:
    """The sites of a model that draws its observation, in whatever plates are open around it.

    Raises:
        TypeError: it cannot.
    """
    try:
        return sites(poutine.trace(model).get_trace(None, *context))
    except (TypeError, AttributeError) as error:
        raise TypeError(
            f"The model could not be run without data ({error}): write it as model(x=None, ...), with the plate sized "
            "by ppgen.pair.data_plate(x, ...), so that None draws the observation."
        ) from error


def frame_of_data(site: Any) -> Any | None:
    """The plate frame on axis −1 that a site stands in, if any."""
    return next((f for f in site["cond_indep_stack"] if f.dim == -1 and f.name != PARTICLES), None)


def layers(distribution: Any) -> Iterator[Any]:
    """A distribution, and what is inside of what makes events of it, expands it, masks it or leaves elements out."""
    inner = unadapted(distribution)
    yield inner
    while (further := inner.base_dist if isinstance(inner, WRAPPERS) else getattr(inner, "whole", None)) is not None:
        inner = unadapted(further)
        yield inner


def innermost(distribution: Any) -> Any:
    """The last of a distribution's :func:`layers`, whose type says what it is."""
    *_, inner = layers(distribution)
    return inner


def delta_of(site: Any) -> Delta | None:
    """The Delta that a site is, inside of what makes events of it or transforms it; None if it is none."""
    inner = innermost(site["fn"])
    while isinstance(inner, TransformedDistribution):
        inner = innermost(inner.base_dist)
    return inner if isinstance(inner, Delta) else None


def is_point(site: Any) -> bool:
    """Whether a site can have one value only. A Delta with a density stands for a draw made elsewhere."""
    return (delta := delta_of(site)) is not None and not delta.log_density.any()


def mask_of(distribution: Any) -> Any:
    """What a distribution itself hides of its density; True for nothing."""
    masks = (getattr(fn, "_mask", None) for fn in layers(distribution))
    return reduce(and_, (mask for mask in masks if mask is not None and mask is not True), True)


def support(fn: Any) -> Any:
    """Where the values of a distribution lie; the real line if it does not say (flows)."""
    try:
        return fn.support
    except NotImplementedError:
        return constraints.independent(constraints.real, len(fn.event_shape))


def device_of_batch(batch: Sequence[Any]) -> torch.device | None:
    """Where the first tensor of a batch is."""
    return next((member.data.device for member in batch if isinstance(member, Tensor | PackedSequence)), None)


def length_of_batch(batch: Sequence[Any]) -> int | None:
    """How many rows the first tensor of a batch has that has any, or how many sequences the packed ones before it."""
    for member in batch:
        if isinstance(member, PackedSequence):
            return int(member.batch_sizes[0])
        if isinstance(member, Tensor) and member.dim():
            return len(member)
    return None


def num_rows(batch: Sequence[Any]) -> int:
    """The rows of a batch of data; one that does not tell counts as one."""
    length = length_of_batch(batch)
    return 1 if length is None else length


def device_batch(pair: Any, batch: Sequence[Any]) -> tuple[Any, ...]:
    """A batch moved to where the pair is, floats in the precision of its parameters."""
    if (first := first_tensor(pair)) is not None and all(_is_like(member, first) for member in batch):
        return tuple(batch)
    tensors: list[Any] = [member for member in batch if isinstance(member, Tensor | PackedSequence)]
    device = device_of(pair)
    dtype = dtype_of(pair, {member.data.dtype for member in tensors if member.data.is_floating_point()})

    def placed(member: Any) -> Any:
        if not isinstance(member, Tensor | PackedSequence):
            return member
        movable: Any = member  # a packed sequence takes what a tensor does
        return movable.to(device, dtype if movable.data.is_floating_point() else None)

    return tuple(placed(member) for member in batch)


def _is_like(member: Any, first: Tensor) -> bool:
    """Whether nothing has to be done to a member of a batch: asked at every step."""
    return (
        isinstance(member, Tensor)
        and member.device == first.device
        and (member.dtype == first.dtype or not member.is_floating_point())
    )
