r"""Repair of a poor proposal: the guide refined and widened for each datum before its draws are weighed.

Importance sampling fails in silence where the guide is narrower than the posterior: what it never draws, no weight can
show. Here the guide is moved for each datum, :math:`u' = m + \delta + c \odot (u - m)` about its centre m in
unconstrained coordinates, with what a pilot says; the estimate is made of fresh draws, so the weights stay unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppgen.inference.evaluation.likelihood import CELL_DATA, Estimate, log_likelihood
from ppgen.inference.evaluation.moves import Coordinates, Move, Repaired, moves
from ppgen.inference.execution.batches import read_once
from ppgen.inference.execution.fingerprint import fingerprint
from ppgen.inference.programs.masks import masked
from ppgen.inference.programs.modes import evaluating
from ppgen.inference.programs.repeated import Given
from ppgen.inference.programs.seeds import derived_seed, seeded
from ppgen.inference.programs.structure import Structure, measure, programs
from ppgen.inference.programs.traces import (
    device_batch,
    device_of_batch,
    log_prob,
    num_rows,
    per_datum,
    run,
    run_guide,
    sites,
    support,
)
from ppgen.inference.programs.weights import combine, weigh
from ppgen.numbers import natural_number, positive_integer, positive_number
from ppgen.pair import Pair

__all__ = ["RepairedEstimate", "repaired_log_likelihood"]

SCALES = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)
LEARNING_RATE = 0.05
CHECK_SAMPLES = 100  # on which a refined guide must be better than it was


@dataclass(frozen=True)
class RepairedEstimate(Estimate):
    r"""Log p(x) of each datum with a repaired guide as the proposal: an :class:`Estimate` that says what was done.

    Attributes:
        method: the repair in words.
        scales: by which the guide was widened, of each datum; 1 where it was left as it is.
        refined: whether the refined guide was better, and taken, of each datum.
    """

    method: str
    scales: Tensor
    refined: Tensor

    def summary(self) -> dict[str, Any]:
        """The means as plain numbers, for JSON."""
        return {
            **super().summary(),
            "method": self.method,
            "median_scale": self.scales.median().item(),
            "refined_fraction": self.refined.double().mean().item(),
        }

    def __str__(self) -> str:
        return f"{super().__str__()} by {self.method}"


class _Shifts(NamedTuple):
    """By which the latents of a block are moved."""

    axes: dict[str, int]  # of the data, in each latent
    members: list[Tensor]  # a shift and a log-scale of each latent, data axis first
    taken: Tensor  # of which data they are better than nothing; they are zero for the others


def _refine(pair: Pair, block: Sequence[Any], structure: Structure, num_steps: int, num_particles: int) -> _Shifts:
    found = sites(run_guide(pair.guide, block))
    leaves: list[Tensor] = []
    axes = {}
    for name, site in found.items():
        if moves(site):
            coordinates = Coordinates.of(site["fn"])
            u = coordinates.transform.inv(site["value"])
            axes[name] = u.dim() - coordinates.event_dim - 1
            leaves += [torch.zeros_like(u.movedim(axes[name], 0)).requires_grad_() for _ in range(2)]
    refined = _refined(pair, axes)
    optimizer = torch.optim.Adam(leaves, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        with torch.enable_grad():
            weighted = weigh(refined.model, refined.guide, (block[0], *leaves, *block[1:]), num_particles, structure)
            if weighted.score is not None:
                raise ValueError("The guide has draws that are not reparameterised, and refining needs their gradient.")
            gradients = torch.autograd.grad(-weighted.log_weights.mean(0).sum(), leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
        schedule.step()
    best = [leaf.detach() for leaf in leaves]
    with seeded(None, device_of_batch(block)):  # both with the same noise
        before = weigh(pair.model, pair.guide, block, CHECK_SAMPLES, structure).log_weights.mean(0)
    after = weigh(refined.model, refined.guide, (block[0], *best, *block[1:]), CHECK_SAMPLES, structure)
    better = after.log_weights.mean(0) > before
    return _Shifts(axes, [torch.where(_rows(better, member), member, 0.0) for member in best], better)


def _joined(blocks: Sequence[_Shifts]) -> _Shifts:
    """The shifts of all data. A latent that a block does not have, of shorter sequences, is not moved there."""
    axes = {name: axis for block in blocks for name, axis in block.axes.items()}
    members = []
    for name in axes:
        there = [dict(zip(b.axes, zip(b.members[::2], b.members[1::2], strict=True), strict=True)) for b in blocks]
        shape = next(found[name][0].shape[1:] for found in there if name in found)
        for i in range(2):
            parts = [
                found[name][i].cpu() if name in found else torch.zeros(len(block.taken), *shape)
                for block, found in zip(blocks, there, strict=True)
            ]
            members.append(torch.cat(parts))
    return _Shifts(axes, members, torch.cat([block.taken.cpu() for block in blocks]))


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def _refined(pair: Pair, axes: dict[str, int]) -> Repaired:
    """A pair whose batches have the shifts and log-scales of its latents behind the first member."""

    def move(*members: Tensor) -> Move:
        pairs = zip(members[::2], members[1::2], strict=True)
        there = zip(axes.items(), pairs, strict=True)
        return Move(sites={n: (shift.movedim(0, axis), scale.movedim(0, axis)) for (n, axis), (shift, scale) in there})

    return Repaired(pair, 2 * len(axes), move)


def _choose(pair: Pair, block: Sequence[Any], structure: Structure, scales: Sequence[float], num_pilot: int) -> Tensor:
    r"""The scale of least variance of each datum.

    The second moment :math:`\mathbb{E}_{q_c}[w_c^2] = \int p(x, z)^2 / q_c(z)\, dz` is estimated for all scales from
    the draws of all: those of a wide guide say what a narrow one misses, which its own draws cannot.
    """
    nesting, k = structure.nesting, len(scales)
    device = next(m.device for m in block if isinstance(m, Tensor))
    handlers = [Move(scale=torch.full((1,), c, device=device)) for c in scales]
    widened = [programs(pair.model, handler(pair.guide), structure) for handler in handlers]
    joints, drawn = [], []
    for model, guide in widened:
        model_trace, guide_trace = run(
            model, guide, block, num_particles=num_pilot, nesting=nesting, enumerate_model=structure.enumerated
        )
        log_w = combine(model_trace, guide_trace, nesting, num_pilot).log_weights.double()
        joints.append(log_w + _log_q(guide_trace, nesting, log_w.shape))
        found = sites(guide_trace).items()
        drawn.append({n: s["value"] for n, s in found if moves(s) or support(s["fn"]).is_discrete})
    log_joint = torch.cat(joints)
    values = {name: torch.cat([d[name] for d in drawn]) for name in drawn[0]}
    log_q = []
    for _, guide in widened:
        with Given(values, guide, k * num_pilot, num_rows(block), nesting):
            guide_trace = run_guide(
                guide, block, num_particles=k * num_pilot, nesting=nesting, observed=structure.observed
            )
        log_q.append(_log_q(guide_trace, nesting, log_joint.shape))
    mixture = torch.stack(log_q).logsumexp(0) - math.log(k)
    second = torch.stack([(2 * log_joint - each - mixture).nan_to_num(math.inf).logsumexp(0) for each in log_q])
    return torch.tensor(scales, device=device)[second.argmin(0)]


def _log_q(guide_trace: poutine.Trace, nesting: int, shape: torch.Size) -> Tensor:
    terms = [per_datum(log_prob(site), nesting, *shape).double() for site in sites(guide_trace).values()]
    return torch.stack(terms).sum(0)


def _positive_numbers(name: str, values: Any) -> list[float]:
    """The values of a sequence, at least one; otherwise a ValueError that names it."""
    try:
        numbers = [positive_number(name, float(value)) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if not numbers:
        raise ValueError(f"{name} must be positive finite numbers, (1.0, 1.5), say, got {values!r}.")
    return numbers


def repaired_log_likelihood(
    pair: Pair,
    *batch: Any,
    mask: Any = None,
    scales: Sequence[float] = SCALES,
    num_pilot: int = 250,
    num_steps: int = 0,
    num_particles: int = 8,
    num_samples: int = 1000,
    seed: int = 0,
) -> RepairedEstimate:
    r"""The marginal log-likelihood of each datum, with the guide repaired before it proposes.

    First, if ``num_steps`` is given, the guide is refined: a shift and a scale for every latent coordinate of every
    datum, by that many steps on its ELBO; they are taken where fresh draws say that they are better. Then it is
    widened: each datum takes the scale whose weights vary least on a pilot. The estimate is made of fresh draws by
    :func:`log_likelihood`, of exactly ``num_samples``, and says what was done. The pair stays as it is.

    k-hat cannot see what a narrow guide never draws. A repaired estimate that is higher than the plain one by more than
    their errors says that the plain one missed something.

    References:
        Semi-Amortized Variational Autoencoders (Kim et al., 2018), https://arxiv.org/abs/1802.02550
        Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018),
        https://arxiv.org/abs/1801.03558
        Optimally Combining Sampling Techniques for Monte Carlo Rendering (Veach & Guibas, 1995),
        https://doi.org/10.1145/218380.218498

    Args:
        pair: anything with ``.model`` and ``.guide``, each datum on axis −1 of one plate.
        batch: the data, each member with N rows.
        mask: True where the first member was observed, of its shape.
        scales: to choose from, of the guide's standard deviations where it is Gaussian; ``(1,)`` widens nothing.
        num_pilot: draws of each datum from each scale, for the choice.
        num_steps: of refinement; it needs a reparameterised guide. Some 100 do.
        num_particles: draws of each datum in a step.
        num_samples: S, fresh draws per datum.
        seed: of the noise.

    Raises:
        ValueError: scales that are not positive, a bad number, what :func:`log_likelihood` refuses, or a guide that
            cannot be refined.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from ppgen.models import Custom
        >>> from ppgen.pair import data_plate
        >>> def model(x):
        ...     with data_plate(x):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def narrow(x):
        ...     with data_plate(x):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.1))
        >>> estimate = repaired_log_likelihood(Custom(model, narrow), torch.zeros(5))
        >>> estimate.scales
        tensor([5., 5., 5., 5., 5.])
    """
    for name, number in (("num_pilot", num_pilot), ("num_particles", num_particles), ("num_samples", num_samples)):
        positive_integer(name, number)
    natural_number("num_steps", num_steps)
    factors = _positive_numbers("scales", scales)
    pair, batch = masked(pair, batch, mask)
    rows = read_once(batch, seed)
    pilot_seed = derived_seed(seed, 0, 2**31)  # no key of the fresh draws
    shifts, chosen = [], []
    with evaluating(pair):
        first = device_batch(pair, rows(slice(0, CELL_DATA)))
        structure = measure(pair.model, pair.guide, *first)
        programs(pair.model, pair.guide, structure)  # refuses latents that all data share
        if not any(moves(site) for site in sites(run_guide(pair.guide, first)).values()):
            raise ValueError("The guide draws nothing continuous, so there is nothing to repair: use log_likelihood.")
        for index, raw in enumerate(rows.batches(CELL_DATA)):
            block = device_batch(pair, raw)
            own = _Shifts({}, [], torch.zeros(num_rows(raw), dtype=torch.bool))
            # A datum's shift or scale may go where a density is no number, which must not stop that of the others.
            with pyro.validation_enabled(False):
                torch.manual_seed(derived_seed(pilot_seed, index, 0))
                if num_steps:
                    own = _refine(pair, block, structure, num_steps, num_particles)
                torch.manual_seed(derived_seed(pilot_seed, index, 1))
                moved_block = (block[0], *own.members, *block[1:])
                chosen.append(_choose(_refined(pair, own.axes), moved_block, structure, factors, num_pilot).cpu())
            shifts.append(own)
    shift = _joined(shifts)
    repaired = _refined(pair, shift.axes)
    widened = Repaired(repaired, 1, lambda scale: Move(scale=scale))
    scale = torch.cat(chosen)
    estimate = log_likelihood(
        widened, rows.members[0], scale, *shift.members, *rows.members[1:], num_samples=num_samples, seed=seed
    )
    steps = [f"refined by {num_steps} steps a datum"] if num_steps else []
    if factors != [1.0]:
        steps.append(f"widened on a pilot of {len(factors)} × {num_pilot} draws (median scale {scale.median():.2f})")
    method = f"importance sampling, the guide {' and '.join(steps) or 'as it is'}"
    figures = {**vars(estimate), "data": fingerprint(rows)}  # without the shifts and scales, which are no data
    return RepairedEstimate(**figures, method=method, scales=scale, refined=shift.taken)
