"""Many pairs, one table: the same data, the same noise, paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ppgen.files import write_csv
from ppgen.inference import Estimate, latent_report, log_likelihood
from ppgen.inference.execution.fingerprint import check_same_data
from ppgen.inference.programs.networks import modules_of
from ppgen.pair import Pair

__all__ = ["Comparison", "Difference", "compare", "paired_difference", "rank"]


class Difference(NamedTuple):
    """How much higher one estimate's mean log-likelihood is than another's, in nats per datum."""

    mean: float
    standard_error: float

    @property
    def told_apart(self) -> bool:
        """Whether it is beyond two standard errors; never if there is a single datum."""
        return abs(self.mean) > 2 * self.standard_error


def paired_difference(first: Estimate, second: Estimate, names: tuple[str, str] = ("first", "second")) -> Difference:
    r"""The mean of the per-datum differences of two estimates on the same data, and its standard error.

    .. math:: \Delta = \frac{1}{N} \sum_n (\ell^{(1)}_n - \ell^{(2)}_n), \qquad
        \mathrm{se}(\Delta) = \mathrm{sd}(\ell^{(1)}_n - \ell^{(2)}_n) / \sqrt{N}

    The difference is taken datum by datum, so that what makes a datum hard for every pair cancels.

    Args:
        first: an estimate.
        second: another, on the same data in the same order.
        names: of the two, for the error.

    Raises:
        ValueError: the estimates are of different data.
    """
    if len(first.values) != len(second.values):
        raise ValueError(
            f"{names[0]!r} is an estimate on {len(first.values)} data and {names[1]!r} on {len(second.values)}: "
            "differences are taken datum by datum, so both must be evaluated on the same."
        )
    check_same_data(first.data, second.data, names)
    difference = first.values - second.values
    n = len(difference)
    return Difference(difference.mean().item(), difference.std().item() / math.sqrt(n) if n > 1 else math.nan)


@dataclass(frozen=True)
class Comparison:
    """Estimates of several pairs on the same data, and what sets them apart.

    Attributes:
        estimates: by the name of the pair.
        rows: a dictionary of figures a pair, the best first.
    """

    estimates: dict[str, Estimate]
    rows: list[dict[str, Any]]

    @property
    def best(self) -> str:
        """The name of the pair with the highest mean log-likelihood."""
        return str(self.rows[0]["name"])

    def difference(self, first: str, second: str) -> Difference:
        """How much better one pair is than another: :func:`paired_difference` of any two."""
        return paired_difference(self.estimates[first], self.estimates[second], (first, second))

    @property
    def ties(self) -> list[str]:
        """The pairs that lie within two standard errors of the best, and so cannot be told from it."""
        return [name for name in self._names[1:] if not self.difference(self.best, name).told_apart]

    @property
    def ranks(self) -> dict[str, int]:
        """One more than the number of pairs that are better by more than two standard errors, the best first.

        So two that cannot be told apart, and to which the same others are superior, have the same rank.
        """
        gaps = {a: [self.difference(b, a) for b in self._names if b != a] for a in self._names}
        return {name: 1 + sum(gap.mean > 0 and gap.told_apart for gap in found) for name, found in gaps.items()}

    @property
    def _names(self) -> list[str]:
        return [str(row["name"]) for row in self.rows]

    def to_arviz(self) -> dict[str, Any]:
        """ArviZ's ``ELPDData`` by the name of the pair, for ``az.compare`` and, after it, ``az.plot_compare``.

        ArviZ counts nats of all data together, and adds weights of a mixture of the models. Its default way to these,
        stacking, takes exp(log p(x)), which is zero in float64 below −745 nats a datum: with images of many pixels give
        ``az.compare(comparison.to_arviz(), method="BB-pseudo-BMA")``.

        Raises:
            ImportError: ArviZ is not installed.
        """
        return {name: self.estimates[name].to_arviz() for name in self._names}

    def verdict(self) -> str:
        """Which pair is better, and how sure that is, in a sentence or two."""
        text = f"Best: {self.best}"
        if self.ties:
            text += f"; within two standard errors of it, so not to be told apart: {', '.join(self.ties)}"
        elif len(self.rows) > 1:
            second = self._names[1]
            gap = self.difference(self.best, second)
            text += f", ahead of {second} by {gap.mean:.2f} ± {gap.standard_error:.2f} nats"
        text += "."
        bounds = [r["name"] for r in self.rows if r["is_lower_bound"]]
        if bounds:
            text += (
                f" Of {len(bounds)} of {len(self.rows)}, fewer than 99 % of the estimates are reliable: "
                "their figures are lower bounds, and so are the differences that they enter."
            )
        return text

    def write_csv(self, path: Path, refused: Sequence[dict[str, Any]] = ()) -> None:
        """Writes the rows as a table (whole or not at all), below them those that were refused, with their reason."""
        columns = dict.fromkeys(name for row in [*self.rows, *refused] for name in row)  # details may be of some only
        write_csv(path, [*self.rows, *refused], columns)


def compare(
    pairs: dict[str, Pair],
    *batch: Any,
    num_samples: int = 1000,
    seed: int = 0,
    details: dict[str, dict[str, Any]] | None = None,
) -> Comparison:
    """Importance-sampled log-likelihoods of several pairs on the same data, with paired differences to the best.

    Args:
        pairs: by name.
        batch: the data that all are evaluated on.
        num_samples: draws per datum.
        seed: of the noise, the same for all.
        details: more figures for a pair's row, put first in it.

    Raises:
        TypeError: pairs without names.
        ValueError: fewer than one pair, two that share parameters, or what :func:`log_likelihood` refuses.
    """
    if not isinstance(pairs, dict):
        raise TypeError(f"pairs must be a dictionary, name: pair, got {type(pairs).__name__}.")
    if not pairs:
        raise ValueError("compare needs at least one pair, and got none.")
    owners: dict[int, str] = {}
    for name, pair in pairs.items():
        for parameter in _parameters(pair):
            other = owners.setdefault(id(parameter), name)
            if other != name:
                raise ValueError(
                    f"{other!r} and {name!r} share parameters, so training one changed the other: copy.deepcopy."
                )
    estimates = {name: log_likelihood(pair, *batch, num_samples=num_samples, seed=seed) for name, pair in pairs.items()}
    figures = {}
    for name, pair in pairs.items():
        report = latent_report(pair, *batch, seed=seed)
        figures[name] = {
            "kl": sum(report.kl.values()),
            "active_units": sum(report.active_units.values()),
            "parameters": sum(p.numel() for p in _parameters(pair)),
        }
    return rank(estimates, before=details, after=figures)


def rank(
    estimates: dict[str, Estimate],
    *,
    before: dict[str, dict[str, Any]] | None = None,
    after: dict[str, dict[str, Any]] | None = None,
) -> Comparison:
    """A comparison of estimates that were made one by one, on the same data.

    Args:
        estimates: by name; of any kind (importance-sampled, repaired, annealed).
        before: more figures by name, put first in a row.
        after: more figures by name, put last in it.

    Raises:
        ValueError: no estimate, or two of different data (a test set that was binarised again, say).
    """
    if not estimates:
        raise ValueError("rank needs at least one estimate, and got none.")
    best = max(estimates, key=lambda name: estimates[name].mean)
    rows = []
    for name in sorted(estimates, key=lambda name: -estimates[name].mean):
        gap = paired_difference(estimates[name], estimates[best], (name, best))
        figures = estimates[name].summary()
        rows.append(
            {
                "name": name,
                **(before or {}).get(name, {}),
                "elbo": figures["elbo"],
                "log_likelihood": figures["log_likelihood"],
                "is_lower_bound": figures["is_lower_bound"],
                "mc_standard_error": figures["mc_standard_error"],
                "difference": gap.mean,
                "difference_standard_error": gap.standard_error,
                "reliable_fraction": figures["reliable_fraction"],
                **(after or {}).get(name, {}),
            }
        )
    return Comparison(estimates, rows)


def _parameters(pair: Pair) -> list[nn.Parameter]:
    return list({id(p): p for module in modules_of(pair) for p in module.parameters()}.values())
