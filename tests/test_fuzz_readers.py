"""Configurations and checkpoints changed at random, and sealed anew: they load, or an error names them."""

import copy
import hashlib
import json
import math
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppgen import catalogue, decoders, models, nn, posteriors, priors
from ppgen.inference import fit
from ppgen.runs import load_run, save_run

X = torch.bernoulli(torch.full((20, 6), 0.4), generator=torch.Generator().manual_seed(0))
VALUES = st.recursive(
    st.sampled_from(
        [
            None,
            True,
            False,
            0,
            1,
            -1,
            2,
            3,
            10**9,
            10**30,
            0.5,
            -0.0,
            math.inf,
            math.nan,
            "",
            "vae",
            "vamp",
            "os:system",
            "../x",
            "/etc/passwd",
            "digits",
            "0",
            "tensor",
            "dict",
            "\x00",
            "é" * 50,
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dict", "tensor", "a", "model"]), inner, max_size=2)
    ),
    max_leaves=5,
)
FEW = settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=600)


def places(value, path=()):
    """The paths to everything in a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


@st.composite
def changed(draw, original):
    """A JSON value with one to three things in it replaced, removed or added."""
    whole = [copy.deepcopy(original)]
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([(0, *p) for p in places(whole[0])]))
        owner = whole
        for key in path:
            owner = owner[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "remove" and path:
            del owner[last]
        elif action == "add" and isinstance(owner[last], dict):
            owner[last][draw(st.sampled_from(["a", "schema", "__class__"]))] = draw(VALUES)
        else:
            owner[last] = draw(VALUES)
    return whole[0]


def seal(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in manifest["files"]}
    path.write_text(json.dumps(manifest))


def named(call, folder):
    """The call returns, or ends with an error that names the folder or the one of all checkpoints, and nothing else."""
    try:
        call()
    except (ValueError, FileNotFoundError) as error:
        owner = folder if (folder / "config.json").exists() else folder.parent
        assert str(owner) in str(error), f"does not name its file: {error!r}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "r"
    settings_of_model = {"latent_dim": 2, "num_components": 3, "hidden": (4,), "prior": "mog"}
    recipe = catalogue.Recipe("vae", (1, 2, 3), settings=settings_of_model)
    pair = recipe.build()
    history = fit(pair, X.reshape(-1, 1, 2, 3), epochs=1, seed=0, progress=False)
    source = {"name": "digits", "binarization": "dynamic", "split": ""}
    save_run(folder, pair, recipe, data=source, training={"epochs": 1}, history=history)
    return folder


def put_back(folder, file, content, load):
    """The file as it was, which must load: or what was refused may have been something else."""
    (folder / file).write_bytes(content)
    seal(folder)
    load()


def fuzz_json(folder, file, load, how):
    original = json.loads((folder / file).read_text())
    content = (folder / file).read_bytes()

    @how
    @given(value=changed(original))
    def check(value):
        (folder / file).write_text(json.dumps(value))
        if file != "manifest.json":
            seal(folder)
        named(load, folder)

    check()
    put_back(folder, file, content, load)


def fuzz_bytes(folder, file, load, how):
    """Bytes cut, changed or added, in a folder whose manifest fits them."""
    content = (folder / file).read_bytes()
    edits = st.lists(st.tuples(st.integers(0, min(len(content), 3000) - 1), st.integers(0, 255)), max_size=4)

    @how
    @given(edits=edits, end=st.integers(0, len(content)), more=st.binary(max_size=4), cut=st.booleans())
    def check(edits, end, more, cut):
        broken = bytearray(content)
        for at, value in edits:
            broken[at] = value
        (folder / file).write_bytes(bytes(broken[:end] if cut else broken) + more)
        seal(folder)
        named(load, folder)

    check()
    put_back(folder, file, content, load)


LENGTHS = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]


@pytest.mark.parametrize("how", LENGTHS)
@pytest.mark.parametrize("file", ["config.json", "manifest.json"])
def test_a_run_of_any_config_loads_or_is_named(run, file, how):
    fuzz_json(run, file, lambda: load_run(run), how)


@pytest.mark.parametrize("how", LENGTHS)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_run_of_any_bytes_loads_or_is_named(run, file, how):
    fuzz_bytes(run, file, lambda: load_run(run), how)


def vae():
    torch.manual_seed(0)
    return models.VAE(
        priors.StandardNormal(2), decoders.Bernoulli(nn.MLP(2, 4, 6)), posteriors.DiagNormal(nn.MLP(6, 4, 4))
    )


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint, and the call that goes on from it (without saving again)."""
    root = tmp_path / "checkpoints"
    quiet = {"batch_size": 10, "seed": 0, "progress": False}
    fit(vae(), X, epochs=1, checkpoint=root, **quiet)
    kept = tmp_path / "kept"
    shutil.copytree(root, kept)

    def again():
        newest = max(p for p in root.iterdir() if p.name.isdigit())
        content = {p.name: p.read_bytes() for p in newest.iterdir()}
        try:
            pair = vae()
            fit(pair, X, epochs=1, checkpoint=root, **quiet)
            assert {p.name: p.read_bytes() for p in newest.iterdir()} == content
        finally:
            for other in root.iterdir():
                if other != newest:
                    shutil.rmtree(other)

    newest = max(p for p in root.iterdir() if p.name.isdigit())
    for other in root.iterdir():
        if other != newest:
            shutil.rmtree(other)
    return newest, again


@pytest.mark.parametrize("how", LENGTHS)
@pytest.mark.parametrize("file", ["state.json", "manifest.json"])
def test_a_checkpoint_of_any_state_goes_on_or_is_named(checkpoint, file, how):
    fuzz_json(checkpoint[0], file, checkpoint[1], how)


@pytest.mark.parametrize("how", LENGTHS)
@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_a_checkpoint_of_any_bytes_goes_on_or_is_named(checkpoint, file, how):
    fuzz_bytes(checkpoint[0], file, checkpoint[1], how)
