"""What every reader returns: all data in one array, training data first, checked and laid out."""

from dataclasses import dataclass

import numpy as np

SPLIT_SEED = 0  # of every split that is not published with the data


@dataclass(frozen=True, eq=False)
class Source:
    """Data as they were read, before any binarization.

    Args:
        data: bytes (levels), or float32 (binary or real), in natural shape, training data first and test data
            last.
        sizes: the numbers of training, validation and test data.
        num_levels: 2 for binary data, the number of grey levels for levels 0, 1, …, None for real values.
        split: in words, how the data were split.
        labels: the classes of the data as int64, if they are known.
        class_names: the names of the classes 0, 1, …, if they are known.

    Shape:
        - data: (N, C, H, W) or (N, D)
        - labels: (N,), or (N, F) where a datum has several
    """

    data: np.ndarray
    sizes: tuple[int, int, int]
    num_levels: int | None
    split: str
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()

    def parts(self, array: np.ndarray) -> list[np.ndarray]:
        """The training, validation and test part of an array over all data."""
        return np.split(array, np.cumsum(self.sizes)[:-1])


def permutation(size: int, seed: int = SPLIT_SEED) -> np.ndarray:
    """A seeded order of data, the same in every version of NumPy."""
    return np.random.RandomState(seed).permutation(size)


def as_data(name: str, array: np.ndarray) -> tuple[np.ndarray, int | None]:
    """Data in natural shape, and their number of levels: 2 (binary), 256 (8-bit levels) or None (real).

    Values that are all 0 or 1 are binary; other integers are levels if they lie in 0, …, 255, and real
    otherwise; other floats are real.

    Shape:
        - array: (N, D), or images (N, H, W), (N, C, H, W) or (N, H, W, C) with at most four channels
        - output: (N, D) or (N, C, H, W)
    """
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} are numbers, got an array of type {array.dtype}.")
    if array.ndim not in (2, 3, 4):
        raise ValueError(
            f"{name} have the shape (N, D), (N, H, W) or (N, C, H, W), got {array.shape}: reshape the array "
            "so that its first axis counts the data."
        )
    if array.size == 0:
        raise ValueError(f"{name} are empty: got an array of shape {array.shape}, expected at least one value.")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] > 4 and array.shape[3] <= 4:
        array = np.moveaxis(array, 3, 1)
    if array.dtype.kind != "f" and array.min() >= 0 and 1 < array.max() <= 255:
        return array.astype(np.uint8), 256
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    broken = np.argwhere(~np.isfinite(values))
    if len(broken):
        where = tuple(int(i) for i in broken[0])
        raise ValueError(
            f"{name} are finite, got {len(broken):,} of {values.size:,} values that are NaN, infinite or "
            f"too large for single precision, the first at {where}: remove these data or fill in their "
            "values."
        )
    return values, 2 if ((values == 0) | (values == 1)).all() else None


def as_labels(name: str, array: np.ndarray, num_data: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as classes 0, 1, … and the names of the classes, which integers do not have."""
    if array.shape != (num_data,) or array.dtype.kind not in "uiU" or (array.dtype.kind == "i" and array.min() < 0):
        raise ValueError(
            f"{name} are non-negative integers or names, one for each of the {num_data:,} data, got an "
            f"array of type {array.dtype} and shape {array.shape}."
        )
    if array.dtype.kind == "U":
        names, classes = np.unique(array, return_inverse=True)
        return classes.astype(np.int64), tuple(str(each) for each in names)
    if array.max() > np.iinfo(np.int64).max:
        raise ValueError(
            f"{name} are integers below 2**63, got {array.max()}: number the classes 0, 1, …, or give their names."
        )
    return array.astype(np.int64), ()
