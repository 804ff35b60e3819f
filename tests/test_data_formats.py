"""The formats of published files: idx, CIFAR's records, MATLAB's matrices."""

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from ppgen.data import formats
from ppgen.data.formats import frey_pixels, gunzip, matlab_images, read_cifar, read_idx, read_mat


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def tar_gz(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return buffer.getvalue()


def mat(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(5,), (3, 2, 4), (2, 1, 1, 1)])
def test_idx_round_trip(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(read_idx(idx(array)), array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "idx"),
        (b"<html>", "3c 68 74 6d"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "unsigned bytes"),  # an idx file of floats
        (b"\0\0\x08\x03\0\0\0\x01", "header"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"\(2, 3\), but 5 values"),
        (idx(np.zeros((2, 3), np.uint8)) + b"\0", r"\(2, 3\), but 7 values"),
    ],
)
def test_idx_of_another_form_is_an_error(data, message):
    with pytest.raises(ValueError, match=message):
        read_idx(data)


def test_gunzip_reads_packed_and_plain_files_and_no_bombs(monkeypatch):
    packed = gzip.compress(b"content")
    assert gunzip(packed) == gunzip(b"content") == b"content"
    for damaged in (packed[:-3], packed[:12] + b"\xff\xff" + packed[14:], packed[:5]):
        with pytest.raises(ValueError, match="damaged gzip"):
            gunzip(damaged)
    monkeypatch.setattr(formats, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        gunzip(gzip.compress(bytes(1001)))


def test_cifar_records_become_planes():
    images = np.random.default_rng(1).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    labels = np.array([3, 0, 9, 7], np.uint8)
    records = [bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True)]
    archive = tar_gz({"b.bin": b"".join(records[2:]), "../evil": b"x", "a.bin": b"".join(records[:2])})
    read, read_labels = read_cifar(archive, ["a.bin", "b.bin"])
    assert np.array_equal(read, images) and np.array_equal(read_labels, labels)


def test_cifar_archive_is_read_by_exact_names_of_regular_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(bytes(3073))
    archive = tar_gz({"dir/a.bin": bytes(3073)}, links={"a.bin": str(tmp_path / "secret")})
    with pytest.raises(ValueError, match=r"no file a\.bin"):
        read_cifar(archive, ["a.bin"])
    with pytest.raises(ValueError, match="3,073"):
        read_cifar(tar_gz({"a.bin": bytes(3074)}), ["a.bin"])
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_matlab_images_are_upright():
    image = np.arange(6).reshape(2, 3)  # two rows of three
    columns = np.stack([image.flatten(order="F"), 10 + image.flatten(order="F")], axis=1)
    read = matlab_images(columns, 2, 3)
    assert read.shape == (2, 1, 2, 3)
    assert np.array_equal(read[0, 0], image) and np.array_equal(read[1, 0], 10 + image)


def test_matlab_images_agree_with_the_published_readers():
    columns = np.random.default_rng(2).random((784, 7)).astype(np.float32)
    (stored,) = read_mat(mat(data=columns), "data")
    published = stored.T.reshape((-1, 28, 28)).reshape((-1, 784), order="F")
    assert np.array_equal(matlab_images(stored, 28, 28).reshape(-1, 784), published)


def test_mat_without_the_array_is_an_error():
    with pytest.raises(ValueError, match="has no target"):
        read_mat(mat(data=np.zeros((2, 2))), "data", "target")


def test_frey_pixels_from_both_files_are_the_same():
    images = np.random.default_rng(3).integers(0, 256, (1965, 28, 20), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, images=images)
    assert frey_pixels(buffer.getvalue()) == images.tobytes()
    assert frey_pixels(mat(ff=images.reshape(1965, 560).T)) == images.tobytes()
    for damaged in (b"<html>", b"PK\x03\x04", mat(other=np.zeros((560, 1965)))):
        with pytest.raises(ValueError, match="no Frey faces"):
            frey_pixels(damaged)
