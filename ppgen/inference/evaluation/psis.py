r"""Streaming statistics of importance weights: mean, spread, and the shape of their tail."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FEWEST", "TailAccumulator", "Weighed", "check_weights", "k_hat_limit", "pareto_shape"]

FEWEST = 25  # samples that have a tail to which a distribution can be fitted


def pareto_shape(exceedances: Tensor) -> Tensor:
    r"""Shape k of generalised Pareto distributions, from exceedances over a threshold, sorted along axis 0.

    The estimator of Zhang and Stephens with the weak prior of Pareto-smoothed importance sampling; vectorised over
    columns, in float64.

    References:
        A New and Efficient Estimation Method for the Generalized Pareto Distribution (Zhang & Stephens, 2009),
        https://doi.org/10.1198/tech.2009.08017
        Pareto Smoothed Importance Sampling (Vehtari et al., 2015), https://arxiv.org/abs/1507.02646

    Args:
        exceedances: (M, N), positive, ascending along M.

    Shape:
        (N,)
    """
    x = exceedances.double()
    n = len(x)
    m = 30 + math.isqrt(n)
    quartile = x[int(n / 4 + 0.5) - 1]
    steps = torch.arange(1, m + 1, dtype=x.dtype, device=x.device).unsqueeze(-1)
    theta = (1 - (m / (steps - 0.5)).sqrt()) / (3 * quartile) + 1 / x[-1]  # (m, N)
    k = torch.stack([torch.log1p(-t * x).mean(0) for t in theta])
    profile = n * ((-theta / k).log() - k - 1)
    weight = profile.softmax(0)
    weight = torch.where(weight >= 10 * torch.finfo(x.dtype).eps, weight, 0.0)
    theta_mean = (theta * weight).sum(0) / weight.sum(0)
    shape = torch.log1p(-theta_mean * x).mean(0)
    return (n * shape + 10 * 0.5) / (n + 10)


class Weighed(NamedTuple):
    """What the weights of some samples come to, a value a datum, shape (N,).

    Attributes:
        values: log of the mean weight.
        bound: mean of the log weights.
        error: standard error of ``values``, by the delta method.
        ess: effective sample size.
        k_hat: shape of the weights' tail.
        constant: whether all weights are equal, to rounding.
    """

    values: Tensor
    bound: Tensor
    error: Tensor
    ess: Tensor
    k_hat: Tensor
    constant: Tensor


class TailAccumulator:
    """Log weights of shape (S, N), seen a few samples at a time and not kept: only the tail that k-hat needs is."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.tail_length = math.ceil(min(0.2 * num_samples, 3 * math.sqrt(num_samples)))
        self.seen = 0

    def add(self, log_weights: Tensor) -> None:
        """Takes in some samples, shape (s, N)."""
        w = log_weights.double().cpu()
        top = w.amax(0)
        if not self.seen:
            self.largest, self.smallest = top, w.amin(0)
            self.total, self.first, self.second = w.sum(0), torch.zeros_like(top), torch.zeros_like(top)
            self.tail = w[:0]
        new = torch.maximum(self.largest, top)
        anchor = torch.where(new == -math.inf, 0.0, new)  # every weight so far is zero
        shrink = torch.exp(self.largest - anchor)
        scaled = torch.exp(w - anchor)
        self.first = self.first * shrink + scaled.sum(0)
        self.second = self.second * shrink.square() + scaled.square().sum(0)
        self.largest, self.smallest = new, torch.minimum(self.smallest, w.amin(0))
        self.total = self.total + w.sum(0) if self.seen else self.total
        both = torch.cat([self.tail, w])
        self.tail = both.topk(min(self.tail_length + 1, len(both)), dim=0).values
        self.seen += len(w)

    def result(self) -> Weighed:
        """What the samples come to, once all of them were taken in."""
        assert self.seen == self.num_samples
        s = self.num_samples
        values = self.largest + torch.log(self.first / s)
        bound = self.total / s
        ess = self.first.square() / self.second
        # The delta method: the relative standard error of the mean weight.
        error = ((s * self.second / self.first.square() - 1).clamp(min=0) / max(s - 1, 1)).sqrt()
        error = torch.where(torch.tensor(s > 1), error, math.nan)
        # What float32 sums of hundreds of terms leave of equal numbers.
        rounding = 2e-6 * (50 + self.largest.abs())
        constant = (self.largest - self.smallest) <= rounding
        k_hat = self._k_hat() if s >= FEWEST else torch.full_like(values, math.nan)
        return Weighed(values, bound, error, ess, k_hat, constant)

    def _k_hat(self) -> Tensor:
        ratios = torch.exp(self.tail - self.largest)
        cutoff = ratios[-1].clamp(min=torch.finfo(torch.float64).tiny)
        exceedances = (ratios[:-1] - cutoff).flip(0)
        # Ties at the cutoff (equal or vanishing weights) leave fewer points: no tail can be fitted.
        enough = (exceedances > 0).sum(0) == len(exceedances)
        k = pareto_shape(
            torch.where(enough, exceedances, torch.arange(1.0, len(exceedances) + 1).unsqueeze(-1).double())
        )
        return torch.where(enough, k, math.inf)


def k_hat_limit(num_samples: int) -> float:
    """The k-hat below which an estimate of so many samples is reliable: min(1 − 1/log10 S, 0.7) (Vehtari et al.).

    No k-hat is below that of fewer than :data:`FEWEST` samples.
    """
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples >= FEWEST else -math.inf


def check_weights(log_weights: Tensor, first_row: int = 0) -> None:
    """Makes sure that log weights (S, N) are numbers, or −inf.

    Raises:
        ValueError: those of a datum are not.
    """
    if (bad := (log_weights.isnan() | (log_weights == math.inf)).any(0)).any():
        row = first_row + int(bad.nonzero()[0])
        raise ValueError(f"The weights of datum {row} are not finite: the pair's log-density is NaN or +inf there.")
