"""Programs that no plate of particles survives: their draws are rows instead.

A program that indexes or reshapes by the batch it was given (``loc[mask]``, ``z.view(len(x), -1)``) fails where every
latent has one more axis. It is run on the batch repeated, once per draw, and what its sites hold is given the shape
that a plate of particles would have given it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppgen.inference.programs import PARTICLES, frame_of_data, log_prob, sites

__all__ = ["Repeated"]


class Repeated:
    """A program whose particles are rows. Called as it is, it is the program itself."""

    def __init__(self, program: Callable[..., Any]) -> None:
        self.program: Callable[..., Any] = program.program if isinstance(program, Repeated) else program

    def __call__(self, *batch: Any, **mask: Any) -> Any:
        return self.program(*batch, **mask)

    def with_particles(
        self, batch: Sequence[Any], num_particles: int, nesting: int, proposal: Trace | None = None
    ) -> Trace:
        """A trace as under a plate of particles on axis −1 − nesting, replayed on a proposal's values if given."""
        n = next(len(member) for member in batch if isinstance(member, Tensor) and member.dim())
        program = self.program
        if proposal is not None:
            program = poutine.replay(program, trace=_flat(proposal, num_particles, n, nesting))
        found = poutine.trace(program).get_trace(*(_repeated(member, num_particles, n) for member in batch))
        for site in sites(found).values():
            if (frame := frame_of_data(site)) is None:
                continue  # check() says what is wrong with it
            scored = log_prob(site)
            event = len(site["fn"].event_shape)
            site["scored"] = _split(scored, num_particles, n, nesting, 0)
            site["value"] = _split(site["value"], num_particles, n, nesting, event)
            others = tuple(f for f in site["cond_indep_stack"] if f is not frame)
            particles = CondIndepStackFrame(PARTICLES, -1 - nesting, num_particles, 0)
            site["cond_indep_stack"] = (particles, *others, frame._replace(size=n))
        return found


def _repeated(member: Any, times: int, n: int) -> Any:
    if isinstance(member, Tensor) and member.dim() and len(member) == n:
        return member.repeat(times, *(1,) * (member.dim() - 1))
    return member


def _split(value: Tensor, num_particles: int, n: int, nesting: int, event: int) -> Tensor:
    """(..., S · N, *event) as (S, ..., N, *event), with nesting axes between the first and the event."""
    value = value.reshape((1,) * (nesting + event - value.dim()) + value.shape)
    if value.shape[nesting - 1] == 1:  # the same for all rows
        value = value.expand(*value.shape[: nesting - 1], num_particles * n, *value.shape[nesting:])
    return value.unflatten(nesting - 1, (num_particles, n)).movedim(nesting - 1, 0)


def _flat(proposal: Trace, num_particles: int, n: int, nesting: int) -> Trace:
    flat = Trace()
    for name, site in proposal.nodes.items():
        value = site.get("value")
        if isinstance(value, Tensor) and value.dim() > nesting and value.shape[0] == num_particles:
            rows = (*value.shape[1:nesting], num_particles * n, *value.shape[nesting + 1 :])
            value = value.expand(*value.shape[:nesting], n, *value.shape[nesting + 1 :])
            value = value.movedim(0, nesting - 1).reshape(rows)
        flat.add_node(name, **{**site, "value": value})
    return flat
