"""A run that was stopped goes on bit for bit; checkpoints are whole whenever the process or the disk stops."""

import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn as torch_nn
from torch.utils.data import DataLoader, TensorDataset

from ppgen import decoders, files, models, nn, posteriors, priors
from ppgen.data.binarize import DynamicBinarization
from ppgen.inference import EM, SVI, Adversarial, elbo, fit, train, warmup
from ppgen.inference.adversarial import wasserstein_gp
from ppgen.inference.checkpoint import Checkpoints

X = torch.bernoulli(torch.full((50, 16), 0.4), generator=torch.Generator().manual_seed(0))
REAL = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
GREY = DynamicBinarization(torch.rand(50, 16, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(autouse=True)
def listening():
    """Ctrl-C has its usual meaning, also where the tests run in the background, and keeps it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


class Dropped(torch_nn.Module):
    """An encoder with batch normalisation and dropout."""

    def __init__(self):
        super().__init__()
        self.net = torch_nn.Sequential(
            torch_nn.Linear(16, 8),
            torch_nn.BatchNorm1d(8),
            torch_nn.ReLU(),
            torch_nn.Dropout(0.3),
            torch_nn.Linear(8, 4),
        )

    def forward(self, x):
        return self.net(x.float())


def vae():
    return models.VAE(priors.StandardNormal(2), decoders.Bernoulli(nn.MLP(2, 8, 16)), posteriors.DiagNormal(Dropped()))


def user():
    """A user's functions: their parameters appear at the first call, one of them constrained."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        loc = pyro.param("loc", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc * x.mean(-1), scale))

    return models.Custom(model, guide)


def vqvae():
    return models.VQVAE(
        nn.ResidualConvNet((1, 4, 4), (4, 2, 2), channels=4, num_blocks=1),
        nn.VectorQuantizer(5, 4),
        decoders.Bernoulli(nn.ResidualConvNet((4, 2, 2), (1, 4, 4), channels=4, num_blocks=1)),
    )


def gan():
    body = torch_nn.Sequential(torch_nn.Linear(2, 8), torch_nn.BatchNorm1d(8), torch_nn.ReLU(), torch_nn.Linear(8, 3))
    critic = nn.spectrally_normalized(nn.MLP(3, 8, 1))
    return models.GAN(priors.StandardNormal(2), body, critic)


class Stateful:
    """A loader that can say where it is, as torchdata's can: iterating begins anew, but after ``load_state_dict``."""

    def __init__(self, x):
        self.dataset, self.generator = x, torch.Generator().manual_seed(3)
        self.at, self.begun, self.loaded = 0, None, False

    def __len__(self):
        return -(-len(self.dataset) // 8)

    def __iter__(self):
        if self.loaded and self.at:
            self.generator.set_state(self.begun)
        else:
            self.at, self.begun = 0, self.generator.get_state()
        self.loaded = False
        order = torch.randperm(len(self.dataset), generator=self.generator).split(8)
        while self.at < len(order):
            self.at += 1
            yield self.dataset[order[self.at - 1]]
        self.at = 0

    def state_dict(self):
        return {"at": self.at, "begun": self.begun}

    def load_state_dict(self, state):
        self.at, self.begun, self.loaded = state["at"], state["begun"], True


def shuffled_in(sampler):
    """A loader whose order comes from a generator that only its sampler of batches knows."""
    order = sampler(X[:20], generator=torch.Generator().manual_seed(4))
    return DataLoader(TensorDataset(X[:20]), batch_sampler=torch.utils.data.BatchSampler(order, 8, False))


def svi(pair, compile=False, precision="float32", **settings):
    return SVI(pair, elbo(beta=warmup(3)), compile=compile, precision=precision)


# name: (what makes the step, its data, settings of train)
RUNS = {
    "SVI, early stopping": (lambda: svi(vae()), lambda: X, {"validation": X[:20], "patience": 2}),
    "SVI, compiled": (lambda: svi(vae(), compile=True), lambda: X, {}),
    "SVI, redrawn data": (lambda: svi(vae()), lambda: GREY, {}),
    "SVI, a user's functions": (lambda: svi(user()), lambda: REAL, {}),
    "SVI, SGD with momentum": (
        lambda: SVI(vae(), optimizer=lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9)),
        lambda: X,
        {},
    ),
    "SVI, a loss of Pyro's": (  # that guesses the nesting of plates in its first call
        lambda: SVI(vae(), pyro.infer.TraceEnum_ELBO()),
        lambda: X,
        {"validation": X[:20]},
    ),
    "SVI, a validation loader": (
        lambda: svi(vae()),
        lambda: X,
        {"validation": lambda: shuffled_in(torch.utils.data.RandomSampler)},
    ),
    "SVI, a loader with a state": (lambda: svi(vae()), lambda: Stateful(X), {}),
    "EM": (lambda: EM(models.GaussianMixture(2, 3), num_restarts=3, tolerance=1e-9), lambda: REAL, {}),
    "GAN": (lambda: Adversarial(gan(), wasserstein_gp(), critic_steps=3), lambda: REAL, {}),
    "VQ-VAE": (lambda: svi(vqvae()), lambda: X.reshape(-1, 1, 4, 4), {"validation": X[:20].reshape(-1, 1, 4, 4)}),
}
EPOCHS, BATCHES = 6, 7  # of 8 rows


def stopping(step, at, number=signal.SIGINT):
    """The step, sent a signal while it is at work for the at-th time."""
    made, inner = [], step.step

    def signalled(*batch):
        loss = inner(*batch)
        made.append(loss)
        if len(made) == at:
            signal.raise_signal(number)
        return loss

    step.step = signalled
    return step


def settings(name, folder=None, epochs=EPOCHS):
    own = {key: value() if callable(value) else value for key, value in RUNS[name][2].items()}
    return {"epochs": epochs, "batch_size": 8, "seed": 5, "progress": False, "checkpoint": folder, **own}


def run(name, folder=None, stop=None, **changed):
    """A run of the table, from the same start, maybe stopped within a step; its step and its history."""
    make, data, _ = RUNS[name]
    torch.manual_seed(1)
    step = make()
    step = step if stop is None else stopping(step, stop)
    return step, train(step, data(), **{**settings(name, folder), **changed})


def outcome(step, history):
    """All that a run leaves, as it is compared to the bit: parameters, buffers, optimiser, losses."""
    tensors = list(step.pair.state_dict().values())
    owners = [step.optimizer] if isinstance(step, SVI) else list(getattr(step, "optimizers", {}).values())
    for optimizer in owners:
        tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    losses = [history.loss, history.validation, list(history.monitors.values())]
    said = (losses, history.best_epoch, history.stopped_early)
    return [t.detach().cpu().reshape(-1).double().nan_to_num(1e300).tolist() for t in tensors], repr(said)


OFTEN = ("SVI, early stopping", "EM", "GAN", "VQ-VAE")  # stopped at 20 steps, the others at 5


def steps_to_stop_at(name):
    fast = 0 if name == "SVI, compiled" else 2
    drawn = random.Random(name).sample(range(1, EPOCHS * BATCHES), 20 if name in OFTEN else 5)
    return [pytest.param(name, at, marks=() if i < fast else pytest.mark.slow) for i, at in enumerate(drawn)]


@pytest.fixture(scope="module")
def whole():
    """Runs that were never stopped, each made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = outcome(*run(name))
        return made[name]

    return get


@pytest.mark.parametrize(("name", "at"), [case for name in RUNS for case in steps_to_stop_at(name)])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(name, at, whole, tmp_path):
    wanted = whole(name)
    try:
        run(name, tmp_path, stop=at)
    except KeyboardInterrupt:
        assert int(max(tmp_path.glob("[0-9]*")).name) == at
    else:
        assert "stopping" in name  # only early stopping can have ended it before that step
    assert outcome(*run(name, tmp_path)) == wanted


def test_checkpoints_leave_the_numbers_alone(whole, tmp_path):
    name = "SVI, early stopping"
    assert outcome(*run(name, tmp_path, checkpoint_every=0)) == whole(name)
    assert len(list(tmp_path.glob("[0-9]*"))) == 2 and not list(tmp_path.glob(".*"))


def test_a_run_that_has_ended_goes_on_to_more_epochs(whole, tmp_path):
    name = "SVI, redrawn data"
    run(name, tmp_path, epochs=4)
    assert outcome(*run(name, tmp_path)) == whole(name)
    assert outcome(*run(name, tmp_path)) == whole(name)  # and once more: nothing is left to do
    with pytest.raises(ValueError, match=r"epochs=4, but the run in .* has had 6"):
        run(name, tmp_path, epochs=4)


@pytest.mark.parametrize("first", ["as many epochs as it took", "more"])
def test_whether_a_run_stopped_early_is_told_for_the_epochs_that_were_asked_for(first, tmp_path):
    def go(epochs, folder=None):
        torch.manual_seed(1)
        step = SVI(vae(), optimizer=lambda p: torch.optim.Adam(p, lr=0.3))
        return train(step, X, epochs=epochs, validation=X[:20], patience=1, seed=5, progress=False, checkpoint=folder)

    least = len(go(50).loss)
    asked = [least, 50] if first != "more" else [50, least]
    assert [go(epochs, tmp_path).stopped_early for epochs in asked] == [epochs > least for epochs in asked]


class InPyrosStore:
    """A pair whose parameters are in Pyro's own store."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("mean", torch.zeros(())), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.1)) * x.mean(-1), scale))


@pytest.fixture
def _store():
    with pyro.get_param_store().scope():
        yield


@pytest.mark.usefixtures("_store")
def test_the_best_parameters_are_given_back_from_pyros_store_too(tmp_path):
    def go(folder=None, stop=None):
        pyro.get_param_store().clear()
        step = SVI(InPyrosStore(), optimizer=lambda p: torch.optim.Adam(p, lr=0.1))
        given = {"batch_size": 50, "validation": REAL[:20], "patience": 3, "seed": 1, "progress": False}
        history = train(step if stop is None else stopping(step, stop), REAL + 3, epochs=30, checkpoint=folder, **given)
        return step.evaluate(REAL[:20]).item(), history

    found, history = go()
    assert history.stopped_early and found == history.validation[history.best_epoch] < history.validation[-1]
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, stop=3)
    again, resumed = go(tmp_path)
    assert again == found and resumed.validation == history.validation


def test_numbers_of_numpy_and_a_home_are_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for epochs in (1, 2):
        counts = {"epochs": epochs, "batch_size": 25, "patience": 3, "seed": 5}
        whole_numbers = {name: np.int64(value) for name, value in counts.items()}
        train(
            SVI(vae()),
            X,
            validation=X,
            progress=False,
            checkpoint="~/runs",
            checkpoint_every=np.int64(60),
            **whole_numbers,
        )
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["000000000002", "000000000004"]


def test_a_second_run_is_kept_out_of_a_folder_in_use(tmp_path):
    step = SVI(vae())
    inner, refused = step.step, []

    def step_beside_another_run(*batch):
        with pytest.raises(ValueError, match=r"in use by another run: wait"):
            train(SVI(vae()), X, epochs=1, batch_size=25, seed=5, progress=False, checkpoint=tmp_path)
        refused.append(batch)
        return inner(*batch)

    step.step = step_beside_another_run
    train(step, X, epochs=1, batch_size=25, seed=5, progress=False, checkpoint=tmp_path)
    assert len(refused) == 2 and [p.name for p in tmp_path.iterdir()] == ["000000000002"]


@pytest.mark.parametrize("given", ["", 3, True])
def test_a_checkpoint_that_is_no_path_is_refused(given):
    with pytest.raises(TypeError, match=r"checkpoint must be the path of a folder"):
        train(SVI(vae()), X, epochs=1, checkpoint=given)


def test_what_else_is_in_the_folder_stays(tmp_path):
    (tmp_path / ".3rdparty").mkdir()
    (tmp_path / ".2fa").write_text("secret")
    (tmp_path / ".000000000001.77").mkdir()  # by a process that was killed while it wrote
    small(checkpoint=tmp_path)[1]()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".2fa", ".3rdparty", "000000000010"]


def test_a_loader_without_a_state_goes_on_at_the_beginning_of_its_epoch(tmp_path, caplog):
    def loader():
        return DataLoader(TensorDataset(X), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(2))

    torch.manual_seed(1)
    step = svi(vae())
    wanted = outcome(step, train(step, loader(), epochs=5, seed=5, progress=False))
    torch.manual_seed(1)
    step = stopping(svi(vae()), 17)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING):
        train(step, loader(), epochs=5, seed=5, progress=False, checkpoint=tmp_path)
    assert "no state_dict" in caplog.text and "000000000014" in caplog.text
    torch.manual_seed(1)
    step = svi(vae())
    assert outcome(step, train(step, loader(), epochs=5, seed=5, progress=False, checkpoint=tmp_path)) == wanted


def test_a_signal_before_anything_was_saved_says_so(tmp_path, caplog):
    loader = DataLoader(TensorDataset(X), batch_size=8)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING):
        train(stopping(svi(vae()), 2), loader, epochs=5, seed=5, progress=False, checkpoint=tmp_path)
    assert "nothing was saved yet" in caplog.text and "no state_dict" in caplog.text


def test_a_signal_in_a_step_that_then_fails_is_not_lost(tmp_path):
    """A Ctrl-C reaches the workers of a loader, too, which then fail the step."""
    step = svi(vae())

    def fails(*batch):
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("worker exited")

    step.step = fails
    with pytest.raises(KeyboardInterrupt):
        train(step, X, epochs=1, seed=5, progress=False, checkpoint=tmp_path)


def test_a_second_signal_does_not_wait_and_leaves_nothing_half_written(monkeypatch, tmp_path):
    def twice(path, content):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    monkeypatch.setattr("ppgen.inference.checkpoint.write_bytes", twice)
    with pytest.raises(KeyboardInterrupt):
        train(svi(vae()), X, epochs=1, seed=5, progress=False, checkpoint=tmp_path, checkpoint_every=0)
    assert not list(tmp_path.iterdir())


def test_sigterm_is_saved_for_too(tmp_path):
    stopped = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    try:
        torch.manual_seed(1)
        train(stopping(svi(vae()), 9, signal.SIGTERM), X, **settings("SVI, compiled", tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped == [signal.SIGTERM]  # whose handler lets the run go on
    assert sorted(p.name for p in tmp_path.glob("[0-9]*")) == ["000000000009", "000000000042"]


def test_a_thread_of_its_own_saves_without_signals(whole, tmp_path):
    name, done = "SVI, redrawn data", []
    worker = threading.Thread(target=lambda: done.append(outcome(*run(name, tmp_path))))
    worker.start()
    worker.join()
    assert done == [whole(name)] and list(tmp_path.glob("[0-9]*"))


@pytest.mark.slow
def test_fit_keeps_the_choice_to_compile_that_a_run_began_with(tmp_path):
    def fitted(**given):
        torch.manual_seed(1)
        return fit(vae(), X, batch_size=10, seed=5, progress=False, checkpoint=tmp_path, **given)

    assert fitted(epochs=2, compile=True).compiled
    assert fitted(epochs=4).compiled
    assert len(fitted(epochs=5, compile=False).loss) == 5 and fitted(epochs=6).compiled


# What does not belong to a run


def small(**changed):
    torch.manual_seed(1)
    given = {"epochs": 2, "batch_size": 10, "seed": 5, "progress": False, **changed}
    pair = given.pop("pair", None) or vae()
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


def test_a_step_without_a_state_is_refused_before_it_begins(tmp_path):
    class Plain:
        def step(self, x):
            raise AssertionError

    with pytest.raises(TypeError, match=r"Plain has no \.state_dict"):
        train(Plain(), X, epochs=1, checkpoint=tmp_path)


# Files


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
    (("pair", 0, "posterior.net.net.0.weight"), "x"),
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
from ppgen.inference.checkpoint import Checkpoints
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
from ppgen.inference.checkpoint import Checkpoints

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
