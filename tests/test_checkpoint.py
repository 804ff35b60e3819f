"""A run that was stopped goes on bit for bit, and what signals, threads and other runs of the folder meet."""

import logging
import random
import signal
import threading

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from parts import normalised
from torch import nn as torch_nn
from torch.utils.data import DataLoader, TensorDataset

from ppgen import decoders, models, nn, priors
from ppgen.data.binarize import DynamicBinarization
from ppgen.inference import EM, SVI, Adversarial, elbo, fit, train, warmup
from ppgen.inference.execution.distributed import MissingProcess
from ppgen.inference.losses.adversarial import wasserstein_gp
from ppgen.inference.training import checkpoint

X = torch.bernoulli(torch.full((50, 16), 0.4), generator=torch.Generator().manual_seed(0))
REAL = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
GREY = DynamicBinarization(torch.rand(50, 16, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(autouse=True)
def listening():
    """Ctrl-C has its usual meaning, also where the tests run in the background, and keeps it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


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
    "SVI, early stopping": (lambda: svi(normalised()), lambda: X, {"validation": X[:20], "patience": 2}),
    "SVI, compiled": (lambda: svi(normalised(), compile=True), lambda: X, {}),
    "SVI, redrawn data": (lambda: svi(normalised()), lambda: GREY, {}),
    "SVI, a user's functions": (lambda: svi(user()), lambda: REAL, {}),
    "SVI, SGD with momentum": (
        lambda: SVI(normalised(), optimizer=lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9)),
        lambda: X,
        {},
    ),
    "SVI, a loss of Pyro's": (  # that guesses the nesting of plates in its first call
        lambda: SVI(normalised(), pyro.infer.TraceEnum_ELBO()),
        lambda: X,
        {"validation": X[:20]},
    ),
    "SVI, a validation loader": (
        lambda: svi(normalised()),
        lambda: X,
        {"validation": lambda: shuffled_in(torch.utils.data.RandomSampler)},
    ),
    "SVI, a loader with a state": (lambda: svi(normalised()), lambda: Stateful(X), {}),
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
        step = SVI(normalised(), optimizer=lambda p: torch.optim.Adam(p, lr=0.3))
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
            SVI(normalised()),
            X,
            validation=X,
            progress=False,
            checkpoint="~/runs",
            checkpoint_every=np.int64(60),
            **whole_numbers,
        )
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["000000000002", "000000000004"]


def test_a_second_run_is_kept_out_of_a_folder_in_use(tmp_path):
    step = SVI(normalised())
    inner, refused = step.step, []

    def step_beside_another_run(*batch):
        with pytest.raises(ValueError, match=r"in use by another run: wait"):
            train(SVI(normalised()), X, epochs=1, batch_size=25, seed=5, progress=False, checkpoint=tmp_path)
        refused.append(batch)
        return inner(*batch)

    step.step = step_beside_another_run
    train(step, X, epochs=1, batch_size=25, seed=5, progress=False, checkpoint=tmp_path)
    assert len(refused) == 2 and [p.name for p in tmp_path.iterdir()] == ["000000000002"]


def test_a_lock_whose_file_is_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    flock, locked = checkpoint.fcntl.flock, []

    def removed_by_its_last_holder(file, how):
        if not locked:
            (tmp_path / ".lock").unlink()
        locked.append(file)
        flock(file, how)

    monkeypatch.setattr(checkpoint.fcntl, "flock", removed_by_its_last_holder)
    with checkpoint.Checkpoints(tmp_path).alone():
        assert len(locked) == 2
        with pytest.raises(ValueError, match="in use by another run"), checkpoint.Checkpoints(tmp_path).alone():
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["", 3, True])
def test_a_checkpoint_that_is_no_path_is_refused(given):
    with pytest.raises(TypeError, match=r"checkpoint must be the path of a folder"):
        train(SVI(normalised()), X, epochs=1, checkpoint=given)


def test_a_loader_without_a_state_goes_on_at_the_beginning_of_its_epoch(tmp_path, caplog):
    def loader():
        return DataLoader(TensorDataset(X), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(2))

    torch.manual_seed(1)
    step = svi(normalised())
    wanted = outcome(step, train(step, loader(), epochs=5, seed=5, progress=False))
    torch.manual_seed(1)
    step = stopping(svi(normalised()), 17)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING):
        train(step, loader(), epochs=5, seed=5, progress=False, checkpoint=tmp_path)
    assert "no state_dict" in caplog.text and "000000000014" in caplog.text
    torch.manual_seed(1)
    step = svi(normalised())
    assert outcome(step, train(step, loader(), epochs=5, seed=5, progress=False, checkpoint=tmp_path)) == wanted


def test_a_signal_before_anything_was_saved_says_so(tmp_path, caplog):
    loader = DataLoader(TensorDataset(X), batch_size=8)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING):
        train(stopping(svi(normalised()), 2), loader, epochs=5, seed=5, progress=False, checkpoint=tmp_path)
    assert "nothing was saved yet" in caplog.text and "no state_dict" in caplog.text


def test_a_signal_in_a_step_that_then_fails_is_not_lost(tmp_path):
    """A Ctrl-C reaches the workers of a loader, too, which then fail the step."""
    step = svi(normalised())

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

    monkeypatch.setattr("ppgen.inference.training.checkpoint.write_bytes", twice)
    with pytest.raises(KeyboardInterrupt):
        train(svi(normalised()), X, epochs=1, seed=5, progress=False, checkpoint=tmp_path, checkpoint_every=0)
    assert not list(tmp_path.iterdir())


def test_sigterm_is_saved_for_too(tmp_path):
    stopped = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    try:
        torch.manual_seed(1)
        train(stopping(svi(normalised()), 9, signal.SIGTERM), X, **settings("SVI, compiled", tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped == [signal.SIGTERM]  # whose handler lets the run go on
    assert sorted(p.name for p in tmp_path.glob("[0-9]*")) == ["000000000009", "000000000042"]


def test_a_process_that_misses_another_says_so_before_the_launcher_ends_it(tmp_path):
    heard = []

    class Missing(SVI):
        def step(self, *batch):
            signal.raise_signal(signal.SIGTERM)
            raise MissingProcess("waited in vain")

    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(MissingProcess, match="waited in vain"):
            train(Missing(normalised()), X, epochs=1, seed=5, progress=False, checkpoint=tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not heard


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
        return fit(normalised(), X, batch_size=10, seed=5, progress=False, checkpoint=tmp_path, **given)

    assert fitted(epochs=2, compile=True).compiled
    assert fitted(epochs=4).compiled
    assert len(fitted(epochs=5, compile=False).loss) == 5 and fitted(epochs=6).compiled
