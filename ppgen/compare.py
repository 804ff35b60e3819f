"""Many pairs, one table: the same data, the same noise, paired differences."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ppgen.inference import Estimate, latent_report, log_likelihood
from ppgen.pair import Pair

__all__ = ["Comparison", "compare"]


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

    @property
    def ties(self) -> list[str]:
        """The pairs that lie within two standard errors of the best, and so cannot be told from it."""
        return [str(r["name"]) for r in self.rows[1:] if -r["difference"] <= 2 * r["difference_standard_error"]]

    def verdict(self) -> str:
        """Which pair is better, and how sure that is, in a sentence or two."""
        text = f"Best: {self.best}"
        if self.ties:
            text += f"; within two standard errors of it, so not to be told apart: {', '.join(self.ties)}"
        elif len(self.rows) > 1:
            second = self.rows[1]
            gap, error = -second["difference"], second["difference_standard_error"]
            text += f", ahead of {second['name']} by {gap:.2f} ± {error:.2f} nats"
        text += "."
        bounds = [r["name"] for r in self.rows if r["is_lower_bound"]]
        if bounds:
            text += (
                f" Of {len(bounds)} of {len(self.rows)}, fewer than 99 % of the estimates are reliable: "
                "their figures are lower bounds, and so are the differences that they enter."
            )
        return text

    def write_csv(self, path: Path, refused: Sequence[dict[str, Any]] = ()) -> None:
        """Writes the rows as a table, and below them those that were refused, with their reason."""
        columns = [*self.rows[0], *({"refused": None} if refused else {})]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=columns)
            writer.writeheader()
            writer.writerows([*self.rows, *refused])


def compare(
    pairs: dict[str, Pair],
    *batch: Any,
    num_samples: int = 1000,
    seed: int = 0,
    details: dict[str, dict[str, Any]] | None = None,
) -> Comparison:
    r"""Importance-sampled log-likelihoods of several pairs on the same data, with paired differences.

    .. math:: \Delta = \frac{1}{N} \sum_n (\ell_n - \ell^{\text{best}}_n), \qquad
        \mathrm{se}(\Delta) = \mathrm{sd}(\ell_n - \ell^{\text{best}}_n) / \sqrt{N}

    The difference is taken datum by datum, so that what makes a datum hard for every pair cancels.

    Args:
        pairs: by name.
        batch: the data that all are evaluated on.
        num_samples: draws per datum.
        seed: of the noise, the same for all.
        details: more figures for a pair's row, put first in it.

    Raises:
        ValueError: fewer than one pair, two that share parameters, or what :func:`log_likelihood` refuses.
    """
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
    best = max(estimates, key=lambda name: estimates[name].mean)
    rows = []
    for name in sorted(estimates, key=lambda name: -estimates[name].mean):
        estimate = estimates[name]
        difference = estimate.values - estimates[best].values
        report = latent_report(pairs[name], *batch, seed=seed)
        figures = estimate.summary()
        rows.append(
            {
                "name": name,
                **(details or {}).get(name, {}),
                "elbo": figures["elbo"],
                "log_likelihood": figures["log_likelihood"],
                "is_lower_bound": figures["is_lower_bound"],
                "mc_standard_error": figures["mc_standard_error"],
                "difference": difference.mean().item(),
                "difference_standard_error": difference.std().item() / math.sqrt(len(difference))
                if len(difference) > 1
                else math.nan,
                "kl": sum(report.kl.values()),
                "active_units": sum(report.active_units.values()),
                "reliable_fraction": figures["reliable_fraction"],
                "parameters": sum(p.numel() for p in _parameters(pairs[name])),
            }
        )
    return Comparison(estimates, rows)


def _parameters(pair: Pair) -> list[nn.Parameter]:
    return list(pair.parameters()) if isinstance(pair, nn.Module) else []
