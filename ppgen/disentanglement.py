"""How well the dimensions of a representation and the known factors of its data go together: four measures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import entropy
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score
from torch import Tensor

from ppgen.inference.execution.members import as_member
from ppgen.numbers import positive_integer

__all__ = [
    "DCI",
    "beta_vae_score",
    "dci",
    "disentanglement",
    "factor_vae_score",
    "importance_scores",
    "mutual_information_gap",
]

NUM_TRAIN, NUM_TEST = 10_000, 5_000  # batches, or data, that a classifier learns from, and that it is scored on
DEAD = 0.05  # of the largest standard deviation: a dimension that varies less is left out


@dataclass(frozen=True)
class DCI:
    """Disentanglement, completeness and informativeness.

    Attributes:
        disentanglement: whether each dimension serves a single factor, in [0, 1].
        completeness: whether each factor is held by a single dimension, in [0, 1].
        informativeness: the accuracy with which the factors are read off the codes, averaged over factors.
        importance: of each dimension (row) for each factor (column); a column sums to 1, or to 0
            where the codes tell nothing of the factor.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: Tensor


def disentanglement(codes: Tensor, factors: Tensor, *, seed: int = 0) -> dict[str, float]:
    r"""All four measures of a representation, with the settings that comparisons of such models are published with.

    Batches of 64; 10,000 of them (or data) to learn from and 5,000 to be scored on; 20 bins. Only codes and factors are
    needed, so any representation can be measured: a pair's ``encode(pair, x)``, principal components, a network's
    features. Each score is 1 for a representation that holds each factor in a dimension of its own. A code that knows
    nothing has 1 / F in both accuracies, the share of the most frequent values in informativeness, and 0 elsewhere.

    References:
        Challenging Common Assumptions in the Unsupervised Learning of Disentangled Representations
        (Locatello et al., 2019), https://arxiv.org/abs/1811.12359

    Args:
        codes: the representation, a row a datum; means rather than draws, where it is a posterior.
        factors: the factors of the same data as integers. Best is the whole grid of their combinations, or a large
            random part of it: the measures take the factors to be independent.
        seed: of all draws, on generators of its own.

    Shape:
        codes: (N, D), factors: (N, F).

    Raises:
        TypeError: codes that are no numbers, or factors that are no integers.
        ValueError: rows that do not match, codes that are not finite, fewer than two factors, a factor with a single
            value, or one with nearly as many values as data.

    Example:
        >>> from ppgen.data import factorised_shapes
        >>> _, factors = factorised_shapes()
        >>> for name, score in disentanglement(factors.float(), factors).items():
        ...     print(f"{name:<20}{score:.3f}")
        beta-VAE score      1.000
        FactorVAE score     1.000
        MIG                 1.000
        disentanglement     1.000
        completeness        1.000
        informativeness     1.000
    """
    _checked(codes, factors, least_factors=2)
    found = dci(codes, factors, seed=seed)
    return {
        "beta-VAE score": beta_vae_score(codes, factors, seed=seed),
        "FactorVAE score": factor_vae_score(codes, factors, seed=seed),
        "MIG": mutual_information_gap(codes, factors),
        "disentanglement": found.disentanglement,
        "completeness": found.completeness,
        "informativeness": found.informativeness,
    }


def beta_vae_score(codes: Tensor, factors: Tensor, *, batch_size: int = 64, seed: int = 0) -> float:
    r"""Higgins' measure: the accuracy with which a linear classifier tells which factor pairs of data share.

    A batch shares the factor k: each of its L pairs has the same value of the factor k, drawn anew for every pair, and
    all else differs. The classifier guesses k from the average difference of the codes,

    .. math:: \frac{1}{L} \sum_{l=1}^{L} |z_l^{(1)} - z_l^{(2)}|,

    which is small in the dimensions that hold the factor. A logistic regression learns from 10,000 batches and is
    scored on 5,000 others; chance is 1 / F. The dimensions are standardised first and dead ones left out (those whose
    standard deviation is below 0.05 of the largest), so that the score does not depend on their scales. A rotation of
    the perfect code can still score 1, which is the known weakness of this measure.

    References:
        beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework (Higgins et al., 2017),
        https://openreview.net/forum?id=Sy2fzU9gl

    Args:
        codes: (N, D), the representation.
        factors: (N, F), the factors as integers.
        batch_size: L, the pairs of a batch.
        seed: of the batches.

    Raises:
        TypeError, ValueError: as :func:`disentanglement`.
    """
    task = _SharedFactor(codes, factors, batch_size, seed)

    def difference(k: int, rows: np.ndarray) -> np.ndarray:
        return np.abs(task.z[rows] - task.z[task.partners(k, rows)]).mean(1)

    if task.z.shape[1] == 0:
        return 1 / task.num_factors
    classifier = LogisticRegression(max_iter=1000).fit(*task.batches(difference, NUM_TRAIN))
    return float(classifier.score(*task.batches(difference, NUM_TEST)))


def factor_vae_score(codes: Tensor, factors: Tensor, *, batch_size: int = 64, seed: int = 0) -> float:
    r"""FactorVAE's measure: the accuracy with which the steadiest dimension tells which factor a batch shares.

    A batch of L data shares one value of the factor k, and all else differs. The dimension whose variance in the batch
    is smallest against its variance over all data,

    .. math:: d = \arg\min_j \mathrm{Var}_l(z_{lj}) / \mathrm{Var}(z_j),

    is the batch's vote for a factor: 10,000 batches decide which factor each dimension stands for, by majority, and
    5,000 others are scored; chance is 1 / F. Dead dimensions are left out (those whose standard deviation is below 0.05
    of the largest; for a VAE with unit prior, that is the published 0.05). A slight rotation of a perfect code passes.

    References:
        Disentangling by Factorising (Kim & Mnih, 2018), https://arxiv.org/abs/1802.05983

    Args:
        codes: (N, D), the representation.
        factors: (N, F), the factors as integers.
        batch_size: L, at least 2.
        seed: of the batches.

    Raises:
        TypeError, ValueError: as :func:`disentanglement`.
    """
    if positive_integer("batch_size", batch_size) < 2:
        raise ValueError("batch_size must be at least 2, for a batch to have a variance, got 1.")
    task = _SharedFactor(codes, factors, batch_size, seed)

    def steadiest(k: int, rows: np.ndarray) -> np.ndarray:
        first = np.repeat(rows[:, :1], batch_size, 1)
        return task.z[task.partners(k, first)].var(1).argmin(-1)

    if task.z.shape[1] == 0:
        return 1 / task.num_factors
    counts = np.zeros((task.z.shape[1], task.num_factors), int)  # of votes, by dimension and factor shared
    np.add.at(counts, task.batches(steadiest, NUM_TRAIN), 1)
    votes, labels = task.batches(steadiest, NUM_TEST)
    return float((counts.argmax(1)[votes] == labels).mean())


def mutual_information_gap(codes: Tensor, factors: Tensor, *, num_bins: int = 20) -> float:
    r"""MIG: how much more the best dimension knows of a factor than the second best, averaged over the factors.

    .. math:: \frac{1}{F} \sum_k \frac{I(z_{j_k}; v_k) - \max_{j \ne j_k} I(z_j; v_k)}{H(v_k)}, \qquad
        j_k = \arg\max_j I(z_j; v_k)

    The information is that of the joint histogram: the codes in 20 bins of equal width between a dimension's smallest
    and largest value, the factors as they are, all data counted. (The paper integrates over the posterior; the
    histogram of its means is what comparisons report, and needs no posterior.) Of a single dimension, the second best
    knows nothing.

    References:
        Isolating Sources of Disentanglement in Variational Autoencoders (Chen et al., 2018),
        https://arxiv.org/abs/1802.04942

    Args:
        codes: (N, D), the representation.
        factors: (N, F), the factors as integers.
        num_bins: the bins of a dimension.

    Raises:
        TypeError, ValueError: as :func:`disentanglement`.
    """
    z, f = _checked(codes, factors)
    positive_integer("num_bins", num_bins)
    low, width = z.min(0), np.ptp(z, axis=0)
    bins = ((z - low) / np.where(width > 0, width, 1) * num_bins).astype(int).clip(0, num_bins - 1)
    information = np.array([[mutual_info_score(v, b) for v in f.T] for b in bins.T])  # dimension, factor
    entropies = [entropy(np.unique(v, return_counts=True)[1]) for v in f.T]
    ordered = np.sort(np.vstack([information, np.zeros_like(information[:1])]), axis=0)
    return float(np.mean((ordered[-1] - ordered[-2]) / entropies))


def dci(codes: Tensor, factors: Tensor, *, num_trees: int = 20, seed: int = 0) -> DCI:
    r"""Disentanglement, completeness and informativeness of a representation.

    A random forest predicts each factor from the codes. Its importances R, those of dimension i for factor j, say which
    dimension serves which factor: see :func:`importance_scores`. Informativeness is its accuracy on data that it did
    not learn from. A seeded shuffle takes 10,000 data to learn from and 5,000 for the accuracy, or two thirds and one
    third where there are fewer. Every split of a tree chooses among all dimensions, and a leaf has at least 5 data, so
    that dimensions which know nothing get next to no importance. (The paper regresses, and reports errors; the
    factors here are indices, and the higher score is the better.)

    References:
        A Framework for the Quantitative Evaluation of Disentangled Representations (Eastwood & Williams, 2018),
        https://openreview.net/forum?id=By-7dz-AZ

    Args:
        codes: (N, D), the representation.
        factors: (N, F), the factors as integers.
        num_trees: the trees of each factor's forest.
        seed: of the shuffle and of the forests.

    Raises:
        TypeError, ValueError: as :func:`disentanglement`.
    """
    z, f = _checked(codes, factors)
    z = z - z.mean(0)  # the trees see no more than float32 of the codes, which an offset would use up
    z /= np.where((largest := np.abs(z).max(0)) > 0, largest, 1)
    order = np.random.default_rng(seed).permutation(len(z))
    train, test = np.split(order[: NUM_TRAIN + NUM_TEST], [min(NUM_TRAIN, math.ceil(len(z) * 2 / 3))])
    importance, accuracy = [], []
    for values in f.T:
        forest = RandomForestClassifier(
            positive_integer("num_trees", num_trees), max_features=None, min_samples_leaf=5, random_state=seed
        )
        forest.fit(z[train], values[train])
        importance.append(forest.feature_importances_)
        accuracy.append(forest.score(z[test], values[test]))
    matrix = torch.tensor(np.array(importance).T)
    return DCI(*importance_scores(matrix), float(np.mean(accuracy)), matrix)


def importance_scores(importance: Tensor) -> tuple[float, float]:
    r"""Disentanglement and completeness of a matrix of importances R, those of dimension i for factor j.

    .. math::
        \text{disentanglement} = \sum_i \frac{R_{i\cdot}}{R_{\cdot\cdot}}
            \Bigl(1 - \frac{H(R_{i1}, \dots, R_{iF})}{\log F}\Bigr), \qquad
        \text{completeness} = \sum_j \frac{R_{\cdot j}}{R_{\cdot\cdot}}
            \Bigl(1 - \frac{H(R_{1j}, \dots, R_{Dj})}{\log D}\Bigr)

    with H the entropy of a row or column made to sum to 1: the first is 1 if each dimension serves a single factor, the
    second if each factor is held by a single dimension.

    Args:
        importance: R, not negative, for example absolute weights of a lasso.

    Shape:
        (D, F).

    Raises:
        ValueError: not a matrix, or an importance that is negative or not finite.

    Example:
        >>> importance_scores(torch.eye(3))
        (1.0, 1.0)
        >>> importance_scores(torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]]))[0]
        0.0
    """
    r = torch.as_tensor(importance).detach().cpu().double().numpy()
    if r.ndim != 2 or not (np.isfinite(r).all() and (r >= 0).all()):
        raise ValueError(
            "importance must be a matrix (dimensions, factors) of finite numbers that are not negative, "
            f"got shape {r.shape}{'' if r.ndim != 2 else f' with values from {r.min():g} to {r.max():g}'}."
        )

    def concentration(rows: np.ndarray) -> float:
        total = rows.sum(1)
        used = total > 0  # what serves nothing has no weight
        if not used.any() or rows.shape[1] == 1:
            return float(used.any())
        return float(np.average(1 - entropy(rows[used], axis=1) / math.log(rows.shape[1]), weights=total[used]))

    return concentration(r), concentration(r.T)


class _SharedFactor:
    """Batches of data that share the value of a factor, and the codes of all data: what is not dead, standardised."""

    def __init__(self, codes: Tensor, factors: Tensor, batch_size: int, seed: int) -> None:
        z, f = _checked(codes, factors, least_factors=2)
        self.batch_size = positive_integer("batch_size", batch_size)
        self.num_factors = f.shape[1]
        scale = z.std(0)
        active = (scale >= DEAD * scale.max()) & (scale > 0)
        self.z = z[:, active] / scale[active]
        self.rng = np.random.default_rng(seed)
        self.groups = []  # of each factor: the value of each row, the rows sorted by value, where each value starts
        for column in f.T:
            _, value, counts = np.unique(column, return_inverse=True, return_counts=True)
            self.groups.append((value, np.argsort(value, kind="stable"), np.cumsum(counts) - counts, counts))

    def partners(self, k: int, rows: np.ndarray) -> np.ndarray:
        """For each row a draw among those that share its value of the factor k."""
        value, members, start, counts = self.groups[k]
        own = value[rows]
        return members[start[own] + self.rng.integers(counts[own])]

    def batches(self, see: Callable[[int, np.ndarray], np.ndarray], number: int) -> tuple[np.ndarray, np.ndarray]:
        """What ``see(k, rows)`` makes of batches of drawn rows, as many for each factor k, and the k."""
        labels = np.sort(np.arange(number) % self.num_factors)
        parts = [some for k in range(self.num_factors) for some in np.array_split(labels[labels == k], 20)]
        draws = ((k[0], self.rng.integers(len(self.z), size=(len(k), self.batch_size))) for k in parts if len(k))
        return np.concatenate([see(k, rows) for k, rows in draws]), labels


def _checked(codes: Tensor, factors: Tensor, least_factors: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Codes and factors as arrays, once they are known to be usable."""
    given = {"codes": codes, "factors": factors}
    arrays = {name: v if isinstance(v, Tensor) else np.asanyarray(v) for name, v in given.items()}
    z, f = (as_member(value, name)[:].detach().cpu() for name, value in arrays.items())
    for name, value in (("codes", z), ("factors", f)):
        if value.ndim != 2 or 0 in value.shape:
            raise ValueError(f"{name} must be a matrix, a row a datum, got shape {tuple(value.shape)}.")
    if f.is_floating_point():
        raise TypeError(f"factors must be integers, got {f.dtype}: give the index of each factor's value.")
    if len(z) != len(f):
        raise ValueError(f"codes and factors must belong to the same data, got {len(z):,} and {len(f):,} rows.")
    if f.shape[1] < least_factors:
        raise ValueError(f"factors must have at least {least_factors} columns to be told apart, got {f.shape[1]}.")
    if not bool(z.isfinite().all()):
        row, dim = (int(i) for i in (~z.isfinite()).nonzero()[0])
        raise ValueError(f"codes must be finite, got {z[row, dim].item()} in row {row}, dimension {dim}.")
    for k, values in enumerate(f.T):
        if (count := len(values.unique())) < 2:
            raise ValueError(f"factors must vary, got the one value {int(values[0])} in column {k}: leave it out.")
        elif count > len(f) / 2:
            raise ValueError(
                f"factors must have values that several data share, got {count:,} values in the {len(f):,} rows of "
                f"column {k}: sort them into fewer bins, or give more data."
            )
    return z.double().numpy(), f.long().numpy()
