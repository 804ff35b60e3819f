"""Real data sets by name or path, as tensors."""

from ppgen.data.binarize import Binarization, DynamicBinarization
from ppgen.data.dataset import Dataset, describe, load
from ppgen.data.shapes import factorised_shapes
from ppgen.data.toys import Modes, grid_modes, ring_modes, stacked

__all__ = [
    "Binarization",
    "Dataset",
    "DynamicBinarization",
    "Modes",
    "describe",
    "factorised_shapes",
    "grid_modes",
    "load",
    "ring_modes",
    "stacked",
]
