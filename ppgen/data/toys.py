"""Mixtures whose every mode is known, on which a model that leaves some out is caught: ring, grid, stacked digits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.data.source import SPLIT_SEED, Source

SIZES = (50_000, 10_000, 10_000)  # training, validation and test data of a mixture that is drawn


class Modes(NamedTuple):
    """The modes of a mixture of Gaussians of equal weights.

    Attributes:
        centres: (M, D).
        scale: the standard deviation of every mode, in every direction.
    """

    centres: Tensor
    scale: float


def ring_modes() -> Modes:
    r"""Eight modes on the unit circle, of standard deviation 0.01.

    References:
        PacGAN: The power of two samples in generative adversarial networks (Lin, Khetan, Fanti & Oh, 2018),
        https://arxiv.org/abs/1712.04086

    Example:
        >>> ring_modes().centres.shape
        torch.Size([8, 2])
    """
    angle = torch.arange(8) * (torch.pi / 4)
    return Modes(torch.stack([angle.cos(), angle.sin()], 1), 0.01)


def grid_modes() -> Modes:
    r"""Twenty-five modes at {−4, −2, 0, 2, 4}², of standard deviation 0.05.

    References:
        PacGAN: The power of two samples in generative adversarial networks (Lin, Khetan, Fanti & Oh, 2018),
        https://arxiv.org/abs/1712.04086

    Example:
        >>> grid_modes().centres.shape
        torch.Size([25, 2])
    """
    side = torch.arange(-4.0, 5.0, 2.0)
    return Modes(torch.cartesian_prod(side, side), 0.05)


def mixture(modes: Modes) -> Source:
    """Draws of a mixture as a data set; the labels are the modes."""
    random = np.random.RandomState(SPLIT_SEED)
    labels = random.randint(len(modes.centres), size=sum(SIZES))
    noise = random.standard_normal((len(labels), modes.centres.shape[1]))
    return Source(
        data=(modes.centres.numpy()[labels] + modes.scale * noise).astype(np.float32),
        sizes=SIZES,
        num_levels=None,
        split=f"drawn with seed {SPLIT_SEED}",
        labels=labels.astype(np.int64),
    )


def stacked(images: Tensor, labels: Tensor, n: int, seed: int = SPLIT_SEED) -> tuple[Tensor, Tensor]:
    r"""Colour images of three random digits, one a channel: a thousand modes, the numbers 0, ..., 999.

    References:
        Unrolled Generative Adversarial Networks (Metz, Poole, Pfau & Sohl-Dickstein, 2016),
        https://arxiv.org/abs/1611.02163

    Args:
        images: digits of one channel.
        labels: their classes, 0, ..., 9.
        n: how many images to make.
        seed: of the draw, with replacement.

    Shape:
        - images: (N, 1, H, W), labels: (N,)
        - result: (n, 3, H, W), of the same type, and their modes (n,): the first channel is the hundreds.

    Raises:
        ValueError: images that are not of one channel, or labels that are not ten classes.

    Example:
        >>> from ppgen.data import load
        >>> digits = load("digits", binarize="none")
        >>> x, mode = stacked(digits.train, digits.train_labels, 100)
        >>> x.shape, int(mode.max()) < 1000
        (torch.Size([100, 3, 8, 8]), True)
    """
    if images.dim() != 4 or images.shape[1] != 1:
        raise ValueError(f"images must be digits of one channel, (N, 1, H, W), got {tuple(images.shape)}.")
    if labels.shape != images.shape[:1] or not bool(((labels >= 0) & (labels < 10)).all()):
        raise ValueError(f"labels must be a class 0, ..., 9 for each of the {len(images):,} images.")
    rows = torch.as_tensor(np.random.RandomState(seed).randint(len(images), size=(n, 3)))
    return images[rows, 0], labels[rows].long() @ torch.tensor([100, 10, 1])


def stacked_source(digits: Source) -> Source:
    """Stacked digits as a data set, each part made of that part of the digits and as large."""
    assert digits.labels is not None
    parts = [
        stacked(torch.as_tensor(images), torch.as_tensor(labels), len(images), seed=SPLIT_SEED + i)
        for i, (images, labels) in enumerate(zip(digits.parts(digits.data), digits.parts(digits.labels), strict=True))
    ]
    return Source(
        data=torch.cat([x for x, _ in parts]).numpy(),
        sizes=digits.sizes,
        num_levels=digits.num_levels,
        split=f"{digits.split}; three digits of one part make an image, drawn with seed {SPLIT_SEED}",
        labels=torch.cat([modes for _, modes in parts]).numpy(),
    )
