r"""What a pair says of the classes of new data."""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.inference.evaluation.likelihood import log_likelihood
from ppgen.inference.execution.batches import checked_rows
from ppgen.inference.losses.semisupervised import class_logits
from ppgen.inference.predictions.predict import Mean
from ppgen.inference.programs.modes import evaluating
from ppgen.inference.programs.refusals import check_pair
from ppgen.inference.programs.traces import device_batch
from ppgen.numbers import positive_integer
from ppgen.pair import Pair

__all__ = ["classify"]


def classify(pair: Pair, x: Tensor, *, num_samples: int | None = None, batch_size: int = 1000, seed: int = 0) -> Tensor:
    r"""The probabilities of the classes of new data under a semi-supervised pair.

    They are the classifier's, q(y | x), or with ``num_samples`` the model's own, by importance sampling:

    .. math:: p(y \mid x) = \frac{p(x, y)}{\sum_{y'} p(x, y')}

    Latents that the guide draws before y (M1+M2's) are set to their means for q(y | x).

    Args:
        pair: whose batch is ``(x, y)`` and whose guide draws the class at the site ``y`` where a label is −1.
        x: the data, N rows.
        num_samples: draws per datum and class of an estimate of p(y | x); q(y | x) if not given.
        batch_size: how many rows are classified at once.
        seed: of the noise.

    Shape:
        (N, C), on the CPU.

    Raises:
        ValueError: data that is empty or not finite, a bad number, or a guide without a site ``y``.

    Example:
        >>> from ppgen import decoders, models, nn, posteriors, priors
        >>> ssvae = models.SemiSupervisedVAE(
        ...     priors.StandardNormal(2),
        ...     decoders.Bernoulli(nn.MLP(2 + 10, 64)),
        ...     posteriors.DiagNormal(nn.MLP(64 + 10, 4)),
        ...     classifier=nn.MLP(64, 10),
        ...     num_classes=10,
        ... )
        >>> classify(ssvae, torch.zeros(5, 64)).shape
        torch.Size([5, 10])
    """
    check_pair(pair)
    rows = checked_rows(x)
    found = []
    with evaluating(pair, seed, "classify"):
        for (block,) in rows.batches(positive_integer("batch_size", batch_size)):
            batch = device_batch(pair, (block, torch.zeros(len(block), dtype=torch.long)))
            found.append(class_logits(Mean()(pair.guide), batch).cpu())
    logits = torch.cat(found)
    if num_samples is not None:
        labels = torch.arange(logits.shape[-1]).unsqueeze(-1).expand(-1, len(rows))
        joint = [log_likelihood(pair, x, y, num_samples=num_samples, seed=seed).values for y in labels]
        logits = torch.stack(joint, -1)
    return logits.softmax(-1)
