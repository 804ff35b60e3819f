"""The named sets and their splits, binarisation, and what `load` makes of names, arguments and published files."""

import dataclasses
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torch.nn.functional import avg_pool2d

from ppgen.data import DynamicBinarization, describe, load, sets


def real_files(name: str, file: str) -> Path:
    """The folder with the published files, where the environment names one that has them."""
    folder = Path(os.environ.get("PPGEN_DATA", "")) / name
    if not os.environ.get("PPGEN_DATA") or not (folder / file).is_file():
        pytest.skip(f"PPGEN_DATA names no folder that has {name}/{file}")
    return folder


def draws(dataset) -> list[str]:
    parts = [part.numpy().astype(np.uint8) for part in (dataset.validation, dataset.test)]
    return [hashlib.sha256(part.tobytes()).hexdigest() for part in parts]


def test_nothing_is_read_at_import():
    code = """
import sys
events = []
sys.addaudithook(lambda event, arguments: events.append((event, str(arguments[:1]))))
import ppgen.data
data = [name for event, name in events if event == "open" and name.endswith((".gz',)", ".npz',)", ".mat',)"))]
print(len(events) > 0, data, [event for event, _ in events if event == "socket.connect"])
ppgen.data.load("digits")
print(any(event == "open" and "digits" in name for event, name in events))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["True [] []", "True"]


def test_every_named_set_has_one_line():
    images = ["digits", "mnist", "fashion-mnist", "omniglot", "cifar10", "patches", "freyfaces", "shapes"]
    assert list(describe()) == [*images, "ring", "grid", "stacked-mnist"]
    assert all(line and "\n" not in line for line in describe().values())


# -- digits ----------------------------------------------------------------------------------------


def test_digits_are_all_of_scikit_learn():
    from sklearn.datasets import load_digits

    data = load("digits", binarize="none")
    assert (len(data.train), len(data.validation), len(data.test)) == (1297, 200, 300)
    assert (data.kind, data.num_levels, data.image_shape) == ("levels", 17, (1, 8, 8))
    images = torch.cat([data.train[:], data.validation, data.test]).double().numpy()
    labels = torch.cat([data.train_labels, data.validation_labels, data.test_labels]).numpy()
    found = {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}
    content = load_digits()
    expected = {(i.tobytes(), int(label)) for i, label in zip(content.images, content.target, strict=True)}
    assert found == expected and len(found) == 1797


def test_digits_are_binarized_from_their_grey_levels():
    grey, data = load("digits", binarize="none"), load("digits")
    assert (data.kind, data.num_levels, data.binarization) == ("binary", 2, "dynamic")
    assert isinstance(data.train, DynamicBinarization)
    assert torch.equal(data.train.probs, grey.train.float() / 16)
    for drawn, levels in [
        (data.validation, grey.validation),
        (data.test, grey.test),
        (data.train[:], grey.train),
    ]:
        assert set(drawn.unique().tolist()) == {0.0, 1.0} and drawn.dtype == torch.float32
        assert bool((drawn[levels == 0] == 0).all()) and bool((drawn[levels == 16] == 1).all())
        half = drawn[levels == 8]
        assert abs(half.mean() - 0.5) < 4 * 0.5 / len(half) ** 0.5
    assert torch.equal(load("digits").test, data.test)


def test_fixed_binarization_has_the_same_validation_and_test_data():
    fixed, dynamic = load("digits", binarize="fixed"), load("digits", binarize="dynamic")
    assert (fixed.binarization, dynamic.binarization) == ("fixed", "dynamic")
    assert torch.equal(fixed.validation, dynamic.validation) and torch.equal(fixed.test, dynamic.test)
    assert torch.equal(fixed.train, load("digits", binarize="fixed").train)
    assert set(fixed.train.unique().tolist()) == {0.0, 1.0}


def test_loading_draws_nothing_from_the_global_generators():
    torch.manual_seed(3)
    np.random.seed(3)
    load("digits")
    found = torch.rand(()), np.random.random()
    torch.manual_seed(3)
    np.random.seed(3)
    assert found == (torch.rand(()), np.random.random())


# -- dynamic binarization --------------------------------------------------------------------------


def test_dynamic_data_are_drawn_anew_and_reproducibly():
    data = DynamicBinarization(torch.full((1000, 1, 2, 2), 0.3))
    torch.manual_seed(0)
    first, second = data[:], data[:]
    assert not torch.equal(first, second)
    assert abs(first.mean() - 0.3) < 4 * (0.3 * 0.7 / first.numel()) ** 0.5
    torch.manual_seed(0)
    assert torch.equal(data[:], first)


@pytest.mark.parametrize("index", [3, slice(2, 5), [1, 2], torch.tensor([4, 4, 0]), torch.eye(10)[2] > 0])
def test_dynamic_data_are_indexed_as_a_tensor(index):
    probs = torch.eye(10)  # certain draws: an index returns what it returns of the tensor
    data = DynamicBinarization(probs)
    assert torch.equal(data[index], probs[index])
    assert (data.shape, data.ndim, data.dtype, data.device, len(data)) == (
        (10, 10),
        2,
        torch.float32,
        probs.device,
        10,
    )


def test_dynamic_data_go_through_a_data_loader():
    data = DynamicBinarization(torch.eye(10))
    batches = list(torch.utils.data.DataLoader(data, batch_size=4))
    assert torch.equal(torch.cat(batches), torch.eye(10))


def test_dynamic_data_move_to_a_device():
    moved = DynamicBinarization(torch.eye(3)).to("meta")
    assert moved.device.type == "meta" and moved[0].device.type == "meta"


def test_probabilities_are_floats():
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        DynamicBinarization(torch.zeros(3, 2, dtype=torch.uint8))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_probabilities_lie_in_the_unit_interval(value):
    with pytest.raises(ValueError, match=r"probs .* \[0, 1\]"):
        DynamicBinarization(torch.tensor([[0.5, value]]))


# -- binarization of a user's own data -------------------------------------------------------------


def test_own_levels_and_grey_values_can_be_binarized(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (200, 4), dtype=np.uint8)
    np.save(tmp_path / "levels.npy", levels)
    np.save(tmp_path / "grey.npy", levels.astype(np.float32) / np.float32(255))
    for binarize in ("fixed", "dynamic"):
        a, b = (load(tmp_path / f"{name}.npy", binarize=binarize) for name in ("levels", "grey"))
        assert a.kind == b.kind == "binary" and a.binarization == b.binarization == binarize
        assert torch.equal(a.test, b.test) and torch.equal(a.validation, b.validation)
    assert torch.equal(a.train.probs, b.train.probs)


@pytest.mark.parametrize(
    ("array", "facts"),
    [
        (np.linspace(0, 2, 20).reshape(10, 2), ["[0, 1]", "to 2", "divide"]),
        (np.linspace(-1, 1, 20).reshape(10, 2), ["[0, 1]", "from -1"]),
        (np.eye(10), ["binary already", "leave binarize out"]),
    ],
)
def test_data_that_are_not_grey_cannot_be_binarized(tmp_path, array, facts):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError) as error:
        load(tmp_path / "x.npy", binarize="dynamic")
    assert [fact for fact in facts if fact not in str(error.value)] == []


# -- names and arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "meant"), [("MNIST", "mnist"), ("fashion_mnist", "fashion-mnist"), ("cat", None)])
def test_unknown_name_lists_the_known_ones(given, meant):
    with pytest.raises(ValueError) as error:
        load(given)
    assert [name for name in [given, *describe()] if name not in str(error.value)] == []
    assert (f"did you mean {meant!r}" in str(error.value)) == (meant is not None)


@pytest.mark.parametrize("path", ["folder/of/images", "x.npz", Path("mnist")])
def test_path_that_does_not_exist(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no file or folder {path}"):
        load(path)


def test_other_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"none, fixed, dynamic.*'static'"):
        load("digits", binarize="static")
    with pytest.raises(TypeError, match=r"name_or_path.*Tensor"):
        load(torch.zeros(3, 2))


# -- the other named sets, from files of their published format ------------------------------------


def test_changed_draws_are_an_error(monkeypatch):
    known = dataclasses.replace(sets.KNOWN_SETS["digits"], draws=("0" * 64, "0" * 64))
    monkeypatch.setitem(sets.KNOWN_SETS, "digits", known)
    with pytest.raises(RuntimeError, match="not be comparable"):
        load("digits")
    assert load("digits", binarize="none").binarization == "none"


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_idx_sets_are_split_as_published(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    train, test = (random.integers(0, 256, (n, 2, 3), dtype=np.uint8) for n in (60_000, 10_000))
    labels = np.arange(70_000, dtype=np.uint32).astype(np.uint8) % 10
    parts = [train, labels[:60_000], test, labels[60_000:]]
    contents = {
        name: b"\0\0\x08" + bytes([part.ndim]) + np.array(part.shape, ">u4").tobytes() + part.tobytes()
        for name, part in zip(sets.FASHION_CHECKSUMS, parts, strict=True)
    }
    for i, (name, content) in enumerate(contents.items()):
        if i % 2:
            (tmp_path / name).write_bytes(content)  # unpacked files are read as well as packed ones
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    checksums = {name: sha256(content).removeprefix("sha256:") for name, content in contents.items()}
    read = sets._idx_set(["http://nowhere.invalid"], checksums, sets.FASHION_CLASSES)
    known = dataclasses.replace(sets.KNOWN_SETS["fashion-mnist"], read=read)
    monkeypatch.setitem(sets.KNOWN_SETS, "fashion-mnist", known)

    data = load("fashion-mnist", data_dir=tmp_path, binarize="none", download=False)
    assert torch.equal(data.train, torch.tensor(train[:50_000, None]))
    assert torch.equal(data.validation, torch.tensor(train[50_000:, None]))
    assert torch.equal(data.test, torch.tensor(test[:, None]))
    assert torch.cat([data.train_labels, data.validation_labels, data.test_labels]).tolist() == list(labels)
    assert data.class_names[9] == "Ankle boot" and data.num_levels == 256


def test_omniglot_is_read_as_published(tmp_path, monkeypatch):
    random = np.random.default_rng(1)
    train, test = random.random((784, 1400)), random.random((784, 30))
    alphabets = np.eye(50)[random.integers(0, 50, 1430)].T
    buffer = io.BytesIO()
    savemat(
        buffer,
        {"data": train, "testdata": test, "target": alphabets[:, :1400], "testtarget": alphabets[:, 1400:]},
    )
    (tmp_path / "chardata.mat").write_bytes(buffer.getvalue())
    monkeypatch.setattr(sets, "OMNIGLOT", dataclasses.replace(sets.OMNIGLOT, checksum=sha256(buffer.getvalue())))

    grey = load("omniglot", data_dir=tmp_path, binarize="none", download=False)
    assert (len(grey.train), len(grey.validation), len(grey.test)) == (55, 1345, 30)
    # As the code that published the file reads it.
    images = train.T.astype("float32").reshape((-1, 28, 28)).reshape((-1, 784), order="F")
    images = images[np.random.RandomState(seed=123).permutation(1400)]
    assert np.array_equal(grey.train.flatten(1), images[:-1345])
    assert np.array_equal(grey.validation.flatten(1), images[-1345:])
    assert grey.test_labels.tolist() == alphabets[:, 1400:].argmax(0).tolist()
    assert grey.kind == "real"

    binary = load("omniglot", data_dir=tmp_path, download=False)
    stream = np.random.RandomState(777)
    assert np.array_equal(binary.validation.flatten(1), stream.binomial(1, grey.validation.flatten(1).numpy()))
    assert np.array_equal(binary.test.flatten(1), stream.binomial(1, grey.test.flatten(1).numpy()))
    assert binary.binarization == "dynamic" and torch.equal(binary.train.probs, grey.train)


def test_patches_are_of_photographs_and_no_pixel_is_in_two_parts():
    from sklearn.datasets import load_sample_images

    data = load("patches")
    assert data.class_names == ("china", "flower")
    assert (data.event_shape, data.num_levels, data.train.dtype) == ((3, 32, 32), 256, torch.uint8)
    halves = [avg_pool2d(torch.tensor(image).movedim(-1, 0).float(), 2) for image in load_sample_images().images]
    parts = {"train": [(0, 80), (120, 200), (240, 320)], "validation": [(80, 120)], "test": [(200, 240)]}
    for name, strips in parts.items():
        patches, labels = getattr(data, name), getattr(data, f"{name}_labels")
        assert abs(labels.float().mean() - 0.5) < 0.01
        for patch, label in zip(patches[:5], labels[:5], strict=True):
            half = (halves[label] + 0.5).floor()
            windows = [half[..., low:high].unfold(1, 32, 1).unfold(2, 32, 1) for low, high in strips]
            assert any((w.movedim(0, 2) == patch).flatten(2).all(-1).any() for w in windows)
    # Neighbours are alike, as in a photograph, and more than pixels far apart.
    x = data.test.float()
    near, far = (x[..., 1:] - x[..., :-1]).abs().mean(), (x[..., 16:] - x[..., :-16]).abs().mean()
    assert near < far / 2 < 40


def test_cifar10_is_read_as_published(tmp_path, monkeypatch):
    random = np.random.default_rng(2)
    buffer, records = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        # In another order than that of the batches, as in the published archive.
        for name in sorted(sets.CIFAR10_MEMBERS, key=lambda name: name[::-1]):
            part = np.full((10_000, 3073), sets.CIFAR10_MEMBERS.index(name), np.uint8)
            part[:, :100] = random.integers(0, 10, (10_000, 100))
            records.append((sets.CIFAR10_MEMBERS.index(name), part))
            info = tarfile.TarInfo(name)
            info.size = part.size
            tar.addfile(info, io.BytesIO(part.tobytes()))
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(buffer.getvalue())
    monkeypatch.setattr(sets, "CIFAR10", dataclasses.replace(sets.CIFAR10, checksum=sha256(buffer.getvalue())))

    data = load("cifar10", data_dir=tmp_path, download=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert (data.kind, data.num_levels, data.image_shape, data.binarization) == (
        "levels",
        256,
        (3, 32, 32),
        "none",
    )
    expected = np.concatenate([part for _, part in sorted(records, key=lambda record: record[0])])
    assert np.array_equal(torch.cat([data.train[:], data.validation, data.test]).flatten(1), expected[:, 1:])
    assert np.array_equal(data.test_labels, expected[50_000:, 0])
    assert data.class_names[6] == "frog"


# -- the real files, where they are ----------------------------------------------------------------


def test_real_mnist_is_that_of_the_published_protocol():
    folder = real_files("mnist", "train-images-idx3-ubyte.gz")
    data = load("mnist", download=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (50_000, 10_000, 10_000)
    assert tuple(draws(data)) == sets.KNOWN_SETS["mnist"].draws

    # The steps of the published loader, on files read by hand.
    def images(name):
        content = gzip.decompress((folder / f"{name}.gz").read_bytes())
        pixels = torch.tensor(list(content[16:]), dtype=torch.uint8)
        return pixels.float().numpy().reshape(-1, 784) / 255.0

    x_train, x_test = images("train-images-idx3-ubyte"), images("t10k-images-idx3-ubyte")
    stream = np.random.RandomState(777)
    assert np.array_equal(data.validation.flatten(1), stream.binomial(1, x_train[50_000:]))
    assert np.array_equal(data.test.flatten(1), stream.binomial(1, x_test))
    assert np.array_equal(data.train.probs.flatten(1), x_train[:50_000])
    assert data.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]

    grey = load("mnist", binarize="none", download=False)
    assert (grey.kind, grey.num_levels, grey.train.dtype) == ("levels", 256, torch.uint8)
    assert torch.equal(grey.train.float() / 255, data.train.probs)


def test_real_mnist_is_no_fashion_mnist():
    folder = real_files("mnist", "train-images-idx3-ubyte.gz")
    with pytest.raises(FileNotFoundError, match="published one"):
        load("fashion-mnist", data_dir=folder, download=False)


def test_real_frey_faces():
    folder = real_files("freyfaces", "freyfaces.npz")
    data = load("freyfaces", download=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (1565, 200, 200)
    assert (data.image_shape, data.kind, data.num_levels) == ((1, 28, 20), "levels", 256)
    with np.load(folder / "freyfaces.npz") as content:
        images = content["images"][np.random.RandomState(0).permutation(1965), None]
    assert np.array_equal(torch.cat([data.train[:], data.validation, data.test]), images)
    # The file of the first publication holds the same pixels, one column for each image.
    buffer = io.BytesIO()
    savemat(buffer, {"ff": images[np.argsort(np.random.RandomState(0).permutation(1965))].reshape(1965, 560).T})
    assert len(sets.FREY_FACES.verified(buffer.getvalue())) == 1965 * 560
