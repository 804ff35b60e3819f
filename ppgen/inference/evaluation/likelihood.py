r"""Importance-sampled log-likelihoods, each with its error and a verdict on whether it can be believed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ppgen.inference.evaluation.export import elpd_data
from ppgen.inference.evaluation.psis import FEWEST, TailAccumulator, check_weights, k_hat_limit
from ppgen.inference.evaluation.weigher import Weigher
from ppgen.inference.execution.batches import check_rows, read_once
from ppgen.inference.execution.distributed import spread
from ppgen.inference.execution.fingerprint import fingerprint
from ppgen.inference.programs.hygiene import warn_of_probabilities, watching_modes
from ppgen.inference.programs.masks import masked
from ppgen.inference.programs.modes import evaluating
from ppgen.inference.programs.networks import device_of
from ppgen.inference.programs.refusals import check_subsamples
from ppgen.inference.programs.seeds import derived_seed, seeded
from ppgen.inference.programs.structure import measure, programs
from ppgen.inference.programs.supports import check_observed, observed_supports
from ppgen.inference.programs.traces import coordinates, device_batch, num_rows, run, run_guide, sites
from ppgen.numbers import positive_integer
from ppgen.pair import Pair

__all__ = ["Estimate", "log_likelihood"]

# Noise belongs to cells of this many data and samples, each with a key of its own: however cells are grouped into
# calls, processes or machines, each draws the same.
CELL_DATA = 100
CELL_SAMPLES = 250
# Samples that are looked at together: a GPU is not waited for after each cell.
TOGETHER = 5 * CELL_SAMPLES


@dataclass(frozen=True)
class Estimate:
    r"""Importance-sampled log p(x) of each datum, with errors; tensors of shape (N,), in nats.

    Attributes:
        values: log of the mean weight, a lower bound of log p(x) in expectation.
        elbo: mean of the log weights.
        mc_standard_error: of ``values``, from the spread of the weights (meaningless where not ``reliable``).
        ess: effective sample size, at most ``num_samples``.
        k_hat: shape of the generalised Pareto tail of the weights; −inf where the weights are the same at draws that
            are not, +inf where too few differ to tell: a guide that draws one value of a discrete latent, and no other,
            may be exact or may have left the others out. It is believed beside data that show the guide to be exact.
        reliable: k-hat < min(1 − 1/log10 S, 0.7); never where the guide is a point, which no number of samples mends.
        num_samples: S.
        data: a digest of each member of the batch, so that only estimates of the same data are compared.
    """

    values: Tensor
    elbo: Tensor
    mc_standard_error: Tensor
    ess: Tensor
    k_hat: Tensor
    reliable: Tensor
    num_samples: int
    data: tuple[str, ...] = field(default=(), kw_only=True, repr=False)

    @property
    def mean(self) -> float:
        """The mean of log p(x) over the data, in nats."""
        return self.values.mean().item()

    @property
    def mean_mc_standard_error(self) -> float:
        """The Monte-Carlo error of the mean: what more samples would mend."""
        return (self.mc_standard_error.square().sum().sqrt() / len(self.values)).item()

    @property
    def data_standard_error(self) -> float:
        """The error of the mean from having only N data: what more data would mend. NaN for a single datum."""
        return (self.values.std() / math.sqrt(len(self.values))).item() if len(self.values) > 1 else math.nan

    @property
    def reliable_fraction(self) -> float:
        """The share of the data whose estimate is reliable."""
        return self.reliable.double().mean().item()

    @property
    def is_lower_bound(self) -> bool:
        """Whether so many estimates are unreliable (more than 1 %) that the mean is a lower bound and no more."""
        return self.reliable_fraction < 0.99

    def summary(self) -> dict[str, Any]:
        """The means as plain numbers, for JSON."""
        return {
            "log_likelihood": self.mean,
            "is_lower_bound": self.is_lower_bound,
            "elbo": self.elbo.mean().item(),
            "mc_standard_error": self.mean_mc_standard_error,
            "data_standard_error": self.data_standard_error,
            "reliable_fraction": self.reliable_fraction,
            "num_samples": self.num_samples,
            "num_data": len(self.values),
        }

    def to_arviz(self) -> Any:
        """As ArviZ's ``ELPDData``, which ``az.compare`` and ``az.plot_khat`` take: :func:`elpd_data`."""
        return elpd_data(self)

    def __str__(self) -> str:
        name = "lower bound of the log-likelihood" if self.is_lower_bound else "log-likelihood"
        return (
            f"{name} {self.mean:.2f} nats (Monte-Carlo error {self.mean_mc_standard_error:.3f}, data error "
            f"{self.data_standard_error:.2f}; S = {self.num_samples}, N = {len(self.values)}, "
            f"{self.reliable_fraction:.1%} reliable)"
        )


def log_likelihood(
    pair: Pair,
    *batch: Any,
    mask: Any = None,
    num_samples: int = 1000,
    seed: int = 0,
    compile: bool | None = None,
    memory: int | None = None,
) -> Estimate:
    r"""The marginal log-likelihood of each datum by importance sampling, with the guide as the proposal.

    .. math:: \log \hat p(x_n) = \log \frac{1}{S} \sum_{s=1}^{S} \frac{p(x_n, z_{sn})}{q(z_{sn} \mid x_n)}

    Exactly S samples are used, weights are accumulated in float64, and noise is drawn in cells of 100 data and 250
    samples that are keyed by the seed, so the result does not depend on how the work is divided. Memory does not grow
    with N, and with S only as its square root. The pair is evaluated in eval mode without gradients and given back as
    it was.

    Discrete sites that the model alone has are summed out where they are marked for enumeration; those of the guide are
    drawn and weighed, whatever mark they have, which changes the error and not the mean of the weights.

    Encoders run once for each 100 data, decoders on slices of samples that fit the memory; where there is much to do
    the pair's programs are compiled. Values are the same to the bit at the same settings and amount of data and
    samples, and to rounding (1e-4 nats) otherwise.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2015), https://arxiv.org/abs/1509.00519
        Pareto Smoothed Importance Sampling (Vehtari et al., 2015), https://arxiv.org/abs/1507.02646

    Args:
        pair: anything with ``.model`` and ``.guide``, each datum on axis −1 of one plate.
        batch: the data, each member with N rows.
        mask: True where the first member was observed, of its shape: the likelihood is that of the observed elements,
            with the missing ones (which may be NaN) integrated out. For pairs that take a mask, as the library's do.
        num_samples: S, draws per datum. With fewer than 25 there is no k-hat, and no estimate is called
            reliable unless all weights of a datum agree, as those of an exact guide do.
        seed: of the noise, and of data that are drawn anew at each read (``DynamicBinarization``), which are drawn
            once.
        compile: whether the pair's programs are compiled; by default where the work, which is measured in bytes and
            not in seconds, is some minutes of it. What cannot be compiled runs in eager, and says so once.
        memory: bytes that scoring a slice of samples may hold, down to one sample of 100 data at a time. By default
            8 MB on a CPU, whose caches hold that much, and 1 GB on a GPU.

    Raises:
        TypeError: the pair has no guide (a GAN samples but has no density).
        ValueError: a bad number of samples, empty or non-finite data, members of different lengths, or what
            :func:`log_weights` refuses.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from ppgen.models import Custom
        >>> from ppgen.pair import data_plate
        >>> def model(x):
        ...     with data_plate(x):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def exact_posterior(x):
        ...     with data_plate(x):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5 ** 0.5))
        >>> x = torch.tensor([0.0, 1.0, 2.0])
        >>> estimate = log_likelihood(Custom(model, exact_posterior), x, num_samples=30)
        >>> bool((estimate.values - dist.Normal(0.0, 2 ** 0.5).log_prob(x)).abs().max() < 1e-5)
        True
    """
    positive_integer("num_samples", num_samples)
    if memory is not None:
        positive_integer("memory", memory)
    pair, batch = masked(pair, batch, mask)
    rows = read_once(batch, seed)
    first = device_batch(pair, rows(slice(0, CELL_DATA)))
    with evaluating(pair):
        structure = measure(pair.model, pair.guide, *first)
        model, guide = programs(pair.model, pair.guide, structure)
        with watching_modes(pair), seeded(None, device_of(pair)):
            traces = run(pair.model, pair.guide, first)
        check_subsamples(*traces, num_rows=num_rows(first))
        found = sites(traces[0])
        check_rows(rows, observed_supports(found, first))
        check_observed(found)
        warn_of_probabilities(pair, found)
        weigher = Weigher(
            pair if structure.vectorized else SimpleNamespace(model=model, guide=guide),
            structure,
            first,
            num_data=len(rows),
            num_samples=num_samples,
            cell_samples=CELL_SAMPLES,
            compile=compile,
            memory=memory,
        )

        def estimated(start: int) -> tuple[Tensor, ...]:
            block = device_batch(pair, rows(slice(start, start + CELL_DATA)))
            return _block(weigher, block, start // CELL_DATA, num_samples, seed)

        blocks = spread(estimated, range(0, len(rows), CELL_DATA))
    columns = [torch.cat(column) for column in zip(*blocks, strict=True)]
    values, bound, error, ess, k_hat, constant, exact = columns
    # A weight that stays the same while the latents change means an exact guide. Few samples can agree by chance, so
    # then all data must; and where they do, a datum whose posterior leaves one value is taken at the others' word.
    exact = (exact & (num_samples >= FEWEST)) | (constant.all() & exact.any())
    k_hat = torch.where(exact, -math.inf, k_hat)
    reliable = exact | (k_hat < k_hat_limit(num_samples))
    # A guide without randomness, of discrete latents, finds one term of the sum that p(x) is, at any number of samples.
    error = torch.where(exact | structure.point, 0.0, error)
    return Estimate(values, bound, error, ess, k_hat, reliable, num_samples, data=fingerprint(rows))


def _block(weigher: Weigher, block: Any, index: int, num_samples: int, seed: int) -> tuple[Tensor, ...]:
    tail = TailAccumulator(num_samples)
    log_weights = weigher.bind(block)
    for start in range(0, num_samples, TOGETHER):
        cells = []
        for cell in range(start, min(start + TOGETHER, num_samples), CELL_SAMPLES):
            torch.manual_seed(derived_seed(seed, index, cell // CELL_SAMPLES))
            cells.append(log_weights(min(CELL_SAMPLES, num_samples - cell)))
        log_w = torch.cat(cells)
        check_weights(log_w, index * CELL_DATA)
        tail.add(log_w)
    weighed = tail.result()
    exact = weighed.constant
    if exact.any():
        exact = exact & _varied(weigher, block, index, num_samples, seed, len(exact))
    return *weighed, exact


def _varied(weigher: Weigher, block: Any, index: int, num_samples: int, seed: int, num_data: int) -> Tensor:
    """For which data the draws that were weighed, which are drawn again, differ in every coordinate of every latent.

    A proposal that always draws one value (of a discrete latent, or within rounding) has constant weights, too.
    """
    structure = weigher.structure
    if not structure.random:  # then there is nothing to draw, or one point
        return torch.full((num_data,), not structure.point)
    first, varied = torch.empty(0), torch.tensor(False)
    for start in range(0, num_samples, CELL_SAMPLES):
        size = min(CELL_SAMPLES, num_samples - start)
        torch.manual_seed(derived_seed(seed, index, start // CELL_SAMPLES))
        trace = run_guide(weigher.pair.guide, block, num_particles=size, nesting=structure.nesting)
        latents = [site for site in sites(trace).values() if not site["is_observed"]]
        drawn = torch.cat([coordinates(site, structure.nesting, size, num_data) for site in latents], -1).cpu()
        first = first if start else drawn[0]
        varied = varied | (drawn != first).any(0)
        if varied.all():
            break
    return varied.all(-1)
