"""Expectation maximisation: one step on any model whose two halves of a step have closed forms."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.inference.programs.networks import device_of
from ppgen.inference.programs.traces import device_batch
from ppgen.inference.programs.turns import in_turn
from ppgen.inference.training.progress import mean_loss
from ppgen.numbers import finite_number, natural_number

__all__ = ["EM"]

SHORT_RUN = 20  # iterations after which restarts are compared
FORGETTING = 0.6  # of stepwise EM: batch t has a share of t^-0.6 in the statistics


class EM:
    r"""One step of expectation maximisation on a batch: ``EM(model).step(*batch) -> loss``.

    .. math::
        \text{E: } \bar s = \frac1N \sum_n \mathbb{E}_{p(z \mid x_n; \theta)}[s(x_n, z)], \qquad
        \text{M: } \theta \leftarrow \arg\max_\theta \mathbb{E}[\log p(x, z; \theta) \mid \bar s]

    ``train(EM(model), x, epochs=100, batch_size=len(x))`` is exact EM: the loss never rises. With smaller batches it is
    stepwise EM, which remembers statistics from batch to batch and blends those of a new one in at a decreasing rate;
    it needs fewer passes over many data. Then no parameter changes before as many rows were seen as the model has
    parameters, or once all of them. A step by hand takes its batch for all of the data.

    The model says what the two halves are:
    ``initialize(*batch, generator=…)`` sets a start from a batch;
    ``expectation(*batch)`` gives a dictionary of averages over the batch, the expected sufficient statistics and
    ``"log_likelihood"``; ``maximization(statistics)`` sets the parameters.

    References:
        Maximum Likelihood from Incomplete Data via the EM Algorithm (Dempster, Laird & Rubin, 1977),
        https://doi.org/10.1111/j.2517-6161.1977.tb01600.x
        Online Expectation-Maximization Algorithm for Latent Data Models (Cappé & Moulines, 2009),
        https://arxiv.org/abs/0712.4273
        Choosing starting values for the EM algorithm (Biernacki, Celeux & Govaert, 2003: short runs),
        https://doi.org/10.1016/S0167-9473(02)00163-9

    Args:
        model: a module with the three methods, such as :class:`ppgen.models.GaussianMixture`.
        num_restarts: starts that are made from the first batch. Of several, each goes through a short run of EM on that
            batch, and the best goes on. With 0 EM begins at the parameters as they are.
        tolerance: in nats per datum: training stops after the epoch in which the loss fell by less.
        seed: of the starts; drawn from torch's generator if not given.

    Attributes:
        converged: whether the last epoch changed the loss by less than the tolerance.

    Raises:
        TypeError: the model lacks one of the three methods.
        ValueError: a number of restarts that is not a whole number, or a tolerance that is negative.

    Example:
        >>> from ppgen.inference import train
        >>> from ppgen.models import GaussianMixture
        >>> noise = torch.Generator().manual_seed(0)
        >>> x = torch.randn(200, 2, generator=noise) + torch.tensor([0.0, 8.0]).repeat_interleave(100).unsqueeze(1)
        >>> step = EM(GaussianMixture(2, 2), num_restarts=3, tolerance=1e-4, seed=0)
        >>> history = train(step, x, epochs=100, batch_size=len(x), progress=False)
        >>> history.stopped_early, [round(weight, 3) for weight in step.pair.weights.tolist()]
        (True, [0.5, 0.5])
    """

    def __init__(
        self, model: nn.Module, *, num_restarts: int = 1, tolerance: float | None = None, seed: int | None = None
    ) -> None:
        for name in ("initialize", "expectation", "maximization"):
            if not callable(getattr(model, name, None)):
                raise TypeError(f"EM needs a model with .{name}, and {type(model).__name__} has none: train it by fit.")
        self.pair: Any = model
        self.num_restarts = natural_number("num_restarts", num_restarts)
        self.tolerance = None if tolerance is None else finite_number("tolerance", tolerance, least=0)
        self.seed = seed
        self.converged = False
        self.rate = _Rate(sum(p.numel() for p in model.parameters()))
        self.schedules = [self.rate]  # train tells each how many batches are an epoch
        self._started = False
        self._statistics: dict[str, Tensor] = {}
        self._epoch: list[tuple[float, int]] = []
        self._last_loss = math.inf

    @in_turn
    @torch.no_grad()
    def step(self, *batch: Any) -> Tensor:
        """One update; the mean negative log-likelihood of this batch before it, in nats per datum.

        Raises:
            FloatingPointError: the loss is not finite, or a parameter would not be; the parameters are as they were.
        """
        batch = device_batch(self.pair, batch)
        before = [(value, value.clone()) for value in self.pair.state_dict().values()]
        started, rate = self._started, dict(vars(self.rate))
        try:
            if not self._started:
                self._start(batch)
            statistics, log_likelihood = self._expectation(batch)
            self.rate.advance(len(batch[0]))
            if self._statistics:
                old, share = self._statistics, self.rate()
                statistics = {name: old[name].lerp(value, share) for name, value in statistics.items()}
            if self.rate.warm:
                self._maximization(statistics)
        except (FloatingPointError, torch.linalg.LinAlgError) as error:
            for value, was in before:
                value.copy_(was)
            self._started = started
            vars(self.rate).update(rate)
            if isinstance(error, torch.linalg.LinAlgError):
                raise FloatingPointError(
                    f"The step has no finite end ({error}), so nothing was updated. Likely causes: data of a range "
                    "that single precision cannot hold, or features that are the same."
                ) from error
            raise
        self._statistics = statistics
        self._watch(-log_likelihood.item(), len(batch[0]))
        return -log_likelihood

    @torch.no_grad()
    def evaluate(self, *batch: Any, seed: int = 0) -> Tensor:
        """The mean negative log-likelihood of a batch; it is exact, so no noise needs the seed."""
        return -self.pair.expectation(*device_batch(self.pair, batch))["log_likelihood"]

    def state_dict(self) -> dict[str, Any]:
        """What EM remembers from batch to batch, beside the model's parameters."""
        return {
            "started": self._started, "statistics": self._statistics, "epoch": self._epoch,
            "last_loss": self._last_loss, "converged": self.converged, "rate": vars(self.rate),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        rate = _Rate(self.rate.num_parameters)
        vars(rate).update({name: int(state["rate"][name]) for name in vars(rate)})
        if min(vars(rate).values()) < 0:
            raise ValueError(f"its counts are {vars(rate)}")
        device = device_of(self.pair)
        self._statistics = {name: value.to(device) for name, value in state["statistics"].items()}
        self._epoch = [(float(loss), int(rows)) for loss, rows in state["epoch"]]
        self._started, self.converged = bool(state["started"]), bool(state["converged"])
        self._last_loss = float(state["last_loss"])
        vars(self.rate).update(vars(rate))

    def _expectation(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        statistics = dict(self.pair.expectation(*batch))
        log_likelihood = statistics.pop("log_likelihood")
        if not torch.isfinite(log_likelihood):
            raise FloatingPointError(
                f"The log-likelihood is {log_likelihood.item()}, so nothing was updated. Likely causes: data that is "
                "not finite, or a scale that collapsed to zero."
            )
        return statistics, log_likelihood

    def _maximization(self, statistics: dict[str, Tensor]) -> None:
        self.pair.maximization(statistics)
        bad = [name for name, parameter in self.pair.named_parameters() if not parameter.isfinite().all()]
        if bad:
            raise FloatingPointError(
                f"The M-step would make {bad[0]} not finite, so nothing was updated. Likely causes: data of a range "
                "that single precision cannot hold, or a component that no datum belongs to."
            )

    def _start(self, batch: Any) -> None:
        """The best of several starts, each judged after a short run on the first batch."""
        seed = int(torch.randint(2**62, ())) if self.seed is None else self.seed
        generator = torch.Generator().manual_seed(seed)
        best, best_state = -math.inf, None
        for _ in range(self.num_restarts):
            self.pair.initialize(*batch, generator=generator)
            if self.num_restarts == 1:
                break
            for _ in range(SHORT_RUN):
                self.pair.maximization(self._expectation(batch)[0])
            log_likelihood = self._expectation(batch)[1].item()
            if log_likelihood > best:
                best, best_state = log_likelihood, copy.deepcopy(self.pair.state_dict())
        if best_state is not None:
            self.pair.load_state_dict(best_state)
        self._started = True

    def _watch(self, loss: float, num_rows: int) -> None:
        """Compares the losses of whole epochs."""
        self._epoch.append((loss, num_rows))
        if len(self._epoch) < self.rate.steps_per_epoch:
            return
        now = mean_loss(self._epoch)
        self.converged = self.tolerance is not None and abs(self._last_loss - now) < self.tolerance
        self._last_loss = now
        self._epoch = []


class _Rate:
    """The share of a new batch in the statistics: all of it in exact EM, ever less in stepwise EM.

    At first, batches are averaged until they can carry an M-step: as many rows as there are parameters, or all.
    """

    done = True  # nothing that patience would have to wait for

    def __init__(self, num_parameters: int) -> None:
        self.num_parameters = num_parameters
        self.steps_per_epoch = 1
        self.steps = self.rows = self.last_rows = self.most_rows = 0

    def bind(self, steps_per_epoch: int) -> None:
        """Learns how many batches make all of the data."""
        self.steps_per_epoch = steps_per_epoch

    def advance(self, num_rows: int) -> None:
        """Counts one batch."""
        self.steps += 1
        self.rows += num_rows
        self.last_rows = num_rows
        self.most_rows = max(self.most_rows, num_rows)

    @property
    def warm(self) -> bool:
        """Whether enough was seen for an M-step."""
        return self.rows >= self.num_parameters or self.steps >= self.steps_per_epoch

    def __call__(self) -> float:
        if self.steps_per_epoch == 1:
            return 1.0
        if not self.warm:
            return self.last_rows / self.rows
        return self.steps**-FORGETTING * self.last_rows / self.most_rows  # a short last batch says less
