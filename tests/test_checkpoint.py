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
    """A loader that can say where it is, as torchdata's can."""

    def __init__(self, x):
        self.dataset, self.generator, self.at, self.begun = x, torch.Generator().manual_seed(3), 0, None

    def __len__(self):
        return -(-len(self.dataset) // 8)

    def __iter__(self):
        if self.at == 0:
            self.begun = self.generator.get_state()
        else:
            self.generator.set_state(self.begun)
        order = torch.randperm(len(self.dataset), generator=self.generator).split(8)
        while self.at < len(order):
            self.at += 1
            yield self.dataset[order[self.at - 1]]
        self.at = 0

    def state_dict(self):
        return {"at": self.at % len(self), "begun": self.begun}

    def load_state_dict(self, state):
        self.at, self.begun = state["at"], state["begun"]


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
    return {"epochs": epochs, "batch_size": 8, "seed": 5, "progress": False, "checkpoint": folder, **RUNS[name][2]}


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


def steps_to_stop_at(name):
    fast = 2 if name not in ("SVI, compiled",) else 1
    drawn = random.Random(name).sample(range(1, EPOCHS * BATCHES), 20)
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
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_checkpoints_leave_the_numbers_alone(whole, tmp_path):
    name = "SVI, early stopping"
    assert outcome(*run(name, tmp_path, checkpoint_every=0)) == whole(name)
    assert len(list(tmp_path.glob("[0-9]*"))) == 2 and not list(tmp_path.glob(".*"))
