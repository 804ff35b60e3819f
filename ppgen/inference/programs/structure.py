"""What a first run shows of a pair: its plates, its draws, and whether it takes particles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.inference.programs.modes import small_parameters, stirred, training, unmoved
from ppgen.inference.programs.parameters import Shown, showing, trained_parameters
from ppgen.inference.programs.refusals import check_axes, num_data
from ppgen.inference.programs.repeated import Given, Repeated
from ppgen.inference.programs.seeds import seeded
from ppgen.inference.programs.traces import (
    Program,
    device_of_batch,
    is_point,
    length_of_batch,
    log_prob,
    per_datum,
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
    found = [*sites(model_trace).values(), *sites(guide_trace).values()]
    dims = [f.dim for site in found for f in site["cond_indep_stack"] if f.vectorized]
    points = [is_point(site) for site in sites(guide_trace).values()]
    nesting = -min(dims, default=0)
    left = [site for name, site in sites(model_trace).items() if name not in sites(guide_trace)]
    asked = {site["infer"].get("enumerate") for site in found if not site["is_observed"]}
    enumerated = "parallel" in asked
    return Structure(
        nesting=nesting,
        random=not all(points),
        point=bool(points) and all(points),
        enumerated=enumerated,
        summed=tuple(s["name"] for s in left if not s["is_observed"] and s["infer"].get("enumerate") == "parallel"),
        sequential="sequential" in asked,
        vectorized=enumerated or _vectorized(model, guide, batch, nesting, _other_length(found, batch), shown),
        observed=tuple(name for name, site in sites(model_trace).items() if site["is_observed"]),
        part=next((f.name for site in found for f in site["cond_indep_stack"] if _is_part(f)), None),
        refused=_without_weights(sites(model_trace), sites(guide_trace)),
    )


def _is_part(frame: Any) -> bool:
    return frame.vectorized and frame.dim != -1 and (frame.full_size or frame.size) != frame.size


def _other_length(found: Sequence[Any], batch: Sequence[Any]) -> int:
    """A number of particles that no axis is as long as: a loop over an axis would not see that it took another one."""
    plates = {frame.size for site in found for frame in site["cond_indep_stack"]}
    tensors = [value for value in (*batch, *(site["value"] for site in found)) if isinstance(value, Tensor)]
    lengths = plates.union(*(tensor.shape for tensor in tensors))
    return next(length for length in count(2) if length not in lengths)


def _vectorized(
    model: Program, guide: Program, batch: Sequence[Any], nesting: int, particles: int, shown: Shown
) -> bool:
    """Whether the programs run under a plate of so many particles, with the numbers that they have by rows.

    Also where nothing else runs, so that what is wrong is said as usual.
    """
    owners = (getattr(model, "__self__", model), getattr(guide, "__self__", guide))
    with torch.no_grad(), seeded(None, device_of_batch(batch)), unmoved(owners[0]):
        try:
            run(model, guide, batch, num_particles=particles, nesting=nesting)
        except Exception:  # whatever the program is not made for
            try:
                run(Repeated(model), Repeated(guide), batch, num_particles=particles, nesting=nesting)
            except Exception:
                return True
            return False
    if tracing():  # a graph holds no comparison
        return True
    # It may run and still take the data's axis for another (a softmax over axis 1, a BatchNorm1d) where sizes allow it.
    with torch.no_grad(), training(owners[0], False):
        if not _as_by_rows(model, guide, batch, nesting, particles):
            return False
        small = small_parameters([p for owner in owners for p in trained_parameters(owner, shown)])
        with seeded(0, device_of_batch(batch)), stirred(small):
            return not small or _as_by_rows(model, guide, batch, nesting, particles)


def _as_by_rows(model: Program, guide: Program, batch: Sequence[Any], nesting: int, particles: int) -> bool:
    try:
        plain, values = _scores(model, guide, batch, nesting, particles, {})
    except Exception:  # what it gives has more axes than there are plates
        plain, values = None, {}
    try:
        by_rows, _ = _scores(Repeated(model), Repeated(guide), batch, nesting, particles, values)
    except Exception:  # rows are not for it: a parameter for each datum, a subsample
        return True
    return plain is not None and all(
        torch.allclose(plain[name], by_rows[name], 1e-2, 1e-2, equal_nan=True) for name in plain
    )


def _scores(
    model: Program, guide: Program, batch: Sequence[Any], nesting: int, particles: int, values: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The log-probabilities of some particles, by site of the guide and then of the model, and the latents themselves.

    Latents are those given, or drawn.
    """
    n = length_of_batch(batch)
    assert n is not None  # a plate axis has a length
    with seeded(0, device_of_batch(batch)), Given(values, model, particles, n, nesting):
        traces = run(model, guide, batch, num_particles=particles, nesting=nesting)
    found = [(f"{i} {name}", site) for i, trace in enumerate(reversed(traces)) for name, site in sites(trace).items()]
    scores = {key: per_datum(log_prob(site), nesting, particles, n) for key, site in found}
    return scores, {site["name"]: site["value"] for _, site in found if not site["is_observed"]}


def _without_weights(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> str | None:
    try:
        num_data(model_sites, guide_sites)
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
    if structure.refused is not None:
        raise ValueError(structure.refused)
    if not structure.vectorized:
        raise ValueError(
            f"{what} draws many particles at once, and this pair indexes or reshapes by its batch, so that it does not "
            "run under a plate of them. Write the program so that latents may have one more axis (z[..., 0], not "
            "z[:, 0]; no z.view(len(x), -1)); log_likelihood, ais and iwae(k) take it as it is, with draws as rows."
        )
