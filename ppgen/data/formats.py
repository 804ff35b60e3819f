"""The file formats in which the data sets are published, read from bytes in memory to arrays."""

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Sequence

import numpy as np

from ppgen.data.fetch import MAX_BYTES


def gunzip(data: bytes) -> bytes:
    """The content of a gzip file; bytes that are not gzip's are returned as they are."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"it is a damaged gzip file ({error})") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
    return content


def read_idx(data: bytes) -> np.ndarray:
    """The array in an idx file of unsigned bytes: two zeros, type, rank, big-endian sizes, values."""
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(
            f"Expected an idx file of unsigned bytes, which starts with 00 00 08, got {data[:4].hex(' ')}."
        )
    rank = data[3]
    header = 4 + 4 * rank
    if len(data) < header:
        raise ValueError(f"An idx file of rank {rank} has a header of {header} bytes, this one ends after {len(data)}.")
    shape = struct.unpack(f">{rank}I", data[4:header])
    values = np.frombuffer(data, np.uint8, offset=header)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"The idx header says {shape}, but {values.size} values follow.")
    return values.reshape(shape)


def read_cifar(archive: bytes, members: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) of the named members of CIFAR-10's binary archive.

    A record is one byte of label and then the red, green and blue planes, row by row. Members are read by
    their exact names in memory; nothing is unpacked to disk.
    """
    parts = []
    with tarfile.open(fileobj=io.BytesIO(gunzip(archive)), mode="r:") as tar:
        found = {member.name: member for member in tar if member.isreg()}
        for name in members:
            if name not in found:
                raise ValueError(f"The archive has no file {name}; it has {sorted(found)}.")
            if found[name].size % 3073:
                raise ValueError(f"{name} has {found[name].size} bytes, which is no number of records of 3,073.")
            stream = tar.extractfile(found[name])
            assert stream is not None  # a regular file has content
            parts.append(np.frombuffer(stream.read(), np.uint8).reshape(-1, 3073))
    records = np.concatenate(parts)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def read_mat(data: bytes, *names: str) -> list[np.ndarray]:
    """The named numeric arrays in a MATLAB file."""
    from scipy.io import loadmat  # slow to import, and few data sets need it

    content = loadmat(io.BytesIO(data), variable_names=names)
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"The MATLAB file has no {', '.join(missing)}.")
    return [content[name] for name in names]


def matlab_images(columns: np.ndarray, height: int, width: int) -> np.ndarray:
    """Images (N, 1, H, W) from columns (H · W, N) that MATLAB filled, that is column by column."""
    return columns.T.reshape(-1, 1, width, height).swapaxes(2, 3)


def frey_pixels(data: bytes) -> bytes:
    """The 1,965 × 28 × 20 bytes of the Frey faces, row by row, from an .npz or a MATLAB file."""
    try:
        if data.startswith(b"PK"):
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                images = arrays["images"].reshape(1965, 560)
        else:
            (columns,) = read_mat(data, "ff")
            images = columns.T.reshape(1965, 560)
    except Exception as error:  # the readers of damaged files raise all kinds
        raise ValueError(f"it holds no Frey faces ({error})") from error
    return np.ascontiguousarray(images, np.uint8).tobytes()
