"""Shapes on a grid of known factors: every combination of shape, scale, rotation and position, drawn by arithmetic."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

SIDE = 32  # pixels of an image's side

# The inside of each shape in coordinates of its own, +v being up. None looks like itself when it is turned.
OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "half disc": lambda u, v: (u**2 + v**2 < 1) & (v > 0),
    # A square on its corner, with half a disc on each upper side, and without the lowest quarter.
    "heart": lambda u, v: (abs(u) + abs(v) < 1) | ((abs(u) - 0.5) ** 2 + (v - 0.5) ** 2 < 0.5),
    "chevron": lambda u, v: (abs(u) + abs(v) < 1) & (abs(u) + abs(v + 0.5) > 0.5),
}

FACTORS: Mapping[str, tuple[str | float, ...]] = MappingProxyType(
    {
        "shape": tuple(OUTLINES),
        "scale": (6.0, 6.8, 7.6, 8.4, 9.2, 10.0),  # the root of the area, in pixels
        "rotation": tuple(float(angle) for angle in range(-84, 85, 12)),  # degrees, counterclockwise
        "x": tuple(float(column) for column in range(9, 24, 2)),  # of the centroid, in pixels from the left
        "y": tuple(float(row) for row in range(9, 24, 2)),  # of the centroid, in pixels from the top
    }
)


def factorised_shapes() -> tuple[Tensor, Tensor]:
    r"""Binary images of every combination of five factors, and the factors.

    .. math:: 3\ \text{shapes} \times 6\ \text{scales} \times 15\ \text{rotations} \times 8\ \text{columns}
        \times 8\ \text{rows} = 17{,}280\ \text{images}

    Made for measures of disentanglement, in the manner of dSprites: the factors are independent, they alone make the
    image, and no two images are the same. Rotations cover less than a half turn and no shape has a symmetry under
    rotation, so that rotation is one number with two ends, not a circle, and one latent can hold it.

    A pixel is 1 where at least half of its 8 × 8 points are inside the shape. The centroid is the position, and shapes
    of one scale have the same area up to the pixels' size. Rows are in the grid's order, the last factor the fastest:
    the image of the factors f is at ``numpy.ravel_multi_index(f, (3, 6, 15, 8, 8))``. ``ppgen.data.load("shapes")``
    gives the same data, shuffled and split, with the factors as labels. The values behind the indices, by the factor's
    name, are in :data:`FACTORS`.

    References:
        dSprites: Disentanglement testing Sprites dataset (Matthey, Higgins, Hassabis & Lerchner, 2017),
        https://github.com/google-deepmind/dsprites-dataset

    Shape:
        - images: (17280, 1, 32, 32), 0 or 1, float32
        - factors: (17280, 5), int64, the index of the value of shape, scale, rotation, x and y

    Example:
        >>> images, factors = factorised_shapes()
        >>> images.shape, factors[-1].tolist()
        (torch.Size([17280, 1, 32, 32]), [2, 5, 14, 7, 7])
        >>> {name: len(values) for name, values in FACTORS.items()}
        {'shape': 3, 'scale': 6, 'rotation': 15, 'x': 8, 'y': 8}
    """
    scales, angles = (np.array(FACTORS[name], float) for name in ("scale", "rotation"))
    offsets = np.array(FACTORS["x"], int) - SIDE // 2  # the same for y
    canvas = SIDE + 2 * offsets.max()  # with the sprite in its middle: each position is a window on it
    sprites = np.stack([_sprite(outline, scales, np.deg2rad(angles), canvas) for outline in OUTLINES.values()])
    windows = np.lib.stride_tricks.sliding_window_view(sprites, (SIDE, SIDE), axis=(-2, -1))
    start = offsets.max() - offsets  # a window further left shows the sprite further right
    images = windows[..., start[None, :], start[:, None], :, :]  # (shape, scale, rotation, x, y, row, column)
    factors = np.indices(images.shape[:5]).reshape(5, -1).T
    return torch.tensor(images.reshape(-1, 1, SIDE, SIDE), dtype=torch.float32), torch.tensor(factors)


def _sprite(
    outline: Callable[[np.ndarray, np.ndarray], np.ndarray], scales: np.ndarray, angles: np.ndarray, canvas: int
) -> np.ndarray:
    """One shape in every scale and rotation, in the middle of a canvas: booleans (scale, rotation, row, column)."""
    v, u = np.mgrid[-2:2:801j, -2:2:801j]
    inside = outline(u, v)
    area, centre_u, centre_v = 16 * inside.mean(), u[inside].mean(), v[inside].mean()

    points = 8  # a side of a pixel
    grid = (np.arange(canvas * points) + 0.5) / points - canvas / 2
    across, up = grid[None, :], -grid[:, None]  # rows count downwards
    size = (scales / np.sqrt(area))[:, None, None]
    sprites = []
    for angle in angles:
        along_u = (np.cos(angle) * across + np.sin(angle) * up) / size + centre_u
        along_v = (np.cos(angle) * up - np.sin(angle) * across) / size + centre_v
        covered = outline(along_u, along_v).reshape(len(scales), canvas, points, canvas, points).mean((2, 4))
        sprites.append(covered >= 0.5)
    return np.stack(sprites, axis=1)
