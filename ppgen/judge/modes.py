r"""Mode coverage: on data whose every mode is known, which of them a model has found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.judge.classifier import CONFIDENT
from ppgen.judge.measures import as_rows, in_parts
from ppgen.numbers import positive_integer, positive_number

__all__ = ["ModeCoverage", "mode_coverage", "stacked_coverage"]


@dataclass(frozen=True)
class ModeCoverage:
    """Which modes the samples have.

    Attributes:
        found: how many modes have samples.
        num_modes: how many modes the data have.
        high_quality: the share of samples that clearly belong to a mode.
        kl: the divergence of the samples' distribution over the modes from the uniform one, in nats; 0 where all modes
            are equally frequent, log(num_modes) where all samples are of one.
        counts: samples of each mode, (num_modes,).
        num_samples: how many samples.
    """

    found: int
    num_modes: int
    high_quality: float
    kl: float
    counts: Tensor
    num_samples: int

    def __str__(self) -> str:
        return (
            f"{self.found:,} of {self.num_modes:,} modes found, {self.high_quality:.1%} of the samples of high "
            f"quality, KL of the modes from uniform {self.kl:.3f} nats ({self.num_samples:,} samples)"
        )


def _coverage(modes: Tensor, num_modes: int, high_quality: Tensor, at_least: int) -> ModeCoverage:
    counts = torch.bincount(modes, minlength=num_modes)
    probs = counts.double() / max(len(modes), 1)
    kl = math.log(num_modes) - float(torch.special.entr(probs).sum()) if len(modes) else math.nan
    found = int((counts >= positive_integer("at_least", at_least)).sum())
    return ModeCoverage(found, num_modes, float(high_quality.double().mean()), kl, counts, len(high_quality))


def mode_coverage(
    generated: Any, centres: Any, scale: float, *, radius: float = 3.0, at_least: int = 1
) -> ModeCoverage:
    """The modes of a mixture of Gaussians that samples have found, as on the ring of 8 and the grid of 25.

    A sample is of high quality within ``radius`` standard deviations of the nearest mode (of a mixture's own samples in
    the plane, 98.9 % are), and a mode is found if such a sample is nearest to it.

    References:
        VEEGAN: Reducing Mode Collapse in GANs using Implicit Variational Learning (Srivastava et al., 2017),
        https://arxiv.org/abs/1705.07761
        PacGAN: The power of two samples in generative adversarial networks (Lin, Khetan, Fanti & Oh, 2018),
        https://arxiv.org/abs/1712.04086

    Args:
        generated: samples; 2,500 are usual.
        centres: of the modes; ``data.ring_modes()`` and ``data.grid_modes()`` hold them with their scale.
        scale: standard deviation of every mode.
        radius: in standard deviations.
        at_least: samples of high quality that a mode needs to be found.

    Shape:
        generated: (N, D), centres: (M, D).

    Raises:
        ValueError: samples of another dimension than the modes, or not finite, or a scale or radius that is not
            positive.

    Example:
        >>> from ppgen.data import ring_modes
        >>> print(mode_coverage(ring_modes().centres[:6], *ring_modes()))
        6 of 8 modes found, 100.0% of the samples of high quality, KL of the modes from uniform 0.288 nats (6 samples)
    """
    generated, centres = as_rows("generated", generated), as_rows("centres", centres)
    if generated.dim() != 2 or generated.shape[1] != centres.shape[1] or not len(generated):
        raise ValueError(
            f"samples must have shape (N, {centres.shape[1]}), as the modes, got {tuple(generated.shape)}."
        )
    if not bool(generated.isfinite().all()):
        raise ValueError(f"samples must be finite: row {int((~generated.isfinite().all(1)).nonzero()[0])} is not.")
    positive_number("scale", scale)
    positive_number("radius", radius)
    distance, nearest = torch.cdist(generated.cpu().double(), centres.cpu().double()).min(1)
    good = distance <= radius * scale
    return _coverage(nearest[good], len(centres), good, at_least)


def stacked_coverage(classifier: nn.Module, generated: Any, *, at_least: int = 1) -> ModeCoverage:
    """The modes of stacked digits that samples have found: a class for each of the three channels, 1,000 in all.

    All samples count for the mode that the classifier sees in them; of high quality are those in which it is confident
    of all three digits (a probability above 0.9).

    References:
        Unrolled Generative Adversarial Networks (Metz, Poole, Pfau & Sohl-Dickstein, 2016),
        https://arxiv.org/abs/1611.02163
        PacGAN: The power of two samples in generative adversarial networks (Lin, Khetan, Fanti & Oh, 2018),
        https://arxiv.org/abs/1712.04086

    Args:
        classifier: from single digits to the logits of K classes.
        generated: samples; 25,600 are usual.
        at_least: samples that a mode needs to be found.

    Shape:
        generated: (N, C, H, W), C digits, hence K^C modes.

    Raises:
        ValueError: samples that are no images.
    """
    generated = as_rows("generated", generated)
    if generated.dim() != 4 or not len(generated):
        raise ValueError(f"samples must be images (N, C, H, W), a digit a channel, got {tuple(generated.shape)}.")
    num, channels = generated.shape[:2]
    logits = in_parts(classifier, generated.reshape(num * channels, 1, *generated.shape[2:]))
    if logits.dim() != 2 or len(logits) != num * channels:
        raise ValueError(f"classifier must give logits (N, K) of single digits, it gave {tuple(logits.shape)}.")
    probs = logits.softmax(-1)
    confidence, digits = (each.reshape(num, channels) for each in probs.max(-1))
    num_classes = probs.shape[1]
    places = num_classes ** torch.arange(channels - 1, -1, -1)
    return _coverage((digits * places).sum(1), num_classes**channels, (confidence > CONFIDENT).all(1), at_least)
