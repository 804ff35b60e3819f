r"""What labels bring to training: an objective plus the classification loss of the rows that have one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from ppgen.inference.losses.elbo import elbo
from ppgen.inference.losses.loss import as_loss
from ppgen.inference.programs.traces import Program
from ppgen.numbers import finite_number
from ppgen.pair import unadapted

__all__ = ["SemiSupervised", "class_logits", "semi_supervised"]


class SemiSupervised(nn.Module):
    r"""An objective plus the classification loss of the rows that have a label.

    .. math::
        \mathcal{J}^\alpha = \frac{1}{N} \Bigl(\sum_{n} \mathcal{J}(x_n, y_n)
            + \alpha \sum_{n:\, y_n \ge 0} -\log q(y_n \mid x_n)\Bigr)

    The bound of a labelled row does not contain q(y | x), so without this term the classifier would learn from
    unlabelled rows alone. q(y | x) is the guide's site ``y`` when all labels are withheld (−1).

    The paper has :math:`\alpha = 0.1 \, N / N_{\text{labelled}}`, with both numbers counted as batches hold them: where
    labelled rows are repeated so that they make up a share r of the batches, α = 0.1 / r.

    References:
        Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling, 2014),
        https://arxiv.org/abs/1406.5298

    Args:
        alpha: the weight of the classification loss of a labelled row, against the objective of one row.
        loss: the objective 𝒥 of all rows; the ELBO by default.

    Raises:
        ValueError: a negative alpha; when called, a pair whose guide has no site ``y`` to draw.

    Example:
        >>> loss = semi_supervised(alpha=0.1 * 1297 / 100)
    """

    def __init__(self, alpha: float, loss: Any = None) -> None:
        super().__init__()
        self.alpha = finite_number("alpha", alpha, least=0)
        self.loss = as_loss(elbo() if loss is None else loss)

    def extra_repr(self) -> str:
        """The settings, for people."""
        return f"alpha={self.alpha:g}"

    def forward(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """The loss of one batch, whose last member holds the labels, a scalar in nats per datum."""
        if len(batch) < 2:
            raise ValueError(
                f"semi_supervised needs data with labels, batches (x, y), and was given {len(batch)} members: give y "
                "as the last one, −1 where a label is missing."
            )
        y = batch[-1]
        log_q = class_logits(guide, batch).log_softmax(-1)
        of_label = log_q.gather(-1, y.long().clamp(0, log_q.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
        return self.loss(model, guide, *batch) - self.alpha * torch.where(y >= 0, of_label, 0.0).sum() / len(y)


semi_supervised = SemiSupervised


class _Reached(Exception):
    """The guide came to the class: what it draws after it is not needed."""


class _Class(poutine.messenger.Messenger):
    """Takes the distribution of the latent ``y``, and stops the program there."""

    distribution: Any = None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "y" and not msg["is_observed"]:
            self.distribution = unadapted(msg["fn"])
            raise _Reached


def class_logits(guide: Program, batch: Sequence[Any]) -> Tensor:
    """The logits of q(y | x): of the guide's site ``y`` when all labels are withheld."""
    *given, y = batch
    found = _Class()
    with suppress(_Reached), found:
        guide(*given, torch.full_like(y, -1, dtype=torch.long))
    logits = getattr(found.distribution, "logits", None)
    if logits is None or logits.dim() < 2 or isinstance(found.distribution, torch.distributions.Bernoulli):
        raise ValueError(
            "The guide draws no class at a site 'y' when labels are missing, so there is no q(y | x): give it a batch "
            "whose last member holds the labels, −1 where one is missing, and sample 'y' from a categorical "
            "distribution (of two classes, too), as models.SemiSupervisedVAE does."
        )
    return logits
