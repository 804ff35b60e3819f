"""What training reaches: nothing that the loss needs stays as it is in silence, and nothing else moves."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from parts import small_vae
from torch import nn
from torch.utils.data import DataLoader

from ppgen import decoders, models, posteriors, priors
from ppgen import nn as networks
from ppgen.inference import elbo, fit, train, warmup

X = torch.bernoulli(torch.full((60, 16), 0.4), generator=torch.Generator().manual_seed(0))


class Bare:
    """A pair with a parameter that no network of it holds."""

    def __init__(self):
        self.net = nn.Linear(1, 1)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, self.log_scale.exp()), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x[:, None])[:, 0], 1.0))


def test_a_parameter_that_nobody_would_train_is_refused():
    bare = Bare()
    with pytest.raises(ValueError, match=r"a parameter of shape \(\), which the pair does not hold .* nn\.Module"):
        fit(bare, torch.randn(20), epochs=1, progress=False)
    bare.log_scale.requires_grad_(False)
    fit(bare, torch.randn(20), epochs=1, progress=False)


def test_what_is_frozen_stays_whatever_gradients_it_has():
    pair = small_vae()
    loss = elbo()
    loss(pair.model, pair.guide, X).backward()
    pair.decoder.requires_grad_(False)
    before = [p.clone() for p in pair.decoder.parameters()]
    fit(pair, X, epochs=2, optimizer=torch.optim.Adam(pair.parameters(), lr=0.1), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, pair.decoder.parameters(), strict=True))


class Callable:
    def __init__(self, beta):
        self.objective = elbo(beta=beta)

    def __call__(self, model, guide, *batch):
        return self.objective(model, guide, *batch)


@pytest.mark.parametrize("kind", ["an object", "a partial", "a method"])
def test_a_warm_up_that_would_stay_at_its_start_is_refused(kind):
    of = {
        "an object": lambda beta: Callable(beta),
        "a partial": lambda beta: functools.partial(lambda loss, *program: loss(*program), elbo(beta=beta)),
        "a method": lambda beta: Callable(beta).__call__,
    }[kind]
    with pytest.raises(ValueError, match=r"the warm-up from 0.0 to 1.0 in 3 steps, which training would not advance"):
        fit(small_vae(), X, epochs=1, loss=of(warmup(steps=3)), progress=False)
    fit(small_vae(), X, epochs=1, loss=of(1.0), progress=False)


def test_a_warm_up_goes_on_where_it_was_with_batches_of_another_size():
    loss, pair = elbo(beta=warmup(10)), small_vae()
    fit(pair, X, epochs=5, batch_size=10, loss=loss, progress=False)
    fit(pair, X, epochs=1, batch_size=5, loss=loss, progress=False)
    assert loss.beta().item() == pytest.approx(0.6)


class Counted(nn.Module):
    """A buffer that is assigned anew."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(X.shape[1], 4)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.steps = self.steps + 1
        return self.layer(x)


def test_runs_that_do_not_count_leave_buffers_that_are_assigned_anew():
    pair = models.VAE(
        priors.StandardNormal(2), decoders.Bernoulli(networks.MLP(2, X.shape[1])), posteriors.DiagNormal(Counted())
    )
    fit(pair, X, epochs=2, batch_size=10, progress=False)
    assert pair.posterior.net.steps == 2 * len(X) / 10


class Failing:
    """A step of somebody's own, of which some losses are not finite."""

    def __init__(self, bad):
        self.bad, self.steps = bad, 0

    def step(self, x):
        self.steps += 1
        return torch.tensor(float("nan") if self.steps in self.bad else 1.0)


def test_losses_of_any_step_are_looked_at():
    batches = len(X) // 10
    with pytest.raises(FloatingPointError, match="Epoch 1, batches 2, 3 of"):
        train(Failing([2, 3]), X, epochs=1, batch_size=10, progress=False)
    history = train(Failing([2, 3]), X, epochs=1, batch_size=10, progress=False, skip_nonfinite=True)
    assert history.loss == [1.0] and history.skipped == 2
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        train(Failing(range(batches + 1)), X, epochs=1, batch_size=10, progress=False, skip_nonfinite=True)


def test_a_loader_without_a_length_is_refused_in_words():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(X)

    with pytest.raises(TypeError, match=r"does not know how many batches .*give its IterableDataset a __len__"):
        fit(small_vae(), DataLoader(Stream(), batch_size=10), epochs=1, progress=False)
