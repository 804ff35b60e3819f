"""A user's own arrays as data: splits, shapes, kinds of values, labels, and files that are refused."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ppgen.data import files, load


def save_images(folder, images, names):
    """Images (N, H, W) or (N, H, W, 3) as files."""
    for image, name in zip(images, names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)


def everything(dataset) -> torch.Tensor:
    return torch.cat([dataset.train[:], dataset.validation, dataset.test])


def rows(tensor: torch.Tensor) -> list[tuple]:
    """The data in an order that does not depend on the split."""
    return sorted(tuple(row.tolist()) for row in tensor.flatten(1))


@pytest.fixture
def real():
    return np.random.default_rng(0).normal(size=(50, 3))


SAVE = {
    "npy": lambda path, array: np.save(path, array),
    "npz": lambda path, array: np.savez_compressed(path, any_name=array),
    "pt": lambda path, array: torch.save(torch.tensor(array), path),
}


@pytest.mark.parametrize("suffix", SAVE)
def test_file_of_one_array_is_split_by_a_seed(tmp_path, suffix, real):
    path = tmp_path / f"data.{suffix}"
    SAVE[suffix](path, real)
    data = load(path)
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 5, 5)
    assert "seed 0" in data.split and data.name == str(path)
    assert (data.kind, data.binarization, data.train_labels) == ("real", "none", None)
    assert rows(everything(data)) == rows(torch.tensor(real, dtype=torch.float32))
    assert torch.equal(everything(load(str(path))), everything(data))
    assert not torch.equal(everything(data), torch.tensor(real, dtype=torch.float32))


@pytest.mark.parametrize(
    ("shape", "expected", "image_shape"),
    [
        ((6, 4), (4,), None),
        ((6, 5, 4), (1, 5, 4), (1, 5, 4)),
        ((6, 3, 5, 4), (3, 5, 4), (3, 5, 4)),
        ((6, 5, 7, 3), (3, 5, 7), (3, 5, 7)),
        ((6, 5, 7, 1), (1, 5, 7), (1, 5, 7)),
        ((6, 8, 7, 9), (8, 7, 9), (8, 7, 9)),
    ],
)
def test_shapes_become_natural(tmp_path, shape, expected, image_shape):
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "x.npy", array)
    data = load(tmp_path / "x.npy")
    assert (data.event_shape, data.image_shape) == (expected, image_shape)
    moved = np.moveaxis(array, 3, 1) if len(shape) == 4 and shape[1:] != expected else array
    assert rows(everything(data)) == rows(torch.tensor(moved))


@pytest.mark.parametrize(
    ("array", "kind", "num_levels", "dtype"),
    [
        (np.eye(5, dtype=bool), "binary", 2, torch.float32),
        (np.eye(5, dtype=np.uint8), "binary", 2, torch.float32),
        (np.eye(5), "binary", 2, torch.float32),
        (np.eye(5, dtype=">f8"), "binary", 2, torch.float32),
        (np.arange(25, dtype=np.uint8).reshape(5, 5), "levels", 256, torch.uint8),
        (np.arange(25, dtype=">i8").reshape(5, 5), "levels", 256, torch.uint8),
        (np.arange(25).reshape(5, 5) - 1, "real", None, torch.float32),
        (np.arange(25).reshape(5, 5) + 232, "real", None, torch.float32),
        (np.eye(5) / 2, "real", None, torch.float32),
    ],
)
def test_kind_of_values(tmp_path, array, kind, num_levels, dtype):
    np.save(tmp_path / "x.npy", array)
    data = load(tmp_path / "x.npy")
    assert (data.kind, data.num_levels) == (kind, num_levels)
    assert {part.dtype for part in (data.train, data.validation, data.test)} == {dtype}
    assert rows(everything(data)) == rows(torch.tensor(array.astype(np.float64)))


def test_few_levels_are_binarized_right_as_real_values_and_otherwise_with_a_warning(tmp_path, caplog):
    levels = np.random.RandomState(0).randint(0, 17, (400, 8)).astype(np.uint8)
    levels[0, 0] = 16
    for name, array in (("few", levels), ("real", levels / 16), ("all", levels * 15)):
        np.save(tmp_path / f"{name}.npy", array)
    train = {name: load(tmp_path / f"{name}.npy", binarize="dynamic").train for name in ("few", "real", "all")}
    assert train["few"].probs.max() == np.float32(16) / np.float32(255) and train["real"].probs.max() == 1
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "few.npy is 16" in said[0] and "above 0.06: if 16 is white, save them divided" in said[0]


def test_given_splits_and_labels_are_kept(tmp_path):
    x = np.arange(20.0).reshape(10, 2)
    y = np.arange(10)
    splits = {"x_train": x[:6], "y_train": y[:6], "x_val": x[6:7], "y_val": y[6:7]}
    np.savez(tmp_path / "x.npz", x_test=x[7:], y_test=y[7:], **splits)
    data = load(tmp_path / "x.npz")
    assert torch.equal(everything(data), torch.tensor(x, dtype=torch.float32))
    assert data.split == "as given"
    for labels, expected in [
        (data.train_labels, y[:6]),
        (data.validation_labels, y[6:7]),
        (data.test_labels, y[7:]),
    ]:
        assert labels.tolist() == expected.tolist() and labels.dtype == torch.int64


def test_missing_validation_is_a_tenth_of_train(tmp_path):
    x = np.arange(60.0).reshape(30, 2)
    torch.save({"train": torch.tensor(x[:20]), "test": torch.tensor(x[20:])}, tmp_path / "x.pt")
    data = load(tmp_path / "x.pt")
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 10)
    assert torch.equal(data.test, torch.tensor(x[20:], dtype=torch.float32))
    assert rows(everything(data)) == rows(torch.tensor(x))
    assert "tenth of train" in data.split and "seed 0" in data.split


def test_splits_are_of_one_kind_together(tmp_path):
    levels = np.arange(40, dtype=np.uint8).reshape(10, 4)
    np.savez(tmp_path / "x.npz", train=levels, test=np.zeros((3, 4), np.uint8))
    assert load(tmp_path / "x.npz").test.dtype == torch.uint8
    np.savez(tmp_path / "x.npz", train=levels % 2, test=np.zeros((3, 4)))
    assert load(tmp_path / "x.npz", binarize="none").kind == "binary"  # on one scale, whatever the type


@pytest.mark.parametrize("pair", [True, False])
def test_labels_follow_their_data(tmp_path, pair):
    x, y = torch.arange(40).reshape(20, 2) * 1.0, torch.arange(20)
    torch.save((x, y) if pair else {"images": x, "targets": y, "epoch": torch.tensor(3)}, tmp_path / "x.pt")
    data = load(tmp_path / "x.pt")
    labels = torch.cat([data.train_labels, data.validation_labels, data.test_labels])
    assert torch.equal(everything(data)[:, 0], 2.0 * labels)
    assert sorted(labels.tolist()) == list(range(20))


def test_names_as_labels(tmp_path):
    names = np.array(["cat", "ant", "cat", "bee", "ant"])
    np.savez(tmp_path / "x.npz", data=np.arange(5.0)[:, None], labels=names)
    data = load(tmp_path / "x.npz")
    assert data.class_names == ("ant", "bee", "cat")
    labels = torch.cat([data.train_labels, data.validation_labels, data.test_labels])
    for value, label in zip(everything(data)[:, 0].int().tolist(), labels.tolist(), strict=True):
        assert data.class_names[label] == names[value]


def broken(value):
    array = np.zeros((5, 4))
    array[3, 1] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "facts"),
    [
        ({"data": broken(np.nan)}, ["finite", "1 of 20", "(3, 1)"]),
        ({"data": broken(-np.inf)}, ["finite", "1 of 20", "(3, 1)"]),
        ({"data": broken(1e300)}, ["finite", "single precision", "(3, 1)"]),
        ({"data": np.zeros((0, 4))}, ["has data", "(0, 4)"]),
        ({"data": np.zeros((4, 0))}, ["empty", "(4, 0)"]),
        ({"data": np.zeros(4)}, ["(N, D)", "(4,)", "reshape"]),
        ({"data": np.float64(1)}, ["()"]),
        ({"data": np.zeros((3, 1, 2, 2, 2))}, ["(N, C, H, W)", "(3, 1, 2, 2, 2)"]),
        ({"data": np.zeros((3, 2), complex)}, ["complex128", "numbers"]),
        ({"data": np.array([["a"], ["b"]])}, ["<U1", "numbers"]),
        ({"data": np.zeros((2, 2))}, ["2 data", "at least 3"]),
        ({}, ["nothing", "expected one array"]),
        ({"one": np.zeros((5, 2)), "two": np.zeros((5, 2))}, ["one, two", "train and test"]),
        ({"x": np.zeros((5, 2)), "X": np.ones((5, 2))}, ["x and X", "both mean data", "leave out"]),
        (
            {"train": np.zeros((5, 2)), "x_train": np.ones((5, 2)), "test": np.zeros((5, 2))},
            ["train and x_train", "both mean train"],
        ),
        (
            {"data": np.zeros((50, 2)), "train": np.ones((40, 2)), "test": np.ones((10, 2))},
            ["data, train, test", "train and test"],
        ),
        ({"train": np.zeros((5, 2)), "val": np.zeros((5, 2))}, ["train, val", "train and test"]),
        ({"train": np.zeros((1, 2)), "test": np.zeros((5, 2))}, ["1 data", "at least 2"]),
        ({"train": np.zeros((5, 2)), "test": np.zeros((5, 3))}, ["one shape", "(5, 2)", "(5, 3)"]),
        ({"train": np.zeros((5, 2)), "test": np.zeros((0, 2))}, ["has data", "(0, 2)"]),
        ({"data": np.zeros((5, 2)), "labels": np.zeros(4, int)}, ["labels", "(4,)", "(5,)"]),
        ({"data": np.zeros((5, 2)), "labels": np.full(5, -1)}, ["labels", "non-negative"]),
        ({"data": np.zeros((5, 2)), "labels": np.full(5, 0.5)}, ["labels", "integers", "float64"]),
        (
            {"train": np.zeros((5, 2)), "test": np.zeros((5, 2)), "y_test": np.zeros(5, int)},
            ["test_labels", "train_labels", "all splits or for none"],
        ),
        (
            {"train": np.arange(256, dtype=np.uint8).reshape(64, 4), "test": np.linspace(0, 1, 20).reshape(5, 4)},
            ["train of uint8 from 0 to 255", "test of float64 from 0 to 1", "one scale"],
        ),
        (
            {"train": np.eye(5, dtype=bool), "test": np.eye(5) / 2},
            ["train of bool from 0 to 1", "test of float64 from 0 to 0.5", "one type"],
        ),
        (
            {
                **dict.fromkeys(["train", "test"], np.zeros((5, 2))),
                "y_train": np.arange(5),
                "y_test": np.array([*"abcde"]),
            },
            ["train_labels of type int64", "test_labels of type <U1", "names in all splits, or integers in all"],
        ),
        (
            {"data": np.zeros((5, 2)), "labels": np.full(5, 2**63, np.uint64)},
            ["labels", "below 2**63", "got 9223372036854775808", "number the classes"],
        ),
    ],
)
def test_bad_arrays_are_errors(tmp_path, arrays, facts):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError) as error:
        load(path)
    assert [fact for fact in [str(path), *facts] if fact not in str(error.value)] == []
    assert "\n" not in str(error.value)


class Planted:
    def __reduce__(self):
        return (open, ("planted", "w"))


@pytest.mark.parametrize("suffix", ["npz", "npy", "pt"])
def test_nothing_is_unpickled(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"x.{suffix}"
    content = np.array([Planted()], dtype=object)
    if suffix == "npz":
        np.savez(path, content)
    elif suffix == "npy":
        np.save(path, content)
    else:
        path.write_bytes(pickle.dumps(Planted(), 2))
    with pytest.raises(ValueError, match="refused"):
        load(path)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("suffix", ["npz", "npy", "pt"])
def test_damaged_files_are_errors(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"no data at all")
    with pytest.raises(ValueError, match="cannot be read") as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_pt_of_other_objects_is_an_error(tmp_path):
    torch.save({"data": [1, 2, 3]}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="expected a tensor"):
        load(tmp_path / "x.pt")


def test_file_of_another_type_is_an_error(tmp_path):
    (tmp_path / "x.csv").touch()
    with pytest.raises(ValueError, match=r"\.npz, \.npy or \.pt"):
        load(tmp_path / "x.csv")


def test_folder_of_grey_images(tmp_path):
    images = np.random.default_rng(4).integers(0, 256, (6, 5, 7), dtype=np.uint8)
    save_images(tmp_path, images, [f"{i}.png" for i in range(6)])
    save_images(tmp_path, images[:1], [".hidden.png"])
    (tmp_path / "README.txt").write_text("not an image")
    data = load(tmp_path)
    assert (data.image_shape, data.kind, data.train_labels) == ((1, 5, 7), "levels", None)
    assert rows(everything(data)) == rows(torch.tensor(images))


def test_folder_of_color_images_with_grey_ones_between(tmp_path):
    images = np.random.default_rng(5).integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)
    images[0] = images[0, ..., :1]
    save_images(tmp_path, images, [f"{i}.bmp" for i in range(6)])
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "0.bmp")
    data = load(tmp_path)
    assert data.image_shape == (3, 5, 7)
    assert rows(everything(data)) == rows(torch.tensor(images).movedim(3, 1))


def test_subfolders_are_labels(tmp_path):
    images = np.arange(6, dtype=np.uint8)[:, None, None] * np.full((1, 2, 2), 40, np.uint8)
    save_images(tmp_path, images, [f"{'odd' if i % 2 else 'even'}/{i}.png" for i in range(6)])
    data = load(tmp_path)
    assert data.class_names == ("even", "odd")
    labels = torch.cat([data.train_labels, data.validation_labels, data.test_labels])
    assert torch.equal(everything(data)[:, 0, 0, 0] // 40 % 2, labels)


def test_subfolders_train_and_test_are_splits(tmp_path):
    images = np.arange(6, dtype=np.uint8)[:, None, None] * np.full((1, 2, 2), 40, np.uint8)
    names = ["train/a/0.png", "train/b/1.png", "val/a/2.png", "val/b/3.png", "test/a/4.png", "test/b/5.png"]
    save_images(tmp_path, images, names)
    data = load(tmp_path)
    assert data.split == "as given" and data.class_names == ("a", "b")
    assert [part[:, 0, 0, 0].tolist() for part in (data.train, data.validation, data.test)] == [
        [0, 40], [80, 120], [160, 200],
    ]  # fmt: skip
    assert data.validation_labels.tolist() == [0, 1]


def test_rotated_photo_is_upright(tmp_path):
    image = Image.fromarray(np.array([[0, 100, 200]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    for i in range(3):
        image.save(tmp_path / f"{i}.png", exif=exif)
    assert load(tmp_path).test[0, 0].tolist() == [[0], [100], [200]]


def test_folders_that_cannot_be_used(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"has no images.*\.png"):
        load(tmp_path)

    sizes = [np.zeros((4, 5), np.uint8), np.zeros((4, 6), np.uint8)]
    save_images(tmp_path / "sizes", sizes, ["a.png", "b.png"])
    with pytest.raises(ValueError, match=r"5 × 4.*6 × 4") as error:
        load(tmp_path / "sizes")
    assert "a.png" in str(error.value) and "b.png" in str(error.value)

    save_images(tmp_path / "deep", [np.zeros((4, 5), np.uint16)], ["a.png"])
    with pytest.raises(ValueError, match="8 bits"):
        load(tmp_path / "deep")

    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(ValueError, match=r"a\.png cannot be used"):
        load(tmp_path / "damaged")

    save_images(tmp_path / "large", [np.zeros((40, 50), np.uint8)] * 3, ["a.png", "b.png", "c.png"])
    monkeypatch.setattr(files, "MAX_PIXELS", 1999)
    with pytest.raises(ValueError, match="1,999 pixels"):
        load(tmp_path / "large")
    monkeypatch.setattr(files, "MAX_PIXELS", 2000)
    assert load(tmp_path / "large").image_shape == (1, 40, 50)
    monkeypatch.setattr(files, "MAX_FOLDER_BYTES", 17_999)
    with pytest.raises(ValueError, match="17,999 bytes"):
        load(tmp_path / "large")
