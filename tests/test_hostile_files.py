"""Data files that were made to do harm: no reader runs what is in one, and each is refused by its name."""

import ast
import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ppgen
from ppgen.data import files, formats, load

ROOT = Path(ppgen.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
# Between the processes of one `ppgen compare`, results travel as bytes; nothing there is read from a file.
PICKLES_BETWEEN_PROCESSES = {"cli/grid.py"}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_source_reads_what_can_run(path):
    own = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text())
    modules = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    modules |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    unsafe = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "yaml"} & {
        m.split(".")[0] for m in modules
    }
    assert not unsafe or own in PICKLES_BETWEEN_PROCESSES
    for name, keywords in calls(tree):
        if name == "torch.load":
            assert keywords.get("weights_only") == "True"
        if name.split(".")[-1] in ("read_array", "open_memmap") or name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle") == "False"
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "subprocess.run", "subprocess.Popen")
        assert not name.endswith((".extractall", ".extract", "unpack_archive")), "archives are read in memory"
        if name.endswith("import_module"):
            assert own == "catalogue/parts.py", "the one place that imports by name: `imported`, behind `allow`"


class Planted:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, folder):
        self.mark = str(folder / "it ran")

    def __reduce__(self):
        return (open, (self.mark, "w"))


def npy(path, planted):
    np.save(path, np.array([planted], dtype=object))


def npz(path, planted):
    np.savez(path, data=np.zeros((4, 2)), labels=np.array([planted] * 4, dtype=object))


def pt(path, planted):
    torch.save({"data": torch.zeros(4, 2), "labels": planted}, path)


def bare_pickle(path, planted):
    path.write_bytes(pickle.dumps(planted, 2))


def legacy_pt(path, planted):
    torch.save({"data": planted}, path, _use_new_zipfile_serialization=False)


def tar_pt(path, planted):
    with tarfile.open(path, "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors", "../../escaped"):
            content = pickle.dumps(planted)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def npz_with_a_pickle_beside(path, planted):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(planted))
        archive.writestr("../../escaped.npy", b"")


def structured(path, planted):
    np.save(path, np.array([(1, 2.0)] * 4, dtype=[("a", int), ("b", float)]))


def script(path, planted):
    path.write_bytes(f"import os\nopen({planted.mark!r}, 'w')\n".encode())


HOSTILE = [
    (npy, ".npy"), (npz, ".npz"), (pt, ".pt"), (bare_pickle, ".pt"), (bare_pickle, ".npy"), (bare_pickle, ".npz"),
    (legacy_pt, ".pt"), (tar_pt, ".pt"), (npz_with_a_pickle_beside, ".npz"), (structured, ".npy"), (script, ".npy"),
    (script, ".pt"), (script, ".py"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "suffix"), HOSTILE)
def test_a_data_file_that_would_run_is_refused_by_name(tmp_path, monkeypatch, make, suffix):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    path = tmp_path / f"data{suffix}"
    make(path, Planted(tmp_path))
    with pytest.raises(ValueError) as error:
        load(path)
    assert str(path) in str(error.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(["cwd", path.name])


def test_the_plant_would_have_run(tmp_path):
    pickle.loads(pickle.dumps(Planted(tmp_path)))  # or the tests above would show nothing
    assert (tmp_path / "it ran").exists()


def small_png(path):
    Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)).save(path)


def huge_header(path):
    """A PNG that says it has 100,000 × 100,000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def postscript(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 5\n(it ran) (w) file closefile\nshowpage\n")


def cut(path):
    small_png(path)
    path.write_bytes(path.read_bytes()[:-20])


def another_kind(path):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path, format="GIF")


@pytest.mark.parametrize("make", [huge_header, postscript, cut, another_kind])
def test_an_image_that_would_do_harm_is_refused_by_name(tmp_path, make):
    (tmp_path / "images").mkdir()
    make(tmp_path / "images" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png"):
        load(tmp_path / "images")


def bomb_npz(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("data.npy", "w") as stream:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (300, 10**6)})
        stream.write(header.getvalue())
        for _ in range(300):
            stream.write(bytes(10**6))


def bomb_view(path):
    torch.save(torch.zeros(1).expand(2**20, 2**20), path)


def lying_header(path):
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**5)})


@pytest.mark.parametrize(("make", "suffix"), [(bomb_npz, ".npz"), (bomb_view, ".pt"), (lying_header, ".npy")])
def test_a_file_that_unpacks_to_too_much_is_refused_by_name(tmp_path, monkeypatch, make, suffix):
    monkeypatch.setattr(files, "MAX_BYTES", 10**8)
    path = tmp_path / f"x{suffix}"
    make(path)
    assert path.stat().st_size < 10**6
    with pytest.raises(ValueError) as error:
        load(path)
    assert str(path) in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"x\.npy is no ordinary file"):
        load(tmp_path / "x.npy")


def test_an_archive_is_read_by_exact_names_and_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stream = io.BytesIO()
    record = bytes(3073)
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, kind in (("../../escaped", tarfile.REGTYPE), ("/abs", tarfile.REGTYPE), ("b", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(record) if kind == tarfile.REGTYPE else 0, "/etc/passwd"
            tar.addfile(info, io.BytesIO(record))
    with pytest.raises(ValueError, match="no file b"):  # a link, whatever it leads to, is not the file that is meant
        formats.read_cifar(stream.getvalue(), ["b"])
    images, _ = formats.read_cifar(stream.getvalue(), ["../../escaped"])
    assert images.shape == (1, 3, 32, 32)
    assert list(tmp_path.iterdir()) == [] and not (tmp_path.parent.parent / "escaped").exists()


DAMAGED = ["cut in half", "empty", "one bit", "zeros", "renamed"]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_data_file_is_refused_by_name_or_read_in_plain(tmp_path, suffix, damage):
    array = np.arange(40.0).reshape(10, 4)
    path = tmp_path / f"x{suffix}"
    {".npy": np.save, ".npz": np.savez, ".pt": lambda p, a: torch.save(torch.tensor(a), p)}[suffix](path, array)
    content = path.read_bytes()
    if damage == "renamed":
        other = tmp_path / {".npy": "y.npz", ".npz": "y.pt", ".pt": "y.npy"}[suffix]
        path.rename(other)
        path = other
    for at in range(0, len(content), 37) if damage == "one bit" else [0]:
        flipped = bytes([*content[:at], content[at] ^ 4, *content[at + 1 :]])
        broken = {
            "cut in half": content[: len(content) // 2], "empty": b"", "one bit": flipped, "zeros": bytes(len(content)),
            "renamed": content,
        }[damage]  # fmt: skip
        path.write_bytes(broken)
        try:
            assert load(path).train.shape[0] > 0
            assert damage in ("one bit", "renamed")  # of a number, which nothing in such a file tells
        except ValueError as error:
            assert str(path) in str(error)
