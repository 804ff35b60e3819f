"""A user's own data: an .npz, .npy or .pt file, or a folder of images."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppgen.data.source import SPLIT_SEED, Source, as_data, as_labels, permutation
from ppgen.errors import first_line

SPLITS = ("train", "validation", "test")
# What people call the arrays of one file, or the subfolders of one folder, and what that means here.
ALIASES = {
    "data": ("data", "images", "x", "X"),
    "labels": ("labels", "targets", "y"),
    "train": ("train", "x_train", "X_train", "train_images"),
    "validation": ("validation", "valid", "val", "x_val", "X_val", "val_images"),
    "test": ("test", "x_test", "X_test", "test_images"),
    "train_labels": ("train_labels", "y_train"),
    "validation_labels": ("validation_labels", "valid_labels", "val_labels", "y_val"),
    "test_labels": ("test_labels", "y_test"),
}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp", ".tif", ".tiff")
# Whatever the suffix says: some of the others are programs (PostScript).
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF")
MAX_BYTES = 2**34  # of the arrays of one file, unpacked: a few bytes of an archive can stand for all memory
MAX_PIXELS = 2**24  # of one image
MAX_FOLDER_BYTES = 2**32  # of all images of a folder, decoded


def read_path(path: Path) -> Source:
    """The data at a path, split as the file says or, where it does not, by a seeded shuffle."""
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path} cannot be read: this user has no permission to.")
    if path.is_dir():
        return _split(path, _read_folder(path))
    readers = {".npz": _read_npz, ".npy": _read_npy, ".pt": _read_pt}
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"{path} is neither a folder of images nor a file that ends in .npz, .npy or .pt: save the data "
            "as an array with numpy.save, or as a tensor with torch.save."
        )
    if not path.is_file():
        raise ValueError(f"{path} is no ordinary file (a pipe or a device), so it is not read.")
    try:
        arrays = readers[path.suffix.lower()](path)
    except Exception as error:  # the readers of damaged files raise all kinds
        raise ValueError(
            f"{path} cannot be read as a {path.suffix} file of plain arrays or tensors; files that hold "
            f"other Python objects are refused, since reading them runs code. ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error
    return _split(path, arrays)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    _check_archive(path)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_npy(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as stream:  # np.load would also take an archive of this name
        return {"data": np.lib.format.read_array(stream, allow_pickle=False)}


def _read_pt(path: Path) -> dict[str, np.ndarray]:
    if zipfile.is_zipfile(path):
        _check_archive(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Tensor):
        content = {"data": content}
    elif isinstance(content, tuple | list) and len(content) == 2:
        content = {"data": content[0], "labels": content[1]}
    if not isinstance(content, Mapping) or not all(isinstance(each, Tensor) for each in content.values()):
        raise TypeError(
            f"expected a tensor, a pair (data, labels) of tensors or a dict of tensors, got a {type(content).__name__}"
        )
    _check_size(sum(t.numel() * t.element_size() for t in content.values()))  # a view may repeat what is stored once
    return {str(name): _to_array(tensor) for name, tensor in content.items()}


def _check_archive(path: Path) -> None:
    """Refuses an archive by what it says that it unpacks to, which is as far as it is read."""
    with zipfile.ZipFile(path) as archive:
        _check_size(sum(member.file_size for member in archive.infolist()))


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise ValueError(f"its arrays take {num_bytes:,} bytes, and at most {MAX_BYTES:,} are read: split them")


def _to_array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().to_dense()
    # NumPy lacks torch's shorter floats.
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Images of a folder or of its subfolders train, validation and test, by the folders below them."""
    children = {name: folder / name for split in SPLITS for name in ALIASES[split] if (folder / name).is_dir()}
    subfolders = children if len(children) > 1 else {"data": folder}
    found = {name: _image_paths(each) for name, each in subfolders.items()}
    images = _decode([path for paths in found.values() for path in paths])
    arrays = {}
    for name, paths in found.items():
        arrays[name], images = images[: len(paths)], images[len(paths) :]
        labels = [path.parent.relative_to(subfolders[name]).as_posix() for path in paths]
        if "." not in labels:
            arrays["labels" if name == "data" else f"{_meaning(name)}_labels"] = np.array(labels)
    return arrays


def _image_paths(folder: Path) -> list[Path]:
    """The images below a folder in the order of their paths, hidden ones left out."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise ValueError(f"The folder {folder} has no images: expected files that end in {', '.join(IMAGE_SUFFIXES)}.")
    return found


def _decode(paths: list[Path]) -> np.ndarray:
    """Images of one size as levels (N, C, H, W): one channel if all of them are grey, three otherwise."""
    from PIL import Image, ImageOps  # only folders of images need it

    images = []
    for path in paths:
        try:
            # Reads the header; the pixels come with exif_transpose.
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                pixels = image.width * image.height
                if pixels > MAX_PIXELS or 3 * pixels * len(paths) > MAX_FOLDER_BYTES:
                    raise ValueError(
                        f"{image.width} × {image.height} pixels in each of {len(paths):,} images are too "
                        f"much; at most {MAX_PIXELS:,} pixels an image and {MAX_FOLDER_BYTES:,} bytes in "
                        "all are read: resize them"
                    )
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels are of type {image.mode}: convert it to 8 bits a channel")
                upright = ImageOps.exif_transpose(image)
                images.append(upright.convert("L" if upright.mode in ("1", "L", "LA") else "RGB"))
        except Exception as error:  # the decoders of damaged images raise all kinds
            raise ValueError(f"The image {path} cannot be used: {error}.") from error
        if images[-1].size != images[0].size:
            sizes = [f"{each.width} × {each.height} pixels" for each in (images[0], images[-1])]
            raise ValueError(
                f"Images of one folder have one size, but {paths[0]} has {sizes[0]} and {path} has "
                f"{sizes[1]}: resize or crop them."
            )
    if all(image.mode == "L" for image in images):
        return np.stack([np.asarray(image) for image in images])[:, None]
    return np.stack([np.asarray(image.convert("RGB")) for image in images]).transpose(0, 3, 1, 2)


def _meaning(name: str) -> str | None:
    return next((meaning for meaning, names in ALIASES.items() if name in names), None)


def _split(path: Path, named: Mapping[str, np.ndarray]) -> Source:
    """Training, validation and test data from arrays by their names."""
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    for name, array in named.items():
        if (meaning := _meaning(name)) in arrays:
            raise ValueError(
                f"{path} has {names[meaning]} and {name}, which both mean {meaning}: leave out one of the two."
            )
        if meaning is not None:
            arrays[meaning], names[meaning] = array, name
    if len(named) == 1:
        arrays = {"data": next(iter(named.values()))}
    present = [split for split in ("data", *SPLITS) if split in arrays]
    if present not in (["data"], ["train", "test"], [*SPLITS]):
        raise ValueError(
            f"{path} has {', '.join(named) or 'nothing'}; expected one array, or data and labels, or train "
            "and test and, if there are any, validation, train_labels, validation_labels and test_labels."
        )
    for split in present:
        shape, first = arrays[split].shape, arrays[present[0]].shape
        if shape[1:] != first[1:] or shape[:1] in ((), (0,)):
            raise ValueError(
                f"Every split of {path} has data, of one shape in all splits; got {present[0]} of shape "
                f"{first} and {split} of shape {shape}."
            )
    # All splits as one array: whether they are binary, levels or real, they are together.
    data, num_levels = as_data(f"The data in {path}", np.concatenate([arrays[split] for split in present]))
    if num_levels != 2:
        _check_one_scale(path, {split: arrays[split] for split in present})
    labels, class_names = _labels(path, arrays, present, len(data))
    sizes, split, order = _sizes_and_order(path, [len(arrays[split]) for split in present])
    labels = None if labels is None else labels[order]
    return Source(data[order], sizes, num_levels, split, labels, class_names)


def _check_one_scale(path: Path, splits: Mapping[str, np.ndarray]) -> None:
    """Refuses whole numbers in one split and floats in another: 0, …, 255 beside the same images in [0, 1], say."""
    if len({array.dtype.kind == "f" for array in splits.values()}) > 1:
        found = [f"{name} of {array.dtype} from {array.min():g} to {array.max():g}" for name, array in splits.items()]
        raise ValueError(
            f"{path} has {', '.join(found)}: splits of whole numbers and of floats may differ in scale, so they are "
            "not joined. Save all of them with one type and on one scale."
        )


def _sizes_and_order(path: Path, counts: list[int]) -> tuple[tuple[int, int, int], str, np.ndarray]:
    """Sizes of the three splits, how they were made, and the order of all data, from what was given."""
    if len(counts) == 3:
        return (counts[0], counts[1], counts[2]), "as given", np.arange(sum(counts))
    # The first gives a tenth to each of those that are missing.
    missing, tenth = 3 - len(counts), max(1, counts[0] // 10)
    num_train = counts[0] - missing * tenth
    if num_train < 1:
        raise ValueError(f"{path} has {counts[0]} data to split, expected at least {missing + 1}.")
    order = np.concatenate([permutation(counts[0]), np.arange(counts[0], sum(counts))])
    shares = "a tenth each for validation and test" if missing == 2 else "a tenth of train for validation"
    num_test = tenth if missing == 2 else counts[1]
    return (num_train, tenth, num_test), f"{shares}, after a shuffle with seed {SPLIT_SEED}", order


def _labels(
    path: Path, arrays: Mapping[str, np.ndarray], present: list[str], num_data: int
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The labels of all data, if they have any."""
    names = ["labels"] if present == ["data"] else [f"{split}_labels" for split in present]
    given = [name for name in names if name in arrays]
    if not given:
        return None, ()
    if given != names:
        raise ValueError(f"{path} has {', '.join(given)}; labels are given for all splits or for none: {names}.")
    for name, split in zip(names, present, strict=True):
        if arrays[name].shape != arrays[split].shape[:1]:
            raise ValueError(
                f"{name} in {path} has the shape {arrays[name].shape}; expected {arrays[split].shape[:1]}, "
                f"one label for each datum of {split}."
            )
    if len({arrays[name].dtype.kind == "U" for name in names}) > 1:
        found = [f"{name} of type {arrays[name].dtype}" for name in names]
        raise ValueError(f"{path} has {', '.join(found)}: give names in all splits, or integers in all.")
    return as_labels(f"The labels in {path}", np.concatenate([arrays[name] for name in names]), num_data)
