"""The files of checkpoints: whole whenever the process or the disk stops, and refused where they are another run's."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from parts import normalised
from pyro.infer import Trace_ELBO

from ppgen import decoders, files, models, nn, posteriors, priors
from ppgen.inference import (
    Adversarial,
    adversarial,
    dreg,
    elbo,
    fit,
    renyi,
    sticking_the_landing,
    stratified,
    train,
)
from ppgen.inference.training.checkpoint import Checkpoints

X = torch.bernoulli(torch.full((50, 16), 0.4), generator=torch.Generator().manual_seed(0))


def small(**changed):
    torch.manual_seed(1)
    given = {"epochs": 2, "batch_size": 10, "seed": 5, "progress": False, **changed}
    pair = given.pop("pair", None) or normalised()
    data = given.pop("data", X)
    return pair, lambda: fit(pair, data, **given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 6}, "seed=5, and this call seed=6"),
        ({"batch_size": 20}, "batch_size=10, and this call batch_size=20"),
        ({"data": 1 - X}, "other data"),
        ({"validation": X[:10]}, "in validation"),
        ({"precision": "bf16"}, "precision was 'float32'"),
        ({"pair": models.VAE(priors.StandardNormal(3), decoders.Bernoulli(nn.MLP(3, 8, 16)),
                             posteriors.DiagNormal(nn.MLP(16, 8, 6)))}, "in this model"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=1e-3)}, "momentum=None, and this SGD"),
        ({"loss": elbo(free_bits=0.5)}, r"loss was ELBO\(.*free_bits=0\), and here it is ELBO\(.*free_bits=0.5\)"),
        ({"pair": models.VAE(priors.StandardNormal(2), decoders.Bernoulli(nn.MLP(2, 8, 16)),
                             posteriors.DiagNormal(nn.MLP(16, 8, 4))).double(), "data": X.double()},
         "float32 .* there and torch.float64"),
        ({"optimizer": lambda p: torch.optim.Adam([{"params": list(p)[:1]}, {"params": list(p)[1:]}])}, "does not fit"),
    ],
)  # fmt: skip
def test_another_run_is_refused_and_left_as_it_is(changed, message, tmp_path):
    small(checkpoint=tmp_path)[1]()
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    pair, again = small(checkpoint=tmp_path, **{"epochs": 3, **changed})
    before = [value.clone() for value in pair.state_dict().values()]
    with pytest.raises(ValueError, match=message):
        again()
    assert all(torch.equal(a, b) for a, b in zip(before, pair.state_dict().values(), strict=True))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept


OBJECTIVES = {
    "dreg": (lambda: dreg(3), lambda: dreg(50)),
    "renyi": (lambda: renyi(0.5, 3), lambda: renyi(-3.0, 3)),
    "renyi, particles": (lambda: renyi(0.5, 3), lambda: renyi(0.5, 7)),
    "sticking the landing": (lambda: sticking_the_landing(1), lambda: sticking_the_landing(9)),
    "stratified": (lambda: stratified(), lambda: stratified(importance_weighted=True)),
    "of Pyro": (lambda: Trace_ELBO(), lambda: Trace_ELBO(num_particles=9)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_goes_on_with_its_own_objective_alone(name, tmp_path):
    q = posteriors.DiagNormal(nn.MLP(16, 4))
    if name == "stratified":
        kind = posteriors.MixtureOfGaussians
        q = kind(nn.MLP(16, kind.num_outputs(2)), 2)
    pair = models.VAE(priors.StandardNormal(2), decoders.Bernoulli(nn.MLP(2, 16)), q)
    first, other = OBJECTIVES[name]
    small(pair=pair, epochs=1, loss=first(), checkpoint=tmp_path)[1]()
    with pytest.raises(ValueError, match=r"its loss was .*, and here it is"):
        small(pair=pair, loss=other(), checkpoint=tmp_path)[1]()
    assert len(small(pair=pair, loss=first(), checkpoint=tmp_path)[1]().loss) == 2


@pytest.mark.parametrize(
    ("rules", "other"),
    [
        ({}, {"loss": adversarial.hinge()}),
        ({}, {"critic_steps": 3}),
        ({"loss": adversarial.wasserstein_gp()}, {"loss": adversarial.wasserstein_gp(0.5)}),
        ({"loss": adversarial.wasserstein()}, {"loss": adversarial.wasserstein(0.5)}),
    ],
    ids=["loss", "turns", "penalty", "clip"],
)
def test_a_game_goes_on_by_its_own_rules_alone(rules, other, tmp_path):
    def go(epochs, **rules):
        step = Adversarial(models.GAN(priors.StandardNormal(2), nn.MLP(2, 8, 16), nn.MLP(16, 8, 1)), **rules)
        return train(step, X, epochs=epochs, batch_size=10, seed=0, progress=False, checkpoint=tmp_path)

    go(1, **rules)
    with pytest.raises(ValueError, match=r"its loss was .*, critic_steps=\d, and here it is"):
        go(2, **other)
    assert len(go(2, **rules).loss) == 2


def test_a_step_without_a_state_is_refused_before_it_begins(tmp_path):
    class Plain:
        def step(self, x):
            raise AssertionError

    with pytest.raises(TypeError, match=r"Plain has no \.state_dict"):
        train(Plain(), X, epochs=1, checkpoint=tmp_path)


def test_what_else_is_in_the_folder_stays(tmp_path):
    (tmp_path / ".3rdparty").mkdir()
    (tmp_path / ".2fa").write_text("secret")
    (tmp_path / ".000000000001.77").mkdir()  # by a process that was killed while it wrote
    small(checkpoint=tmp_path)[1]()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".2fa", ".3rdparty", "000000000010"]


def write_one(folder, steps=3):
    checkpoints = Checkpoints(folder)
    checkpoints.write(steps, {"a": torch.arange(4.0), "b": [1, (2.5, None)], 3: "c", "d": float("inf")})
    return checkpoints


def test_what_is_written_is_read_back_with_its_kinds(tmp_path):
    tied = torch.arange(6.0).reshape(2, 3)
    state = {"t": tied.T, "same": tied, 0: {"u8": torch.tensor([1], dtype=torch.uint8)}, "x": [1, (0.1, None, True)]}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, state)
    found = checkpoints.read()
    assert torch.equal(found["t"], tied.T) and torch.equal(found["same"], tied)
    assert found[0]["u8"].dtype == torch.uint8 and found["x"] == [1, (0.1, None, True)]
    with pytest.raises(TypeError, match=r"state\['x'\]\[1\] is object"):
        checkpoints.write(2, {"x": [1, object()]})
    assert checkpoints.newest.name == "000000000001"


def damage(folder, kind):
    """Damages the checkpoint in a folder; the file that the message has to name."""
    tensors, state, manifest = (folder / n for n in ("tensors.safetensors", "state.json", "manifest.json"))
    if kind == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-5])
    elif kind == "flipped":
        content = bytearray(tensors.read_bytes())
        content[-3] ^= 1
        tensors.write_bytes(content)
    elif kind == "missing":
        state.unlink()
        return state
    elif kind == "renamed":
        state.rename(folder / "old.json")
        return state
    elif kind == "linked":
        shutil.copy(tensors, folder.parent / "elsewhere")
        tensors.unlink()
        tensors.symlink_to(folder.parent / "elsewhere")
    elif kind == "newer":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 2}))
        return manifest
    elif kind == "no manifest":
        manifest.write_text("[]")
        return manifest
    else:  # hostile: whole by its digests, and not a state
        contents = {
            "deep": b"[" * 100_000,
            "other": b'{"pickle": "cos\\nsystem"}',
            "number": b"3",
            "reference": b'{"dict": [["a", {"tensor": "99"}]]}',
            "places": b'{"dict": [["run", {"dict": []}]]}',
        }
        state.write_bytes(contents[kind])
        files.write_manifest(folder, {p.name: p.read_bytes() for p in (tensors, state)}, 1)
        return folder
    return tensors


KINDS = ["truncated", "flipped", "missing", "renamed", "linked", "newer", "no manifest"]
KINDS += ["deep", "other", "number", "reference", "places"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_or_hostile_checkpoint_is_refused_by_name(kind, tmp_path):
    small(checkpoint=tmp_path)[1]()
    for older in sorted(tmp_path.glob("[0-9]*"))[:-1]:
        shutil.rmtree(older)
    culprit = damage(next(tmp_path.glob("[0-9]*")), kind)
    pair, again = small(checkpoint=tmp_path, epochs=3)
    before = [value.clone() for value in pair.state_dict().values()]
    with pytest.raises(ValueError) as caught:
        again()
    assert culprit.name in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, pair.state_dict().values(), strict=True))


def put(state, path, value):
    """A state with another value at a path of keys."""
    if not path:
        return value
    if isinstance(state, dict):
        return {**state, path[0]: put(state[path[0]], path[1:], value)}
    return type(state)(put(v, path[1:], value) if i == path[0] else v for i, v in enumerate(state))


HOSTILE = [
    (("place", "epoch"), float("inf")),
    (("place", "batch"), -3),
    (("place", "steps"), 4),  # as if it were renamed
    (("place", "history", "loss"), "x"),
    (("place", "best_state"), [{"encoder": torch.zeros(3)}]),
    (("run", "batch_size"), torch.zeros(0)),
    (("generators",), [torch.zeros(3)]),  # which are set last of all
    (("pair", 0, "posterior.net.net.1.weight"), "x"),
    (
        ("step", "optimizer", "state", 0, "exp_avg"),
        torch.zeros(3, 3),
    ),  # beyond the end of which a fused step would read
    (("step", "optimizer", "state", 0, "exp_avg"), None),
    (("step", "optimizer", "state", 0, "step"), torch.tensor(float("nan"))),
    (("step", "optimizer", "param_groups", 0, "lr"), float("nan")),
    (("step", "optimizer", "param_groups", 0, "amsgrad"), True),
]


@pytest.mark.parametrize(("path", "value"), HOSTILE, ids=[".".join(map(str, path)) for path, _ in HOSTILE])
def test_a_state_that_is_whole_and_false_is_refused_with_nothing_changed(path, value, tmp_path):
    small(checkpoint=tmp_path)[1]()
    checkpoints = Checkpoints(tmp_path)
    state, newest = checkpoints.read(), checkpoints.newest
    shutil.rmtree(newest)
    checkpoints.write(int(newest.name), put(state, path, value))
    pair, again = small(checkpoint=tmp_path, epochs=3)
    before = [value.clone() for value in pair.state_dict().values()]
    with pytest.raises(ValueError, match=f"({newest}|holds a run with)"):
        again()
    assert all(torch.equal(a, b) for a, b in zip(before, pair.state_dict().values(), strict=True))


def test_another_learning_rate_is_said_and_that_of_the_run_goes_on(tmp_path, caplog):
    small(checkpoint=tmp_path)[1]()
    _, again = small(checkpoint=tmp_path, epochs=3, optimizer=lambda p: torch.optim.Adam(p, lr=0.5, fused=True))
    with caplog.at_level(logging.WARNING):
        again()
    assert "Goes on with lr=0.001 as the run had it; 0.5 was given." in caplog.text


def test_other_versions_go_on_with_a_word(tmp_path, caplog):
    folder = write_one(tmp_path).newest
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "threads": 77}))
    with caplog.at_level(logging.WARNING):
        assert Checkpoints(tmp_path).read()["b"] == [1, (2.5, None)]
    assert "not bit for bit" in caplog.text and "threads 77" in caplog.text


def test_a_full_disk_ends_the_run_with_the_earlier_checkpoint_whole(monkeypatch, tmp_path):
    written = []
    sync = os.fsync

    def full(handle):
        written.append(handle)
        if len(written) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr("os.fsync", full)
    pair, go = small(checkpoint=tmp_path, checkpoint_every=0, epochs=5)
    with pytest.raises(OSError, match=r"No space left.*is whole.*Make room"):
        go()
    monkeypatch.undo()
    assert Checkpoints(tmp_path).read() is not None and not list(tmp_path.glob(".*"))
    assert all(value.isfinite().all() for value in pair.state_dict().values())


def test_a_limit_of_the_system_is_no_different(tmp_path):
    """A file that grows too large, as a full disk would have it, in a process of its own."""
    script = """
import resource, sys, torch
from ppgen.inference.training.checkpoint import Checkpoints
c = Checkpoints(sys.argv[1])
c.write(1, {"a": torch.zeros(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    c.write(2, {"a": torch.zeros(100_000)})
except OSError as error:
    assert "000000000001 is whole" in str(error), error
    assert c.read()["a"].shape == (10,)
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    pair, go = small(checkpoint=tmp_path / "file" / "in it")
    before = [value.clone() for value in pair.state_dict().values()]
    with pytest.raises(OSError, match="nothing was trained"):
        go()
    assert all(torch.equal(a, b) for a, b in zip(before, pair.state_dict().values(), strict=True))


KILLED = """
import os, random, signal, sys, time, torch
from ppgen.inference.training.checkpoint import Checkpoints

torch.set_num_threads(1)
folder, times = sys.argv[1], int(sys.argv[2])
moment = random.Random(0)
newest = 0
for attempt in range(times):
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:  # saves as fast as it can, and says each time that it has
        checkpoints = Checkpoints(folder)
        for step in range(newest + 1, newest + 10_000):
            checkpoints.write(step, {"step": step, "tensor": torch.full((20_000,), float(step))})
            os.write(told, step.to_bytes(8, "big"))
        os._exit(0)
    os.close(told)
    first = os.read(heard, 8)
    time.sleep(moment.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = first
    while more := os.read(heard, 8 * 4096):
        said = more[-8:]
    os.close(heard)
    state = Checkpoints(folder).read()
    said = int.from_bytes(said, "big")
    assert state["step"] in (said, said + 1), (state["step"], said)  # what was said to be saved, or just more
    assert (state["tensor"] == state["step"]).all()
    newest = state["step"]
left = [name for name in os.listdir(folder) if name.startswith(".")]
print(times, newest, len(left))
"""


@pytest.mark.parametrize("times", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_moment_of_saving_nothing_is_lost(times, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(times)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    killed, newest, left = map(int, done.stdout.split())
    assert killed == times and newest >= times and left <= 4
