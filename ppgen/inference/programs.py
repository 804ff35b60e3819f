"""Pyro programs as the library runs them: traces, their sites, what a first run shows of a pair, what it may not do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints
from torch.nn.utils.rnn import PackedSequence

from ppgen.inference.modes import device_of, dtype_of, first_tensor, seeded, training, unmoved
from ppgen.inference.turns import in_turn
from ppgen.pair import tracing, unadapted

PARTICLES = "num_particles_vectorized"
SHARED = (
    " A latent shared by all data (weights, locations of components, an AutoDiagonalNormal's single vector) has no "
    "per-datum likelihood: fit() takes it; to score log p(x | w) at one value w, leave it out of the guide and hide it "
    "in the model, poutine.block(poutine.condition(model, data={'w': w}), hide=['w'])."
)
Program = Callable[..., Any]


class Structure(NamedTuple):
    """What a first run shows of a pair."""

    nesting: int  # how many plate axes the pair itself uses
    full_size: int | None  # of the data plate, before subsampling; None if it is as long as the batch, or on no axis
    random: bool  # whether the guide draws anything that could come out otherwise
    point: bool  # whether the guide proposes latents, but puts all of its mass on one point
    enumerated: bool  # whether a site asks to be enumerated in parallel
    sequential: bool  # whether a site asks to be enumerated one value after the other
    vectorized: bool  # whether the programs run under a plate of particles
    refused: str | None  # why there are no weights per datum, if so: a latent that all data share


def sites(trace: poutine.Trace) -> dict[str, Any]:
    """The sample sites that carry a density: neither subsample indices nor deterministic values."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not (site["infer"] or {}).get("_deterministic")
    }


def log_prob(site: Any, *, scaled: bool = False) -> Tensor:
    """A site's log-probability with its mask, and with a plate's subsampling scale only if asked for."""
    if "scored" in site:  # beforehand, under other circumstances
        return site["scored"]
    try:
        value = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except RuntimeError as error:
        event, shape = tuple(site["fn"].event_shape), tuple(site["value"].shape)
        if shape[len(shape) - len(event) :] == event:
            raise
        raise ValueError(
            f"The site {site['name']!r} has events of shape {event}, and its value the shape {shape}: model, guide and "
            "data do not fit each other."
        ) from error
    return scale_and_mask(value, site["scale"] if scaled else 1.0, site["mask"])


@in_turn
def run_guide(guide: Program, batch: Sequence[Any], *, num_particles: int | None = None, nesting: int = 0) -> Any:
    """A trace of the guide. Particles sit on axis −1 − nesting."""
    if num_particles is not None and hasattr(guide, "with_particles"):
        return guide.with_particles(batch, num_particles, nesting)
    with _particles(num_particles, nesting):
        return poutine.trace(guide).get_trace(*batch)


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
        return model.with_particles(batch, num_particles, nesting, proposal)
    replayed = poutine.replay(model, trace=proposal)
    enumeration = EnumMessenger(first_available_dim=-2 - nesting) if enumerate_model else nullcontext()
    with enumeration, _particles(num_particles, nesting):
        return poutine.trace(replayed).get_trace(*batch)


def _particles(num_particles: int | None, nesting: int) -> AbstractContextManager[Any]:
    return nullcontext() if num_particles is None else pyro.plate(PARTICLES, num_particles, dim=-1 - nesting)


def run(model: Program, guide: Program, batch: Sequence[Any], **settings: Any) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces of the model and the guide, the model replayed on what the guide drew; settings as for the two."""
    for_guide = {name: value for name, value in settings.items() if name != "enumerate_model"}
    guide_trace = run_guide(guide, batch, **for_guide)
    return run_model(model, guide_trace, batch, **settings), guide_trace


def frame_of_data(site: Any) -> Any | None:
    """The plate frame on axis −1 that a site stands in, if any."""
    return next((f for f in site["cond_indep_stack"] if f.dim == -1 and f.name != PARTICLES), None)


def check_axes(found: dict[str, Any], where: str) -> None:
    """Makes sure that a site in a plate has no axes beside its plates': each datum would meet every other one.

    Raises:
        ValueError: it has.
    """
    for name, site in found.items():
        own = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
        shape = site["fn"].batch_shape
        if own and (axes := [d for d in range(-len(shape), 0) if d not in own and shape[d] != 1]):
            raise ValueError(
                f"The {where}'s site {name!r} has the batch shape {tuple(shape)}, of which axis {axes[-1]} belongs to "
                "no plate: every datum would be combined with every other. Data have one axis of rows, (N, *event): "
                "leave out axes of length 1 between them (x.squeeze(1), x.flatten(1)), or declare the rest an event "
                "(.to_event)."
            )
        event, value = tuple(site["fn"].event_shape), site["value"]
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


def check_pair(pair: Any) -> None:
    """Makes sure that there is a model and a guide.

    Raises:
        TypeError: one is missing, as the guide of a GAN.
    """
    for name in ("model", "guide"):
        if not callable(getattr(pair, name, None)):
            raise TypeError(
                f"pair must have .model and .guide, and {type(pair).__name__} has no .{name}: what has no guide (a "
                "GAN) can only be sampled."
            )


def measure(model: Program, guide: Program, *batch: Any) -> Structure:
    """A first run of a pair, with the generators and buffers given back."""
    owner = getattr(model, "__self__", model)
    with torch.no_grad(), seeded(None, _device(batch)), unmoved(owner):
        model_trace, guide_trace = run(model, guide, batch)
    check_axes(sites(guide_trace), "guide")
    check_axes(sites(model_trace), "model")
    found = [*sites(model_trace).values(), *sites(guide_trace).values()]
    dims = [f.dim for site in found for f in site["cond_indep_stack"] if f.vectorized]
    frames = [f for site in found if (f := frame_of_data(site)) is not None]
    points = [is_point(site) for site in sites(guide_trace).values()]
    # A plate that was given no size has −1 for it: then the batch says how many data there are.
    full_size = max((size for f in frames if (size := f.full_size or f.size) > 0), default=None)
    length = next((len(member) for member in batch if isinstance(member, Tensor) and member.dim()), None)
    nesting = -min(dims, default=0)
    asked = {site["infer"].get("enumerate") for site in found if not site["is_observed"]}
    enumerated = "parallel" in asked
    return Structure(
        nesting=nesting,
        full_size=None if full_size == length else full_size,  # the next batch may be of another length
        random=not all(points),
        point=bool(points) and all(points),
        enumerated=enumerated,
        sequential="sequential" in asked,
        vectorized=enumerated or _vectorized(model, guide, batch, nesting),
        refused=_without_weights(sites(model_trace), sites(guide_trace)),
    )


def _vectorized(model: Program, guide: Program, batch: Sequence[Any], nesting: int) -> bool:
    """Whether the programs run under a plate of particles, with the numbers that they have by rows.

    Also where nothing else runs, so that what is wrong is said as usual.
    """
    from ppgen.inference.repeated import Repeated  # which builds on this file

    owner = getattr(model, "__self__", model)
    with torch.no_grad(), seeded(None, _device(batch)), unmoved(owner):
        try:
            run(model, guide, batch, num_particles=2, nesting=nesting)
        except Exception:  # whatever the program is not made for
            try:
                run(Repeated(model), Repeated(guide), batch, num_particles=2, nesting=nesting)
            except Exception:
                return True
            return False
    if tracing():  # a graph holds no comparison
        return True
    # It may run and still take the data's axis for another (a softmax over axis 1, a BatchNorm1d) where sizes allow it.
    with torch.no_grad(), training(owner, False):
        try:
            plain = _scores(model, guide, batch, nesting)
            by_rows = _scores(Repeated(model), Repeated(guide), batch, nesting)
        except Exception:  # rows are not for it: a parameter for each datum, a subsample
            return True
    return all(torch.allclose(plain[name], by_rows[name], 1e-2, 1e-2, equal_nan=True) for name in plain)


def _scores(model: Program, guide: Program, batch: Sequence[Any], nesting: int) -> dict[str, Tensor]:
    """The log-probabilities of two particles, by site of the guide and then of the model, from one seed.

    With one plate axis the draws are the same whatever way particles are run. With more they are not, and nothing is
    given back.
    """
    from ppgen.inference.weights import per_datum

    if nesting != 1:
        return {}
    n = next(len(member) for member in batch if isinstance(member, Tensor) and member.dim())
    with seeded(0, _device(batch)):
        traces = run(model, guide, batch, num_particles=2, nesting=nesting)
    return {
        f"{i} {name}": per_datum(log_prob(site), nesting, 2, n)
        for i, trace in enumerate(traces)
        for name, site in sites(trace).items()
    }


def _without_weights(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> str | None:
    try:
        _num_data(model_sites, guide_sites)
    except ValueError as error:
        return str(error)
    return None


def programs(model: Program, guide: Program, structure: Structure) -> tuple[Program, Program]:
    """The two programs, such that they take particles as rows if they do not run under a plate of them.

    Raises:
        ValueError: they have no weights per datum.
    """
    if structure.refused is not None:
        raise ValueError(structure.refused)
    from ppgen.inference.repeated import Repeated

    return (model, guide) if structure.vectorized else (Repeated(model), Repeated(guide))


def check_vectorized(structure: Structure, what: str) -> None:
    """Makes sure that the programs have weights per datum, and run under a plate of particles.

    Raises:
        ValueError: they do not.
    """
    if structure.refused is not None:
        raise ValueError(structure.refused)
    if not structure.vectorized:
        raise ValueError(
            f"{what} draws many particles at once, and this pair indexes or reshapes by its batch, so that it does not "
            "run under a plate of them. Write the program so that latents may have one more axis (z[..., 0], not "
            "z[:, 0]; no z.view(len(x), -1)); log_likelihood, ais and iwae(k) take it as it is, with draws as rows."
        )


def is_point(site: Any) -> bool:
    """Whether a site can have one value only. A Delta with a density stands for a draw made elsewhere."""
    fn = unadapted(site["fn"])
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta) and not fn.log_density.any()


def support(fn: Any) -> Any:
    """Where the values of a distribution lie; the real line if it does not say (flows)."""
    try:
        return fn.support
    except NotImplementedError:
        return constraints.independent(constraints.real, len(fn.event_shape))


def _has_density(site: Any) -> bool:
    """Whether a site is scored by a density, which is not a probability."""
    if getattr(site["fn"], "_mask", None) is False:  # left out of the score, as dist.mask(False) says
        return False
    return not support(site["fn"]).is_discrete


def _device(batch: Sequence[Any]) -> torch.device | None:
    return next((member.device for member in batch if isinstance(member, Tensor)), None)


def check_names(model_sites: dict[str, Any], guide_sites: dict[str, Any], from_prior: Sequence[str] = ()) -> None:
    """Makes sure that every latent of the model is proposed, and that the guide proposes nothing else.

    Raises:
        ValueError: a latent that nobody proposes, a guide's site that the model lacks, or no observation.
    """
    latents = [n for n, s in model_sites.items() if not s["is_observed"]]
    if unknown := [n for n in from_prior if n not in latents]:
        raise ValueError(f"from_prior names {unknown}, but the latent sites of the model are {latents}.")
    left_out = [
        n
        for n in latents
        if n not in guide_sites and n not in from_prior and model_sites[n]["infer"].get("_enumerate_dim") is None
    ]
    if left_out:
        raise ValueError(
            f"The model draws {left_out} and the guide does not: without a proposal these latents cannot be weighed. "
            f"Sample them in the guide, mark discrete ones infer={{'enumerate': 'parallel'}} so that they are summed "
            f"out, or name them in from_prior={left_out} so that the prior proposes them."
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
    """Makes sure that a guide without any randomness proposes nothing continuous, where a point has no probability.

    Raises:
        ValueError: it does, as an autoencoder's.
    """
    if not all(is_point(site) for site in guide_sites.values()):
        return
    names = [name for name in guide_sites if name in model_sites and _has_density(model_sites[name])]
    if names:
        raise ValueError(
            f"The guide proposes the continuous {names} at a point, and nothing around it: a point has no probability "
            "there, so there is no weight p(x, z) / q(z | x) and no likelihood of x. An autoencoder has no density of "
            "x for that reason. Fit a prior to its codes and take models.DensityNetwork(prior, decoder), or train a "
            "models.VAE, whose guide is a distribution."
        )


def check(model_trace: poutine.Trace, guide_trace: poutine.Trace, from_prior: Sequence[str]) -> int:
    """The number of data, once it is sure that every site can be weighed per datum.

    Raises:
        ValueError: what :func:`check_names` refuses, a site outside the data plate, or plates of different lengths.
    """
    model_sites, guide_sites = sites(model_trace), sites(guide_trace)
    check_names(model_sites, guide_sites, from_prior)
    check_point(model_sites, guide_sites)
    return _num_data(model_sites, guide_sites)


def _num_data(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> int:
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
