r"""Whether the log-likelihood of a pair can be believed: what can be seen without knowing it exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import first_line
from ppgen.inference import Bounds, Estimate, bdmc, encode, log_likelihood, repaired_log_likelihood
from ppgen.inference.evaluation.bidirectional import simulated
from ppgen.inference.programs.modes import evaluating
from ppgen.inference.programs.traces import as_data, device_batch
from ppgen.numbers import positive_integer
from ppgen.pair import Pair

__all__ = ["Calibration", "Trust", "trust"]

TIGHT = 0.1  # nats: bounds that are this close pin a likelihood down
WIDE = 1.0  # nats: differences of models are often smaller than this
ROWS_OF_CHUNKS = 20
DRAWS = 99  # of the guide for each simulated datum, hence 100 ranks
DATA_OF_CALIBRATION = 200


@dataclass(frozen=True)
class Calibration:
    r"""Simulation-based calibration: ranks of true latents among draws of the guide, 0 to 1, flat if it is exact.

    An amortised guide never passes it; it describes the guide, whose weights mend what it shows.

    References:
        Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018),
        https://arxiv.org/abs/1804.06788

    Attributes:
        outermost: share of the ranks in the outer tenth (5 % on either side), of each coordinate: more than 0.1 where
            the guide is too narrow, less where it is too wide.
        middle: mean rank of each coordinate: other than 0.5 where the guide is off to one side.
        num_data: how many data were simulated.
    """

    outermost: Tensor
    middle: Tensor
    num_data: int

    def summary(self) -> dict[str, Any]:
        """The figures as plain numbers, for JSON."""
        return {
            "outermost": self.outermost.tolist(),
            "middle": self.middle.tolist(),
            "num_data": self.num_data,
        }

    def __str__(self) -> str:
        n, d = self.num_data, len(self.outermost)
        three = 3 * math.sqrt(0.1 * 0.9 / n)
        narrow, wide = (self.outermost > 0.1 + three).sum(), (self.outermost < 0.1 - three).sum()
        aside = ((self.middle - 0.5).abs() > 3 / math.sqrt(12 * n)).sum()
        return (
            f"too narrow in {narrow}, too wide in {wide}, off to one side in {aside} of {d} coordinates "
            f"({self.outermost.mean():.0%} of the ranks in the outer tenth, {n} data)"
        )


@dataclass(frozen=True)
class Trust:
    """What is known about the log-likelihood of a pair, and what follows.

    Attributes:
        estimate: on the data.
        chunking: largest difference in nats between an estimate in slices of one sample, and one that is not.
        bounds: on data that the model drew; None where there are none.
        own: the estimate by importance sampling on the same drawn data.
        repaired: on the data with the guide widened, where the plain one is not reliable.
        calibration: of the guide, on drawn data.
        not_applicable: why bounds and calibration are missing, if they are.
        not_repaired: why the guide could not be widened, if it could not.
        start: what the chains of the bounds started from.
        num_temperatures: of the bounds.
    """

    estimate: Estimate
    chunking: float
    bounds: Bounds | None = None
    own: Estimate | None = None
    repaired: Estimate | None = None
    calibration: Calibration | None = None
    not_applicable: str = ""
    not_repaired: str = ""
    start: str = "guide"
    num_temperatures: int = 0

    @property
    def gap(self) -> float:
        """From the estimate on drawn data to the upper bound: at least its bias, in expectation. NaN without bounds."""
        if self.bounds is None or self.own is None:
            return math.nan
        return (self.bounds.upper - self.own.values).mean().item()

    @property
    def gap_error(self) -> float:
        """The standard error of the gap, from its spread over the data."""
        if self.bounds is None or self.own is None:
            return math.nan
        return ((self.bounds.upper - self.own.values).std() / math.sqrt(len(self.own.values))).item()

    @property
    def reasons(self) -> list[str]:
        """Why not to believe the estimate, if so: what k-hat and the gap say."""
        found = []
        if (above := (self.estimate.k_hat > 1).double().mean().item()) > 0.5:
            found.append(f"k-hat is above 1 for {above:.0%} of the data, so that their weights have no mean to rely on")
        elif self.estimate.is_lower_bound:
            found.append(f"k-hat is good for {self.estimate.reliable_fraction:.0%} of the data, and 99 % would do")
        if self.gap - 2 * self.gap_error > TIGHT:  # NaN compares as false: without bounds k-hat alone decides
            found.append(f"on data of the model's own the estimate may be {self.gap:.2f} nats too low")
        return found

    @property
    def verdict(self) -> str:
        """``"believed"``, ``"lower bound only"`` or ``"not to be believed"``, from k-hat and the gap."""
        if self.gap - 2 * self.gap_error > WIDE or (self.estimate.k_hat > 1).double().mean() > 0.5:
            return "not to be believed"
        return "lower bound only" if self.reasons else "believed"

    @property
    def advice(self) -> list[str]:
        """What to do, best first."""
        if self.verdict == "believed":
            return []
        found = []
        if self.bounds is not None:
            call = f'ppgen.inference.ais(pair, x, start="{self.start}", num_temperatures='
            if self.bounds.gap < min(TIGHT, self.gap):
                found.append(f"{call}{self.num_temperatures}): it left a gap of {self.bounds.gap:.2f} nats here")
            elif self.bounds.gap < self.gap / 2:
                found.append(
                    f"{call}{4 * self.num_temperatures}): with {self.num_temperatures} it left a gap of "
                    f"{self.bounds.gap:.2f} nats here, which falls with more of them"
                )
        if self.repaired is not None and self.repaired.reliable_fraction > self.estimate.reliable_fraction:
            found.append(
                "a widened proposal, ppgen.inference.repaired_log_likelihood(pair, x): "
                f"{self.repaired.reliable_fraction:.0%} reliable, {self.repaired.mean - self.estimate.mean:+.2f} nats"
            )
        if self.verdict == "lower bound only":
            found.append(f"more samples than S = {self.estimate.num_samples}")
        else:
            found.append("a guide that is trained for longer, or a richer one")
        return found

    def summary(self) -> dict[str, Any]:
        """The figures as plain numbers, for JSON."""
        k = self.estimate.k_hat
        return {
            "verdict": self.verdict,
            "reasons": self.reasons,
            "advice": self.advice,
            **self.estimate.summary(),
            "k_hat_quantiles": [_finite(v) for v in _quantiles(k)],
            "mean_ess": self.estimate.ess.mean().item(),
            "chunking": self.chunking,
            "gap": _finite(self.gap),
            "gap_standard_error": _finite(self.gap_error),
            "bounds": None if self.bounds is None else self.bounds.summary(),
            "repaired": None if self.repaired is None else self.repaired.summary(),
            "not_repaired": self.not_repaired,
            "calibration": None if self.calibration is None else self.calibration.summary(),
            "not_applicable": self.not_applicable,
        }

    def __str__(self) -> str:
        e, n = self.estimate, len(self.estimate.values)
        low, median, high = _quantiles(e.k_hat)
        below = "yes" if bool((e.elbo <= e.values + 1e-6).all()) else "NO: something is wrong"
        lines = [
            str(e),
            f"k-hat: median {median:.2f}, 5 % {low:.2f}, 95 % {high:.2f}; {e.reliable_fraction:.0%} of {n} reliable, "
            f"{(e.k_hat > 1).double().mean():.0%} above 1",
            f"effective sample size: mean {e.ess.mean():.0f}, least {e.ess.min():.0f} of {e.num_samples}",
            f"ELBO {e.elbo.mean():.2f} ≤ estimate {e.mean:.2f} for every datum: {below}",
            f"independent of slices: largest difference {self.chunking:.1g} nats",
        ]
        if self.repaired is not None:
            gained = self.repaired.mean - e.mean
            lines.append(f"the guide widened: {gained:+.2f} nats, {self.repaired.reliable_fraction:.0%} reliable")
        if self.not_repaired:
            lines.append(f"the guide cannot be widened: {self.not_repaired}")
        if self.bounds is not None and self.own is not None:
            b = self.bounds
            short = b.upper - self.own.values
            lines += [
                f"data of the model's own: between {b.lower.mean():.2f} and {b.upper.mean():.2f} nats (gap "
                f"{b.gap:.3f} ± {b.gap_standard_error:.3f}, N = {len(b.upper)}), by {b.method}",
                f"importance sampling there {self.own.mean:.2f}: {self.gap:.3f} ± {self.gap_error:.3f} nats below the "
                f"upper bound, {short.median():.3f} for half of them",
            ]
        if self.calibration is not None:
            lines.append(f"the guide's calibration (no verdict): {self.calibration}")
        if self.not_applicable:
            lines.append(f"bounds from both sides and calibration: not applicable. {self.not_applicable}")
        because = f": {'; '.join(self.reasons)}" if self.reasons else ""
        lines.append(f"Verdict: {self.verdict}{because}.")
        return "\n".join([*lines, *(f"  - try {advice}" for advice in self.advice)])


def _quantiles(values: Tensor) -> list[float]:
    ordered = values.sort().values
    return [ordered[round(q * (len(ordered) - 1))].item() for q in (0.05, 0.5, 0.95)]


def _finite(value: float) -> float | str | None:
    return None if math.isnan(value) else value if math.isfinite(value) else str(value)


def trust(
    pair: Pair,
    *batch: Any,
    context: Sequence[Tensor] = (),
    num_samples: int = 1000,
    num_simulated: int = 25,
    num_chains: int = 16,
    num_temperatures: int = 100,
    seed: int = 0,
) -> Trust:
    r"""Whether the log-likelihood of a pair can be believed.

    k-hat says for each datum whether the weights' mean converges, but cannot see what the guide never draws; data that
    the model drew have an upper bound of their log-likelihood (:func:`bdmc`), from which the distance of the estimate
    is seen. Believed is what is reliable for 99 % of the data and within 0.1 nats of the bound; not to be believed what
    is more than one nat away, or has k-hat above 1 for most data; a lower bound what lies between.

    Args:
        pair: anything with ``.model`` and ``.guide``.
        batch: the data, and what they are given.
        context: what the model's own data are drawn for, at least ``num_simulated`` rows, of a conditional pair.
        num_samples: S.
        num_simulated: data for the bounds, at least two.
        num_chains: of the bounds, per datum.
        num_temperatures: of the bounds.
        seed: of the noise.

    Raises:
        TypeError: the pair has no likelihood.
        ValueError: what :func:`log_likelihood` refuses.

    Example:
        >>> from ppgen.models import FactorAnalysis
        >>> fa = FactorAnalysis(5, 2)
        >>> trust(fa, torch.randn(50, 5), num_simulated=5, num_temperatures=20).verdict
        'believed'
    """
    if positive_integer("num_simulated", num_simulated) < 2:
        raise ValueError("num_simulated must be at least 2, since a gap of one datum has no standard error, got 1.")
    estimate = log_likelihood(pair, *batch, num_samples=num_samples, seed=seed)
    few = [member[:ROWS_OF_CHUNKS] for member in batch]
    whole, sliced = (log_likelihood(pair, *few, num_samples=250, seed=seed, memory=m).values for m in (None, 1))
    chunking = (whole - sliced).abs().max().item()
    repaired, not_repaired = None, ""
    if estimate.is_lower_bound:
        try:
            repaired = repaired_log_likelihood(pair, *batch, num_samples=num_samples, seed=seed)
        except (ValueError, TypeError, NotImplementedError) as error:
            not_repaired = first_line(error)
    given = [member[:num_simulated] for member in context]
    settings = {"num_chains": num_chains, "num_temperatures": num_temperatures, "seed": seed}
    try:
        bounds, start = _bounds(pair, num_simulated, given, settings)
        own = log_likelihood(pair, *bounds.data, num_samples=num_samples, seed=seed)
        calibration = _calibration(pair, context, seed)
    except (ValueError, TypeError, NotImplementedError) as error:
        return Trust(estimate, chunking, repaired=repaired, not_repaired=not_repaired, not_applicable=first_line(error))
    found = (estimate, chunking, bounds, own, repaired, calibration)
    return Trust(*found, not_repaired=not_repaired, start=start, num_temperatures=num_temperatures)


def _bounds(pair: Pair, n: int, context: Sequence[Tensor], settings: dict[str, int]) -> tuple[Bounds, str]:
    """Bounds from the guide where these are tight; otherwise from the prior, on the same data, where those are tighter.

    A guide can be far beside the posterior for a few of the model's own data, which look like no others; from there no
    chain finds the way in time, and their bounds are far apart.
    """
    try:
        first = bdmc(pair, n, *context, start="guide", **settings)
    except ValueError:  # its density at a foreign value is not known, say
        return bdmc(pair, n, *context, start="prior", **settings), "prior"
    if first.gap < TIGHT:
        return first, "guide"
    second = bdmc(pair, n, *context, start="prior", **settings)
    return (second, "prior") if second.gap < first.gap else (first, "guide")


def _calibration(pair: Pair, context: Sequence[Tensor], seed: int) -> Calibration:
    n = min([DATA_OF_CALIBRATION, *(len(member) for member in context)])
    with evaluating(pair, seed, "calibration"):
        given = device_batch(pair, [member[:n] for member in context])
        latents, x = simulated(pair, n, given)
        truth = {name: site["value"].cpu() for name, site in latents.items()}
    below: dict[str, Any] = dict.fromkeys(truth, 0)
    for draw in range(DRAWS):
        drawn = encode(pair, x, *given, mean=False, seed=seed + 1 + draw)
        named = drawn if isinstance(drawn, dict) else {next(iter(truth)): drawn}
        below = {name: below[name] + (named[name] < value) for name, value in truth.items()}
    ranks = torch.cat([as_data(latents[name], rank / DRAWS).reshape(n, -1) for name, rank in below.items()], 1)
    outermost = ((ranks < 0.05) | (ranks > 0.95)).double().mean(0)
    return Calibration(outermost, ranks.double().mean(0), n)
