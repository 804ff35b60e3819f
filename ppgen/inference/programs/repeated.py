"""Programs that no plate of particles survives: their draws are rows instead.

A program that indexes or reshapes by the batch it was given (``loc[mask]``, ``z.view(len(x), -1)``) fails where every
latent has one more axis. It is run on the batch repeated, once per draw, and what its sites hold is given the shape
that a plate of particles would have given it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ppgen.inference.programs.sequences import Packed
from ppgen.inference.programs.traces import PARTICLES, frame_of_data, length_of_batch, log_prob, own_scale, sites

__all__ = ["Given", "Repeated"]


class Repeated:
    """A program whose particles are rows. Called as it is, it is the program itself."""

    def __init__(self, program: Callable[..., Any]) -> None:
        self.program: Callable[..., Any] = program.program if isinstance(program, Repeated) else program

    def __call__(self, *batch: Any, **mask: Any) -> Any:
        return self.program(*batch, **mask)

    def with_particles(
        self,
        batch: Sequence[Any],
        num_particles: int,
        nesting: int,
        proposal: Trace | None = None,
        enumerate_model: bool = False,
    ) -> Trace:
        """A trace as under a plate of particles on axis −1 − nesting, replayed on a proposal's values if given."""
        n = length_of_batch(batch)
        assert n is not None  # a plate axis has a length
        program = self.program
        if enumerate_model:
            program = EnumMessenger(first_available_dim=-1 - nesting)(program)
        if proposal is not None:
            program = poutine.replay(program, trace=_flat(proposal, num_particles, n, nesting))
        with _Members(num_particles, n):
            found = poutine.trace(program).get_trace(*(_repeated(member, num_particles, n) for member in batch))
        for name in [name for name, site in found.nodes.items() if _is_plate(site, num_particles * n)]:
            found.remove_node(name)  # its indices are those of the rows, and others ask for other numbers of particles
        for site in sites(found).values():
            if (frame := frame_of_data(site)) is None:
                continue  # check_weighable says what is wrong with it
            # What is summed out is scored without its mask, as under a plate of particles.
            scored, scale = log_prob(site, masked=site["infer"].get("_enumerate_dim") is None), own_scale(site)
            event = len(site["fn"].event_shape)
            site["scored"] = _split(scored, num_particles, n, nesting, 0)
            site["scale"] = _split(scale, num_particles, n, nesting, 0) if getattr(scale, "shape", ()) else scale
            site["value"] = _split(site["value"], num_particles, n, nesting, event)
            others = tuple(f._replace(full_size=f.size) for f in site["cond_indep_stack"] if f is not frame)
            particles = CondIndepStackFrame(PARTICLES, -1 - nesting, num_particles, 0)
            site["cond_indep_stack"] = (particles, *others, frame._replace(size=n, full_size=n))
            site["infer"] = _left_of_particles(site["infer"])
        return found


def _left_of_particles(infer: dict[str, Any]) -> dict[str, Any]:
    """What is noted of the axes of enumerated sites, once the particles have an axis to the right of them."""
    moved = dict(infer)
    if "_dim_to_id" in infer:
        moved["_dim_to_id"] = {dim - 1: site for dim, site in infer["_dim_to_id"].items()}
    if infer.get("_enumerate_dim") is not None:
        moved["_enumerate_dim"] = infer["_enumerate_dim"] - 1
    return moved


class _Members(Messenger):
    """Gives a plate that draws as many of its members as it is given rows the same members for every particle.

    It may well have fewer members than there are rows.
    """

    def __init__(self, num_particles: int, n: int) -> None:
        super().__init__()
        self.num_particles, self.n = num_particles, n

    def _pyro_sample(self, msg: Any) -> None:
        fn, rows = msg["fn"], self.num_particles * self.n
        if site_is_subsample(msg) and msg["value"] is None and fn.subsample_size == rows != fn.size:
            msg["value"] = torch.randperm(fn.size, device=fn.device)[: self.n].repeat(self.num_particles)


def _repeated(member: Any, times: int, n: int) -> Any:
    if isinstance(member, Tensor) and member.dim() and len(member) == n:
        return member.repeat(times, *(1,) * (member.dim() - 1))
    if isinstance(member, PackedSequence):
        return Packed(member)[torch.arange(n).repeat(times)]
    return member


def _split(value: Tensor, num_particles: int, n: int, nesting: int, event: int) -> Tensor:
    """(*enumerated, ..., S · N, *event) as (*enumerated, S, ..., N, *event), with nesting axes before the event."""
    value = value.reshape((1,) * (nesting + event - value.dim()) + value.shape)
    rows = value.dim() - event - 1
    if value.shape[rows] == 1:  # the same for all rows
        value = value.expand(*value.shape[:rows], num_particles * n, *value.shape[rows + 1 :])
    return value.unflatten(rows, (num_particles, n)).movedim(rows, rows + 1 - nesting)


def as_rows(value: Any, num_particles: int, n: int, nesting: int) -> Any:
    """(S, ..., N, *event) as (..., S · N, *event) without axes of length 1 in front; anything else as it is."""
    if not (isinstance(value, Tensor) and value.dim() > nesting and value.shape[0] == num_particles):
        return value
    rows = (*value.shape[1:nesting], num_particles * n, *value.shape[nesting + 1 :])
    value = value.expand(*value.shape[:nesting], n, *value.shape[nesting + 1 :])
    inner = next((i for i, size in enumerate(rows[: nesting - 1]) if size > 1), nesting - 1)  # a plate it stands in
    return value.movedim(0, nesting - 1).reshape(rows[inner:])


def _flat(proposal: Trace, num_particles: int, n: int, nesting: int) -> Trace:
    flat = Trace()
    for name, site in proposal.nodes.items():
        if site["type"] == "sample":
            flat.add_node(name, **{**site, "value": as_rows(site.get("value"), num_particles, n, nesting)})
    return flat


def _is_plate(site: Any, num_rows: int) -> bool:
    return site["type"] == "sample" and site_is_subsample(site) and len(site["value"]) == num_rows


class Given(Messenger):
    """Values in the place of draws, by site name: of shape (S, ..., N, *event), whatever way particles are run."""

    def __init__(
        self, values: Mapping[str, Tensor], program: Callable[..., Any], num_particles: int, n: int, nesting: int
    ):
        super().__init__()
        self.values = values
        if isinstance(program, Repeated):
            self.values = {name: as_rows(value, num_particles, n, nesting) for name, value in values.items()}

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and (value := self.values.get(msg["name"])) is not None:
            msg["value"], msg["done"] = value, True
