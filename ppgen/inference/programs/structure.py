"""What a first run shows of a pair: its plates, its draws, and whether it takes particles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppgen.errors import first_line
from ppgen.inference.programs.modes import buffers_of, small_tensors, stirred, training, unabridged, unmoved
from ppgen.inference.programs.parameters import Shown, showing, trained_parameters
from ppgen.inference.programs.proposed import check_masks, check_supports
from ppgen.inference.programs.refusals import check_axes, check_innermost, num_data
from ppgen.inference.programs.repeated import Given, Repeated
from ppgen.inference.programs.seeds import seeded
from ppgen.inference.programs.traces import (
    Program,
    device_of_batch,
    is_point,
    length_of_batch,
    log_prob,
    num_rows,
    run,
    sites,
)
from ppgen.pair import tracing


class Structure(NamedTuple):
    """What a first run shows of a pair."""

    nesting: int  # how many plate axes the pair itself uses
    random: bool  # whether the guide draws anything that could come out otherwise
    point: bool  # whether the guide proposes latents, but puts all of its mass on one point
    enumerated: bool  # whether a site asks to be enumerated in parallel
    summed: tuple[str, ...]  # the model's latents that ask for it and that the guide does not draw
    sequential: bool  # whether a site asks to be enumerated one value after the other
    vectorized: bool  # whether the programs run under a plate of particles
    single: str | None  # why they take one particle at a time only, if so: neither a plate of them nor further rows
    observed: tuple[str, ...]  # the model's sites that are observed, factors among them
    part: str | None  # the plate inside the data plate that has some of its members only, if there is one
    refused: str | None  # why there are no weights per datum, if so: a latent that all data share


def measure(model: Program, guide: Program, *batch: Any) -> Structure:
    """A first run of a pair, with the generators and buffers given back."""
    owner = getattr(model, "__self__", model)
    with torch.no_grad(), seeded(None, device_of_batch(batch)), unmoved(owner), showing() as shown:
        model_trace, guide_trace = run(model, guide, batch)
    check_axes(sites(guide_trace), "guide")
    check_axes(sites(model_trace), "model")
    check_masks(sites(model_trace), sites(guide_trace))
    found = [*sites(model_trace).values(), *sites(guide_trace).values()]
    refused = _without_weights(model_trace, guide_trace)
    check_innermost(found, length_of_batch(batch))
    if refused is None and (shorter := _one_row_less(model, guide, batch, found)) is not None:
        check_innermost([site for trace in shorter for site in sites(trace).values()], num_rows(batch) - 1)
        refused = _without_weights(*shorter)
    dims = [f.dim for site in found for f in site["cond_indep_stack"] if f.vectorized]
    points = [is_point(site) for site in sites(guide_trace).values()]
    nesting = -min(dims, default=0)
    left = [site for name, site in sites(model_trace).items() if name not in sites(guide_trace)]
    asked = {site["infer"].get("enumerate") for site in found if not site["is_observed"]}
    enumerated = "parallel" in asked
    vectorized, single = _takes_particles(model, guide, batch, (model_trace, guide_trace), nesting, enumerated, shown)
    return Structure(
        nesting=nesting,
        random=not all(points),
        point=bool(points) and all(points),
        enumerated=enumerated,
        summed=tuple(s["name"] for s in left if not s["is_observed"] and s["infer"].get("enumerate") == "parallel"),
        sequential="sequential" in asked,
        vectorized=vectorized,
        single=single,
        observed=tuple(name for name, site in sites(model_trace).items() if site["is_observed"]),
        part=next((f.name for site in found for f in site["cond_indep_stack"] if _is_part(f)), None),
        refused=refused,
    )


def _is_part(frame: Any) -> bool:
    return frame.dim != -1 and (frame.full_size or frame.size) != frame.size


def _one_row_less(model: Program, guide: Program, batch: Sequence[Any], found: Sequence[Any]) -> Any:
    """Traces of a batch without its last row, if several plates are as long as it is: only the data's is shorter then.

    None where no plates can be mistaken, or the programs do not take another number of rows.
    """
    length = num_rows(batch)
    plates = {f.name for site in found for f in site["cond_indep_stack"] if f.vectorized and f.size == length}
    if len(plates) < 2 or length < 2 or tracing():
        return None
    shorter = [m[:-1] if isinstance(m, Tensor) and m.dim() and len(m) == length else m for m in batch]
    with torch.no_grad(), seeded(None, device_of_batch(batch)), unmoved(getattr(model, "__self__", model)):
        try:
            return run(model, guide, shorter)
        except Exception:  # of another length than its own parameters, say
            return None


def _other_length(found: Sequence[Any], batch: Sequence[Any]) -> int:
    """A number of particles that no axis is as long as: a loop over an axis would not see that it took another one."""
    plates = {frame.size for site in found for frame in site["cond_indep_stack"]}
    tensors = [value for value in (*batch, *(site["value"] for site in found)) if isinstance(value, Tensor)]
    lengths = plates.union(*(tensor.shape for tensor in tensors))
    return next(length for length in count(2) if length not in lengths)


def _takes_particles(
    model: Program,
    guide: Program,
    batch: Sequence[Any],
    alone: tuple[Any, Any],
    nesting: int,
    enumerated: bool,
    shown: Shown,
) -> tuple[bool, str | None]:
    """Whether the programs run under a plate of particles, with the numbers that they have one particle at a time.

    And if not, why particles cannot be further rows either. Where nothing runs, a plate will do: what is wrong is then
    said as usual.
    """
    found = [site for trace in alone for site in sites(trace).values()]
    settings = {"num_particles": _other_length(found, batch), "nesting": nesting, "enumerate_model": enumerated}
    with torch.no_grad(), seeded(None, device_of_batch(batch)), unmoved(getattr(model, "__self__", model)):
        try:
            run(model, guide, batch, **settings)
            runs = True
        except Exception:  # whatever the program is not made for
            runs = False
        if runs and (tracing() or _as_alone(model, guide, batch, alone, settings, shown)):  # a graph compares nothing
            return True, None
        try:
            run(Repeated(model), Repeated(guide), batch, **settings)
        except Exception as error:
            return not runs, _single(error) if runs else None
        return False, None


def _single(error: Exception) -> str:
    return (
        "Several draws at once are not for this pair. Under a plate of them it takes one axis for another, as "
        "softmax(z, 1) does: write what it does with latents from their last axis on, softmax(z, -1). Nor can they be "
        "further rows of the data, which a plate, a parameter or a latent of a fixed length does not take "
        f"({type(error).__name__}: {first_line(error)})."
    )


def _as_alone(
    model: Program, guide: Program, batch: Sequence[Any], alone: tuple[Any, Any], settings: dict[str, Any], shown: Shown
) -> bool:
    """Whether a plate of particles changes nothing but that there are several.

    Programs may run under it and still take the data's axis for another (a softmax over axis 1, a BatchNorm1d) where
    sizes allow it.
    """
    owners = (getattr(model, "__self__", model), getattr(guide, "__self__", guide))
    with training(owners[0], False), unabridged(device_of_batch(batch)):
        if not _as_one_by_one(model, guide, batch, alone, settings):
            return False
        tensors: list[Tensor] = [p for owner in owners for p in trained_parameters(owner, shown)]
        small = small_tensors([*tensors, *(buffer.tensor for buffer in buffers_of(*owners))])
        with seeded(0, device_of_batch(batch)), stirred(small):
            return not small or _as_one_by_one(model, guide, batch, alone, settings)


def _as_one_by_one(
    model: Program,
    guide: Program,
    batch: Sequence[Any],
    alone: tuple[Any, Any],
    settings: dict[str, Any],
) -> bool:
    """Whether every site has the log-probabilities under a plate of particles that it has in runs of its own."""
    shapes = {name: site["value"].shape for trace in alone for name, site in trace.nodes.items() if _is_draw(site)}
    device, axis = device_of_batch(batch), -1 - settings["nesting"]
    try:
        with seeded(0, device):
            together: tuple[Any, Any] = run(model, guide, batch, **settings)
    except Exception:  # of values that a first draw did not have
        return False
    drawn = {
        name: site
        for trace in together
        for name, site in trace.nodes.items()
        if _is_draw(site) and site["infer"].get("_enumerate_dim") is None
    }
    for particle in range(settings["num_particles"]):
        values = {name: _of_particle(site, axis, particle, shapes.get(name)) for name, site in drawn.items()}
        try:
            with seeded(0, device), Given(values, model, 1, 1, settings["nesting"]):
                traces = run(model, guide, batch, **{**settings, "num_particles": None})
        except Exception:  # of values that its own draws do not have
            return False
        for ours, theirs in zip(map(sites, together), map(sites, traces), strict=True):
            try:
                expected = {name: log_prob(site) for name, site in theirs.items()}
            except Exception:  # it has no density, or not of these data: which is said when one is asked for
                return True
            if ours.keys() != theirs.keys() or not all(
                _alike(ours[name], density, axis, particle) for name, density in expected.items()
            ):
                return False
    return True


def _alike(site: Any, alone: Tensor, axis: int, particle: int) -> bool:
    """Whether a particle has at a site the density that it has alone, up to rounding."""
    try:
        density, alone = torch.broadcast_tensors(_slice(log_prob(site), axis, particle), alone)
    except (RuntimeError, ValueError):  # what it gives has more axes than there are plates
        return False
    return torch.allclose(density, alone, 1e-3, 1e-3, equal_nan=True)


def _is_draw(site: Any) -> bool:
    """Whether a node of a trace is something drawn, a plate's members included."""
    return bool(site["type"] == "sample" and not site["is_observed"] and isinstance(site["value"], Tensor))


def _slice(value: Tensor, axis: int, particle: int) -> Tensor:
    """What a tensor has for one particle, where it has several."""
    return value.narrow(axis, particle, 1) if value.dim() >= -axis and value.shape[axis] > 1 else value


def _of_particle(site: Any, axis: int, particle: int, shape: torch.Size | None) -> Tensor:
    """A particle's value of a site, of the shape that it has without a plate of particles."""
    value: Tensor = site["value"]
    if not site_is_subsample(site):
        value = _slice(value, axis - len(site["fn"].event_shape), particle)
    return value.reshape(shape) if shape is not None and shape.numel() == value.numel() else value


def _without_weights(model_trace: Any, guide_trace: Any) -> str | None:
    model_sites, guide_sites = sites(model_trace), sites(guide_trace)
    try:
        num_data(model_sites, guide_sites)
        check_supports(model_sites, guide_sites)
    except ValueError as error:
        return str(error)
    return None


def programs(model: Program, guide: Program, structure: Structure) -> tuple[Program, Program]:
    """The two programs, such that they take particles as rows if they do not run under a plate of them.

    Raises:
        ValueError: they have no weights per datum, or take one particle at a time only.
    """
    if (why := structure.refused or structure.single) is not None:
        raise ValueError(why)
    return (model, guide) if structure.vectorized else (Repeated(model), Repeated(guide))


def check_whole(structure: Structure, what: str) -> None:
    """Makes sure that each datum is whole: parts of it, scaled or not, would stand inside the logarithm of a mean.

    Raises:
        ValueError: a plate inside the data plate has a subsample of its members.
    """
    if structure.part is not None:
        raise ValueError(
            f"The plate {structure.part!r}, inside the data plate, has a subsample of its members, a part of each "
            f"datum, and {what} of a part is none of the datum: take all members (no subsample), or elbo(), which "
            "scales the part."
        )


def check_vectorized(structure: Structure, what: str) -> None:
    """Makes sure that the programs have weights per datum, and run under a plate of particles.

    Raises:
        ValueError: they do not.
    """
    if (why := structure.refused or structure.single) is not None:
        raise ValueError(why)
    if not structure.vectorized:
        raise ValueError(
            f"{what} draws many particles at once, and this pair indexes or reshapes by its batch, so that it does not "
            "run under a plate of them. Write the program so that latents may have one more axis (z[..., 0], not "
            "z[:, 0]; no z.view(len(x), -1)); log_likelihood, ais and iwae(k) take it as it is, with draws as rows."
        )
