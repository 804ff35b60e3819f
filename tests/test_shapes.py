"""The grid of shapes: every combination once, and each image is what its factors say."""

import numpy as np
import torch

from ppgen.data import factorised_shapes, load
from ppgen.data.shapes import FACTORS

SIZES = tuple(len(values) for values in FACTORS.values())
IMAGES, LABELS = factorised_shapes()
GRID = IMAGES.reshape(*SIZES, 32, 32)
ROWS, COLUMNS = (axis + 0.5 for axis in np.mgrid[:32, :32])


def test_every_combination_is_there_once():
    assert IMAGES.shape == (17_280, 1, 32, 32) and IMAGES.dtype == torch.float32
    assert LABELS.shape == (17_280, 5) and LABELS.dtype == torch.int64
    assert set(IMAGES.unique().tolist()) == {0.0, 1.0}
    assert len({image.tobytes() for image in IMAGES.bool().numpy()}) == len(IMAGES)
    assert (np.ravel_multi_index(LABELS.numpy().T, SIZES) == np.arange(len(IMAGES))).all()
    for k, size in enumerate(SIZES):
        assert (LABELS[:, k].bincount() == len(IMAGES) // size).all()


def test_each_image_is_where_and_as_large_as_its_factors_say():
    x, y, scale = (np.array(FACTORS[name])[LABELS[:, k]] for k, name in ((3, "x"), (4, "y"), (1, "scale")))
    images = IMAGES.squeeze(1).numpy()
    area = images.sum((1, 2))
    assert abs(np.sqrt(area) / scale - 1).max() < 0.09
    assert abs((images * COLUMNS).sum((1, 2)) / area - x).max() < 0.5
    assert abs((images * ROWS).sum((1, 2)) / area - y).max() < 0.5


def test_a_position_is_a_shift_that_loses_nothing():
    middle = GRID[:, :, :, 3, 3]
    for i, j in ((0, 0), (7, 7), (2, 6)):
        assert torch.equal(GRID[:, :, :, i, j], middle.roll((2 * (j - 3), 2 * (i - 3)), (-2, -1)))
    edges = torch.cat([GRID[..., 0, :], GRID[..., -1, :], GRID[..., 0], GRID[..., -1]], -1)
    assert edges.sum() == 0


def test_rotation_is_counterclockwise_about_the_upright_shape():
    upright = SIZES[2] // 2
    assert FACTORS["rotation"][upright] == 0
    # All shapes are their own mirror images when upright, so that turning left mirrors turning right.
    mirrored = GRID.flip(-1).flip(2).flip(3)  # columns of pixels, the angle, and the position
    assert (mirrored != GRID).sum((-2, -1)).max() <= 4
    # Half a disc bulges upward, and on its last angle, 84 degrees, to the left.
    picture = GRID[0, 5, -1, 4, 4]
    columns = picture.any(0).nonzero().flatten() + 0.5
    centre = FACTORS["x"][4]
    assert centre - columns.min() > columns.max() - centre
    rows = GRID[0, 5, upright, 4, 4].any(1).nonzero().flatten() + 0.5
    assert centre - rows.min() > rows.max() - centre


def test_load_shuffles_and_splits_the_whole_grid():
    shapes = load("shapes")
    assert shapes.kind == "binary" and shapes.binarization == "none" and shapes.image_shape == (1, 32, 32)
    parts = (shapes.train, shapes.train_labels), (shapes.validation, shapes.validation_labels)
    parts = (*parts, (shapes.test, shapes.test_labels))
    assert [len(x) for x, _ in parts] == [13_824, 1_728, 1_728]
    found = [np.ravel_multi_index(labels.numpy().T, SIZES) for _, labels in parts]
    assert sorted(np.concatenate(found)) == list(range(17_280))
    for (x, _), index in zip(parts, found, strict=True):
        assert torch.equal(x, IMAGES[index])
