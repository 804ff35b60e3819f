"""Runs that came to harm, or were made to do it: nothing in their folder runs, and each file is refused by its name."""

import contextlib
import hashlib
import io
import json
import pickle
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from ppgen import catalogue, cli
from ppgen.inference import fit
from ppgen.runs import load_run, save_run


class Planted:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, folder):
        self.mark = str(folder / "it ran")

    def __reduce__(self):
        return (open, (self.mark, "w"))


# Runs: a folder of a small model, whose files are then exchanged.
@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    settings = {"latent_dim": 2, "num_components": 3, "hidden": (4,), "prior": "mog"}
    recipe = catalogue.Recipe("vae", (1, 3, 3), settings=settings)
    with torch.random.fork_rng():
        pair = recipe.build()
        history = fit(pair, torch.ones(4, 1, 3, 3), epochs=1, seed=0, progress=False)
    data = {"name": "digits", "binarization": "dynamic", "split": ""}
    save_run(folder, pair, recipe, data=data, training={}, history=history)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def resealed(run):
    """A manifest that fits what is there now: whoever means harm writes that, too."""
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        if (run / name).is_file():
            manifest["files"][name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))


def changed(run, change):
    config = json.loads((run / "config.json").read_text())
    config = change(config) or config
    (run / "config.json").write_text(json.dumps(config))
    resealed(run)


def setting(name, value):
    return lambda config: config["recipe"]["settings"].__setitem__(name, value)


def of_recipe(name, value):
    return lambda config: config["recipe"].__setitem__(name, value)


NAMES = ["os:system", "builtins:exec", "subprocess:Popen", "planted_module:Prior", "../planted_module:Prior"]
CONFIGS = {
    **{f"prior {name}": setting("prior", name) for name in NAMES},
    **{f"posterior {name}": setting("posterior", name) for name in NAMES},
    "decoder os:system": setting("decoder", "os:system"),
    "model os:system": of_recipe("model", "os:system"),
    "dunder": setting("prior", "__class__"),
    "a list as a name": setting("prior", ["os:system"]),
    "a dictionary as a name": setting("prior", {"os": "system"}),
    "no such setting": setting("__init__", 3),
    "sizes of billions": setting("latent_dim", 10**9),
    "sizes beyond any machine": setting("latent_dim", 10**30),
    "a million layers": setting("hidden", [2] * 10**6),
    "thousands of layers": setting("hidden", [2] * 100_000),
    "a layer of gigabytes": setting("hidden", [50_000, 50_000]),
    "an image of gigabytes": of_recipe("shape", [1, 60_000, 60_000]),
    "a layer of billions": setting("hidden", [10**12]),
    "components of billions": setting("num_components", 10**10),
    "negative": setting("latent_dim", -1),
    "zero": setting("hidden", [0]),
    "a fraction": setting("latent_dim", 1.5),
    "not a number": setting("latent_dim", float("nan")),
    "true": setting("latent_dim", True),
    "other sizes than the file's": setting("latent_dim", 3),
    "shape of text": of_recipe("shape", "abc"),
    "shape of billions": of_recipe("shape", [10**6, 10**6, 10**6]),
    "no shape": of_recipe("shape", []),
    "levels of text": of_recipe("num_levels", "2"),
    "negative levels": of_recipe("num_levels", -5),
    "classes of text": of_recipe("num_classes", "os"),
    "settings no dictionary": of_recipe("settings", [1]),
    "unknown part of a recipe": of_recipe("imports", ["os:system"]),
    "recipe no dictionary": lambda config: config.__setitem__("recipe", 3),
    "no recipe": lambda config: config.__delitem__("recipe"),
    "a list": lambda config: [config],
    "a number": lambda config: 3,
    "newer schema": lambda config: config.__setitem__("schema", 10**6),
    "schema of text": lambda config: config.__setitem__("schema", "2"),
    "no schema": lambda config: config.__delitem__("schema"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_builds_nothing_and_is_refused_by_name(run, name, monkeypatch):
    (run / "planted_module.py").write_text(f"open({str(run / 'it ran')!r}, 'w')\nclass Prior: pass\n")
    monkeypatch.syspath_prepend(str(run))
    monkeypatch.chdir(run)
    changed(run, CONFIGS[name])
    with pytest.raises(ValueError) as error:
        load_run(run)
    assert str(run) in str(error.value) and len(str(error.value)) < 3000
    assert not (run / "it ran").exists() and "planted_module" not in sys.modules


TEXTS = {
    "not JSON": b"{",
    "empty": b"",
    "zeros": bytes(100),
    "not UTF-8": b"\xff\xfe{}",
    "nested": b"[" * 200_000,
    "a long number": b'{"schema": ' + b"9" * 10_000 + b"}",
    "a pickle": pickle.dumps({"schema": 2}),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("file", ["config.json", "manifest.json"])
def test_what_is_no_json_is_refused_by_name(run, file, name):
    (run / file).write_bytes(TEXTS[name])
    if file == "config.json":
        resealed(run)
    with pytest.raises(ValueError, match=file.replace(".", r"\.")):
        load_run(run)


def header(run, change):
    path = run / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    described = json.loads(content[8 : 8 + length])
    described = change(described) or described
    new = json.dumps(described).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])


def overlapping(described):
    return {name: {**tensor, "data_offsets": [0, 4]} for name, tensor in described.items()}


def first(described):
    return next(name for name in described if name != "__metadata__")


WEIGHTS = {
    "a pickle": lambda path, run: path.write_bytes(pickle.dumps(Planted(run), 2)),
    "a torch file": lambda path, run: torch.save({"x": torch.zeros(2)}, path),
    "empty": lambda path, run: path.write_bytes(b""),
    "cut": lambda path, run: path.write_bytes(path.read_bytes()[:-50]),
    "longer": lambda path, run: path.write_bytes(path.read_bytes() + b"x"),
    "a header of exabytes": lambda path, run: path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:]),
    "other tensors": lambda path, run: safetensors.torch.save_file({"x": torch.zeros(2)}, path),
    "offsets outside": lambda path, run: header(
        run, lambda d: d[first(d)].__setitem__("data_offsets", [0, 2**50])
    ),
    "offsets that overlap": lambda path, run: header(run, overlapping),
    "shape of exabytes": lambda path, run: header(run, lambda d: d[first(d)].__setitem__("shape", [2**60])),
    "negative shape": lambda path, run: header(run, lambda d: d[first(d)].__setitem__("shape", [-1])),
    "unknown type": lambda path, run: header(run, lambda d: d[first(d)].__setitem__("dtype", "O8")),
    "a tensor renamed": lambda path, run: header(run, lambda d: {"../x": d.pop(first(d)), **d}),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_hostile_weights_are_refused_by_name(run, name):
    WEIGHTS[name](run / "model.safetensors", run)
    resealed(run)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_run(run)
    assert not (run / "it ran").exists()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "manifest.json"])
def test_one_bit_or_one_byte_less_is_noticed(run, file):
    content = (run / file).read_bytes()
    noticed = 0
    places = range(0, len(content), max(1, len(content) // 40))
    for at in places:
        (run / file).write_bytes(bytes([*content[:at], content[at] ^ 1, *content[at + 1 :]]))
        try:
            load_run(run)
        except (ValueError, FileNotFoundError) as error:
            noticed += str(run) in str(error)
    (run / file).write_bytes(content[:-1])
    if file == "manifest.json":  # its own versions and spaces stand for themselves
        assert noticed > len(places) / 2
    else:
        assert noticed == len(places)
        with pytest.raises(ValueError, match=file.replace(".", r"\.")):
            load_run(run)


def test_files_of_another_run_are_noticed(run, tmp_path):
    other = catalogue.Recipe(
        "vae", (1, 3, 3), settings={"latent_dim": 2, "hidden": (4,), "prior": "mog", "num_components": 3}
    )
    torch.manual_seed(1)
    pair = other.build()
    history = fit(pair, torch.ones(4, 1, 3, 3), epochs=1, seed=0, progress=False)
    save_run(tmp_path / "other", pair, other, data={}, training={}, history=history)
    shutil.copy(tmp_path / "other" / "model.safetensors", run)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_run(run)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "manifest.json"])
def test_a_link_out_of_the_folder_is_refused(run, file, tmp_path):
    shutil.move(run / file, tmp_path / file)
    (run / file).symlink_to(tmp_path / file)
    with pytest.raises(ValueError, match=rf"{file.replace('.', chr(92) + '.')}.*link"):
        load_run(run)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "manifest.json"])
def test_a_file_that_is_missing_or_renamed_is_named(run, file):
    (run / file).rename(run / f"{file}.old")
    with pytest.raises((ValueError, FileNotFoundError), match=file.replace(".", r"\.")):
        load_run(run)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "sub/../../x"])
def test_a_manifest_leads_nowhere_else(run, name):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["files"][name] = "0" * 64
    (run / "manifest.json").write_text(json.dumps(manifest))
    load_run(run)  # what is read is named by the library, never by the manifest
    manifest["files"] = {name: "0" * 64}
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"config\.json|model\.safetensors"):
        load_run(run)


def command(*arguments):
    """The exit status and the error of one command."""
    before, path = sys.argv, list(sys.path)
    sys.argv, err = ["ppgen", *map(str, arguments)], io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            cli.main()
    except SystemExit as stop:
        return stop.code or 0, err.getvalue()
    finally:
        sys.argv, sys.path[:] = before, path
    return 0, err.getvalue()


def test_data_outside_a_runs_folder_are_read_only_where_that_is_allowed(tmp_path):
    data = tmp_path / "x.npy"
    np.save(data, np.random.default_rng(0).integers(0, 2, (60, 1, 3, 3)).astype(np.float32))
    run = tmp_path / "run"
    small = ["--hidden", "4", "--latent-dim", "2", "--epochs", "1", "--out", run]
    assert command("train", "vae", "--data", data, *small)[0] == 0
    evaluate = ["evaluate", run, "--num-samples", "2"]
    for name in (str(data), f"{run}/../x.npy", f"{run}/link.npy"):
        changed(run, lambda config, name=name: config["data"].__setitem__("name", name))
        if name.endswith("link.npy"):
            (run / "link.npy").symlink_to(data)
        status, error = command(*evaluate)
        assert status == 2 and f"--allow {name}" in error and "outside its folder" in error
        assert command(*evaluate, "--allow", name)[0] == 0
    (run / "link.npy").unlink()
    shutil.copy(data, run / "link.npy")
    assert command(*evaluate)[0] == 0


@pytest.mark.parametrize(
    "data", [{}, {"name": 3, "binarization": ""}, {"name": "digits"}, {"name": "digits", "binarization": 1}]
)
def test_data_that_are_none_are_refused_by_name(run, data):
    changed(run, lambda config: config.__setitem__("data", data))
    status, error = command("evaluate", run, "--num-samples", "2")
    assert status == 2 and "config.json" in error


@pytest.mark.slow
def test_the_current_folder_stands_in_for_nothing_that_is_installed(run, tmp_path):
    """A file that has the name of a library, where the command is given."""
    for name in ("sklearn", "scipy", "PIL", "matplotlib", "safetensors"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\n")
    code = "import sys; sys.path = [p for p in sys.path if p]; from ppgen import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "evaluate", str(run), "--num-samples", "2"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert "Error" in done.stderr and done.returncode == 2, done.stderr  # digits are not of the run's shape
    assert not (tmp_path / "it ran").exists()
