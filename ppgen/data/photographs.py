"""Patches of two photographs in colour, which come with scikit-learn."""

from pathlib import Path

import numpy as np

from ppgen.data.source import SPLIT_SEED, Source, permutation

SIDE = 32
# Columns of the photographs, 320 at half their size, that patches are cut from: no pixel is in two parts.
PARTS = {"train": [(0, 80), (120, 200), (240, 320)], "validation": [(80, 120)], "test": [(200, 240)]}
STEP = 2  # pixels between a patch and the next, in rows and columns


def patches() -> Source:
    """Patches of both photographs at half their size; the label says of which."""
    from sklearn.datasets import load_sample_images  # slow to import, and no other data set needs it

    content = load_sample_images()
    halves = [halved(photograph) for photograph in content.images]
    images, labels, sizes = [], [], []
    for strips in PARTS.values():
        found = [(cut(half[:, a:b]), label) for label, half in enumerate(halves) for a, b in strips]
        order = permutation(sum(len(each) for each, _ in found))
        images.append(np.concatenate([each for each, _ in found])[order])
        labels.append(np.concatenate([np.full(len(each), label) for each, label in found])[order])
        sizes.append(len(order))
    return Source(
        data=np.concatenate(images),
        sizes=(sizes[0], sizes[1], sizes[2]),
        num_levels=256,
        split=f"by columns of the photographs, each part after a shuffle with seed {SPLIT_SEED}",
        labels=np.concatenate(labels).astype(np.int64),
        class_names=tuple(Path(name).stem for name in content.filenames),
    )


def halved(photograph: np.ndarray) -> np.ndarray:
    """A photograph (H, W, C) of half the height and width: means of four pixels, rounded."""
    height, width = (side // 2 for side in photograph.shape[:2])
    blocks = photograph[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
    return (blocks.mean((1, 3)) + 0.5).astype(np.uint8)


def cut(photograph: np.ndarray) -> np.ndarray:
    """All patches of a photograph (H, W, C) that begin at every STEP-th row and column: (N, C, SIDE, SIDE)."""
    windows = np.lib.stride_tricks.sliding_window_view(photograph, (SIDE, SIDE), axis=(0, 1))[::STEP, ::STEP]
    return windows.reshape(-1, *windows.shape[2:])
