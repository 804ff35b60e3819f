r"""Bounds of log p(x) from both sides, where they can be had: on data that the model itself draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppgen.inference.evaluation.annealed import (
    DATA,
    FORWARD,
    PILOT,
    REVERSE,
    check_numbers,
    forward,
    measured,
    pilot,
    reverse,
    temperatures,
)
from ppgen.inference.evaluation.likelihood import CELL_DATA
from ppgen.inference.evaluation.paths import Path, Start
from ppgen.inference.execution.batches import checked_rows
from ppgen.inference.programs.modes import evaluating
from ppgen.inference.programs.observation import observation_of
from ppgen.inference.programs.refusals import check_pair
from ppgen.inference.programs.seeds import derived_seed
from ppgen.inference.programs.traces import as_data, device_batch, run_without_data, sites
from ppgen.pair import Pair

__all__ = ["Bounds", "bdmc"]


@dataclass(frozen=True)
class Bounds:
    r"""Bounds of log p(x) from both sides on data that the model drew; tensors of shape (N,), in nats.

    Attributes:
        lower: log of the mean weight of forward chains; at most log p(x) in expectation.
        upper: minus log of the mean inverse weight of reverse chains; at least log p(x) in expectation.
        lower_standard_error: of ``lower``, from the spread over chains.
        upper_standard_error: of ``upper``; its chains share the datum's one exact latent, and so more than they show.
        data: the batch that was drawn, with its contexts.
        method: how the bounds were made.
    """

    lower: Tensor
    upper: Tensor
    lower_standard_error: Tensor
    upper_standard_error: Tensor
    data: tuple[Tensor, ...]
    method: str

    @property
    def gap(self) -> float:
        """Mean distance of the bounds: in expectation, the bias of ``lower`` is at most this."""
        return (self.upper - self.lower).mean().item()

    @property
    def gap_standard_error(self) -> float:
        """The error of the gap, from its spread over the data. NaN for a single datum."""
        n = len(self.lower)
        return ((self.upper - self.lower).std() / math.sqrt(n)).item() if n > 1 else math.nan

    def summary(self) -> dict[str, Any]:
        """The means as plain numbers, for JSON."""
        return {
            "lower": self.lower.mean().item(),
            "upper": self.upper.mean().item(),
            "gap": self.gap,
            "gap_standard_error": self.gap_standard_error,
            "num_data": len(self.lower),
            "method": self.method,
        }

    def __str__(self) -> str:
        return (
            f"log-likelihood of the model's own data in [{self.lower.mean():.3f}, {self.upper.mean():.3f}] nats, gap "
            f"{self.gap:.3f} ± {self.gap_standard_error:.3f} (N = {len(self.lower)}) by {self.method}"
        )


def simulated(pair: Pair, n: int, context: Sequence[Any]) -> tuple[dict[str, Any], Tensor]:
    """Latent sites and an observation that the model draws together: the latents are exact draws of the posterior."""
    with nullcontext() if context else pyro.plate("data_drawn", n, dim=-1):
        found = run_without_data(pair.model, context)
    if given := [name for name, site in found.items() if site["is_observed"]]:
        raise ValueError(
            f"The model observes {given} also when it is run without data (a pyro.factor, a constant), so that what it "
            "draws with its data are no draws of the posterior: log_likelihood and ais take it, bdmc does not."
        )
    name = observation_of(pair.model, found, context)
    drawn = found.pop(name)
    x = as_data(drawn, drawn["value"])
    if x is not drawn["value"]:
        _check_observed(pair, name, drawn, (x, *context))
    return {name: site for name, site in found.items() if not site["is_observed"]}, x


def _check_observed(pair: Pair, name: str, site: Any, batch: Sequence[Any]) -> None:
    """Makes sure that the model observes what it has drawn in plates inside the data's, given as rows."""
    drawn, axis = site["value"], -1 - len(site["fn"].event_shape)
    try:
        observed = sites(poutine.trace(pair.model).get_trace(*batch))[name]["value"]
    except (RuntimeError, ValueError, IndexError):
        observed = None
    if observed is None or not torch.equal(observed, drawn):
        raise ValueError(
            f"The model draws {name!r} of shape {tuple(drawn.shape)}, the data's axis behind those of other plates, "
            f"and does not observe the same in rows, {tuple(batch[0].shape)}: have it observe x.movedim(0, {axis}), or "
            "declare the inner plates an event (.to_event)."
        )


def bdmc(
    pair: Pair,
    n: int,
    *context: Any,
    start: Start = "guide",
    num_chains: int = 32,
    num_temperatures: int = 200,
    num_leapfrog: int = 5,
    seed: int = 0,
) -> Bounds:
    r"""Bounds of log p(x) from both sides, on data that the model draws: bidirectional Monte Carlo.

    Chains of :func:`ais` forward give a lower bound in expectation. For data drawn from the model with their latents,
    the latents are exact draws of the posterior; chains from there back to the start have weights with
    :math:`\mathbb{E}[1 / w] = 1 / p(x)`, and give an upper bound. Where the two meet, the estimate of such a model with
    these settings can be believed; on other data only the lower one is a bound.

    References:
        Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse, Ghahramani & Adams, 2015),
        https://arxiv.org/abs/1511.02543

    Args:
        pair: as for :func:`ais`, with a model that takes ``None`` for the observation.
        n: how many data to draw.
        context: of a conditional pair, n rows each.
        start: ``"guide"`` or ``"prior"``.
        num_chains: per datum, forward and as many in reverse.
        num_temperatures: steps between the start and the joint density.
        num_leapfrog: steps along a trajectory.
        seed: of the data and the noise.

    Raises:
        TypeError: a model that cannot be run without data.
        ValueError: what :func:`ais` refuses, a context with another number of rows, or a model with plates inside the
            data's that does not observe in rows what it draws there.

    Example:
        >>> from ppgen.models import FactorAnalysis
        >>> bounds = bdmc(FactorAnalysis(5, 2), 4, start="prior", num_temperatures=50, num_leapfrog=3)
        >>> bounds.gap < 1
        True
    """
    check_pair(pair)
    check_numbers(start, n=n, num_chains=num_chains, num_temperatures=num_temperatures, num_leapfrog=num_leapfrog)
    betas = temperatures(num_temperatures)
    rows = checked_rows(context) if context else None
    if rows is not None and len(rows) != n:
        raise ValueError(f"The context has {len(rows)} rows, and n={n} data were asked for: give one row for each.")
    blocks, drawn = [], []
    with evaluating(pair):
        for index, first in enumerate(range(0, n, CELL_DATA)):
            size = min(CELL_DATA, n - first)
            given = device_batch(pair, rows(slice(first, first + size))) if rows is not None else ()
            torch.manual_seed(derived_seed(seed, index, DATA))
            latents, x = simulated(pair, size, given)
            torch.manual_seed(derived_seed(seed, index, PILOT))
            path = Path(pair, (x, *given), start)
            kernel = pilot(path, betas, num_leapfrog)
            torch.manual_seed(derived_seed(seed, index, FORWARD))
            below = measured(forward(path, path.draw(num_chains), betas, kernel)[0], first)
            torch.manual_seed(derived_seed(seed, index, REVERSE))
            exact = path.place(latents, num_chains)
            above = measured(-reverse(path, exact, betas, kernel), first)
            blocks.append((below.values, -above.values, below.error, above.error))
            drawn.append((x.cpu(), *(member.cpu() for member in given)))
    lower, upper, lower_error, upper_error = (torch.cat(column) for column in zip(*blocks, strict=True))
    data = tuple(torch.cat(member) for member in zip(*drawn, strict=True))
    method = f"bidirectional Monte Carlo from the {start}, {num_temperatures} temperatures, {num_chains} chains"
    return Bounds(lower, upper, lower_error, upper_error, data, method)
