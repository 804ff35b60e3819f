r"""Measures of samples against data: manifolds by nearest neighbours, and distances of distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppgen.inference.execution.members import as_member
from ppgen.inference.programs.modes import evaluating
from ppgen.inference.programs.networks import device_of
from ppgen.numbers import positive_integer

__all__ = ["Score", "density_coverage", "frechet_distance", "kernel_distance", "precision_recall"]

Features = Callable[[Tensor], Tensor]
ROWS = 1000  # that are looked at together, so that memory stays bounded however many there are


@dataclass(frozen=True)
class Score:
    """A figure, and what it rests on.

    Attributes:
        name: of the measure.
        value: the figure.
        num_real: how many data.
        num_generated: how many samples.
        standard_error: of the value, where there is one.
    """

    name: str
    value: float
    num_real: int
    num_generated: int
    standard_error: float | None = None

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.4f}"
        return f"{self.name} {self.value:.4f}{error} ({self.num_real:,} data, {self.num_generated:,} samples)"


def precision_recall(real: Any, generated: Any, *, features: Features | None = None, k: int = 3) -> tuple[Score, Score]:
    r"""Precision and recall: the share of samples on the data's manifold, and of data on the samples'.

    A manifold is the union of balls around its points, each as large as the distance to its k-th neighbour:

    .. math:: \text{precision} = \frac{1}{M} \sum_j \mathbf{1}\bigl[\exists i: \|g_j - r_i\| \le \rho_k(r_i)\bigr],
        \qquad \text{recall} = \frac{1}{N} \sum_i \mathbf{1}\bigl[\exists j: \|r_i - g_j\| \le \rho_k(g_j)\bigr]

    Samples that do not look like data lower the precision, data like which there are no samples lower the recall. An
    outlier has a large ball, which :func:`density_coverage` forgives more easily.

    References:
        Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al., 2019),
        https://arxiv.org/abs/1904.06991

    Args:
        real: data, a tensor or an array.
        generated: samples, too.
        features: from rows to vectors; the rows themselves, flattened, if not given.
        k: which neighbour.

    Shape:
        real: (N, \*event), generated: (M, \*event).

    Raises:
        ValueError: events of different shapes, values that are not finite, or fewer than k + 1 rows.
    """
    real, generated = features_of(real, generated, features, at_least=positive_integer("k", k) + 1)
    samples_inside, _ = _inside(real, _radii(real, k), generated)
    data_inside, _ = _inside(generated, _radii(generated, k), real)
    return _score("precision", samples_inside > 0, real, generated), _score("recall", data_inside > 0, real, generated)


def density_coverage(real: Any, generated: Any, *, features: Features | None = None, k: int = 5) -> tuple[Score, Score]:
    r"""Density and coverage: how many of the data's balls hold a sample, and the share of those that hold one.

    .. math:: \text{density} = \frac{1}{k M} \sum_j \sum_i \mathbf{1}\bigl[\|g_j - r_i\| \le \rho_k(r_i)\bigr],
        \qquad \text{coverage} = \frac{1}{N} \sum_i \mathbf{1}\bigl[\exists j: \|g_j - r_i\| \le \rho_k(r_i)\bigr]

    Only the data's manifold is looked at, so that bad samples cannot spoil it. Samples from the data's own distribution
    have density 1 in expectation (above 1 is possible, where they crowd the data's dense regions), and, if they are as
    many as the data, coverage :math:`1 - \prod_{i=1}^{k} (N-i) / (2N-i) \approx 1 - 2^{-k}`.

    References:
        Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020),
        https://arxiv.org/abs/2002.09797

    Args:
        real: data, a tensor or an array.
        generated: samples, too.
        features: from rows to vectors; the rows themselves, flattened, if not given.
        k: which neighbour.

    Shape:
        real: (N, \*event), generated: (M, \*event).

    Raises:
        ValueError: events of different shapes, values that are not finite, or fewer than k + 1 data or samples.
    """
    real, generated = features_of(real, generated, features, at_least=positive_integer("k", k) + 1)
    samples_inside, covered = _inside(real, _radii(real, k), generated)
    return _score("density", samples_inside / k, real, generated), _score("coverage", covered, real, generated)


def frechet_distance(real: Any, generated: Any, *, features: Features | None = None) -> Score:
    r"""The squared Fréchet distance of two Gaussians that are fitted to data and to samples.

    .. math:: d^2 = \|\mu_r - \mu_g\|^2 + \mathrm{tr}\bigl(\Sigma_r + \Sigma_g
        - 2 (\Sigma_r^{1/2} \Sigma_g \Sigma_r^{1/2})^{1/2}\bigr)

    On features of the Inception network this is the FID, with whose published values others are not to be compared. It
    is biased upwards, the more the fewer samples there are: compare figures of equal numbers only, or use
    :func:`kernel_distance`.

    References:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017),
        https://arxiv.org/abs/1706.08500

    Args:
        real: data, a tensor or an array.
        generated: samples, too.
        features: from rows to vectors; the rows themselves, flattened, if not given.

    Shape:
        real: (N, \*event), generated: (M, \*event).

    Raises:
        ValueError: events of different shapes, values that are not finite, or fewer than two rows.
    """
    real, generated = features_of(real, generated, features, at_least=2)
    means = real.mean(0), generated.mean(0)
    roots = [_root(x - mean) for x, mean in zip((real, generated), means, strict=True)]
    # The trace of the root is the sum of the singular values of a product of roots: to take roots of eigenvalues
    # would halve the digits.
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    squared = (means[0] - means[1]).square().sum() + sum(root.square().sum() for root in roots) - 2 * cross
    squared = squared.clamp(min=0)  # rounding alone is below
    return _score("Fréchet distance", squared, real, generated)


def kernel_distance(real: Any, generated: Any, *, features: Features | None = None) -> Score:
    r"""The kernel distance: the squared maximum mean discrepancy under a cubic kernel, without bias.

    .. math:: \mathrm{MMD}^2 = \frac{\sum_{i \ne j} k(r_i, r_j)}{N (N-1)} + \frac{\sum_{i \ne j} k(g_i, g_j)}{M (M-1)}
        - \frac{2 \sum_{i,j} k(r_i, g_j)}{N M}, \qquad k(a, b) = \bigl(a^\top b / D + 1\bigr)^3

    On features of the Inception network this is the KID. Its expectation is 0 where the two distributions agree, at any
    number of samples, and it may come out negative. The standard error is that of the mean over ten blocks of rows,
    which is rather too large than too small.

    References:
        Demystifying MMD GANs (Bińkowski et al., 2018), https://arxiv.org/abs/1801.01401

    Args:
        real: data, a tensor or an array.
        generated: samples, too.
        features: from rows to vectors; the rows themselves, flattened, if not given.

    Shape:
        real: (N, \*event), generated: (M, \*event).

    Raises:
        ValueError: events of different shapes, values that are not finite, or fewer than two rows.
    """
    real, generated = features_of(real, generated, features, at_least=2)
    error = None
    if min(len(real), len(generated)) >= 20:
        # Every tenth row makes a block, so that an order in the data (by class, say) does not matter.
        blocks = torch.stack([_squared_mmd(real[i::10], generated[i::10]) for i in range(10)])
        error = float(blocks.std() / math.sqrt(10))
    return _score("kernel distance", _squared_mmd(real, generated), real, generated, error)


def _root(centred: Tensor) -> Tensor:
    """A matrix R with R'R the covariance of centred rows."""
    return torch.linalg.qr(centred / math.sqrt(len(centred) - 1), mode="r").R


def _squared_mmd(a: Tensor, b: Tensor) -> Tensor:
    def total(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([(rows @ y.T / x.shape[1] + 1).pow(3).sum() for rows in x.split(ROWS)]).sum()

    def others(x: Tensor) -> Tensor:
        diagonal = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
        return (total(x, x) - diagonal) / (len(x) * (len(x) - 1))

    return others(a) + others(b) - 2 * total(a, b) / (len(a) * len(b))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Of each row to each, by differences: matrix products are quicker, and lose digits where rows are near another."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance of each row to its k-th neighbour; the row itself is the nearest.

    Levels and grids have many rows at one distance, of which rounding (to float32, before they came here) must not put
    some inside and others outside: so a radius is longer by a hundred-thousandth.
    """
    found = [_distances(rows, x).kthvalue(k + 1, dim=1).values for rows in x.split(ROWS)]
    return torch.cat(found) * (1 + 1e-5)


def _inside(centres: Tensor, radii: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """In how many of the balls each point lies, and whether each ball holds a point."""
    counts, held = torch.zeros(len(points), dtype=torch.long), []
    for rows, radius in zip(centres.split(ROWS), radii.split(ROWS), strict=True):
        inside = _distances(rows, points) <= radius[:, None]
        counts += inside.sum(0)
        held.append(inside.any(1))
    return counts, torch.cat(held)


def _score(name: str, values: Tensor, real: Tensor, generated: Tensor, error: float | None = None) -> Score:
    return Score(name, float(values.double().mean()), len(real), len(generated), error)


def as_rows(name: str, rows: Any) -> Tensor:
    """Data or samples as a tensor, from a tensor, an array, or what gives tensors when it is indexed."""
    return as_member(rows, name)[:]


def features_of(real: Any, generated: Any, features: Features | None, at_least: int) -> tuple[Tensor, Tensor]:
    """Vectors of data and samples in float64 on the CPU, (N, F) and (M, F), once they can be compared.

    Raises:
        ValueError: events of different shapes, too few rows, or features that are none or not finite.
    """
    real, generated = as_rows("real", real), as_rows("generated", generated)
    if real.shape[1:] != generated.shape[1:]:
        raise ValueError(
            f"data and samples must be events of one shape, got {tuple(real.shape[1:])} and "
            f"{tuple(generated.shape[1:])}: reshape one of them."
        )
    found = []
    for name, rows in (("real", real), ("generated", generated)):
        if len(rows) < at_least:
            raise ValueError(f"{name} has {len(rows)} rows, and this measure needs at least {at_least}.")
        x = (rows if features is None else in_parts(features, rows)).detach().cpu().double().flatten(1)
        if not x.shape[1]:
            raise ValueError(f"{name} has no features: its shape is {tuple(rows.shape)}.")
        if not bool(x.isfinite().all()):
            raise ValueError(f"{name} has features that are NaN or infinite, first in row {_first_bad(x)}.")
        found.append(x)
    return found[0], found[1]


def _first_bad(x: Tensor) -> int:
    return int((~x.isfinite().all(1)).nonzero()[0])


def in_parts(function: Features, rows: Tensor) -> Tensor:
    """A function of rows, some at a time, without gradients; a network's in eval mode and where the network is."""
    owner = getattr(function, "__self__", function)
    with evaluating(owner):
        return torch.cat([function(part.to(device_of(owner))).cpu() for part in rows.split(ROWS)])
