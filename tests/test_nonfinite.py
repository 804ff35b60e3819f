"""A loss or a gradient that is not finite never reaches a parameter or a buffer, however a model is trained."""

import copy
import logging
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn as tnn

from ppgen import decoders, models, nn, posteriors, priors
from ppgen.inference import EM, SVI, Adversarial, elbo, fit, iwae, train
from ppgen.inference.losses.adversarial import wasserstein_gp

NOISE = torch.Generator().manual_seed(0)
X = torch.randn(80, 4, generator=NOISE)
IMAGES = torch.rand(80, 1, 4, 4, generator=NOISE)
BITS = (X[:50] > 0).float()
HUGE = 1e37  # a number like any other, whose square is none


def net(inputs, outputs):
    return tnn.Sequential(tnn.Linear(inputs, 8), tnn.BatchNorm1d(8), tnn.Tanh(), tnn.Linear(8, outputs))


def vae(make=nn.MLP):
    return models.VAE(
        priors.StandardNormal(2), decoders.Normal(nn.MLP(2, 8, 4), 1.0), posteriors.DiagNormal(make(4, 4))
    )


def hierarchy():
    def q(inputs):
        return posteriors.DiagNormal(nn.GatedBranches(inputs, 8, 4))

    return models.HierarchicalVAE(
        priors.StandardNormal(2), [priors.DiagNormal(2, nn.MLP(2, 8, 4))],
        decoders.Normal(nn.GatedBranches([2, 2], 8, 4), 1.0), [q([4, 2]), posteriors.DiagNormal(nn.MLP(4, 8, 4))],
    )  # fmt: skip


def vqvae():
    return models.VQVAE(
        nn.ResidualConvNet((1, 4, 4), (3, 2, 2), channels=4, num_blocks=1),
        nn.VectorQuantizer(8, 3),
        decoders.Normal(nn.ResidualConvNet((3, 2, 2), (1, 4, 4), channels=4, num_blocks=1), 1.0),
    )


def gan():
    return models.GAN(priors.StandardNormal(2), net(2, 4), nn.MLP(4, 8, 1))


# A model, its step, and the data of it.
TRAINED = {
    "VAE": (vae, SVI, X),
    "VAE with batch normalisation": (lambda: vae(net), SVI, X),
    "VAE on the importance-weighted bound": (vae, lambda pair: SVI(pair, iwae(5)), X),
    "VAE with a closed form": (vae, lambda pair: SVI(pair, elbo(analytic_kl=True)), X),
    "two layers": (hierarchy, SVI, X),
    "VQ-VAE": (vqvae, SVI, IMAGES),
    "mixture by gradients": (lambda: models.GaussianMixture(2, 4), SVI, X),
    "GAN": (gan, Adversarial, X),
    "Wasserstein GAN": (gan, lambda pair: Adversarial(pair, wasserstein_gp()), X),
}


class Batches:
    """Batches of 20 in their order, some of them too large for arithmetic."""

    def __init__(self, x, bad=(), count=4):
        self.dataset = x
        self.batches = [b * HUGE if i in bad else b for i, b in enumerate(x.split(20)[:count])]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def state(pair):
    return {name: value.detach().clone() for name, value in pair.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("bad", [0, 2])
@pytest.mark.parametrize("name", TRAINED)
def test_the_run_stops_before_the_step_and_says_where(name, bad):
    make, step, x = TRAINED[name]
    torch.manual_seed(0)
    pair = make()
    good = copy.deepcopy(pair)
    start = state(pair)
    with pytest.raises(FloatingPointError) as error:
        train(step(pair), Batches(x, {bad}), epochs=2, seed=0, progress=False)
    message = str(error.value)
    assert f"batch {bad + 1} of 4" in message and f"step {bad + 1}" in message.lower()
    assert "ikely causes" in message
    assert ("discriminator" if "GAN" in name else "site") in message
    if bad:
        train(step(good), Batches(x, count=bad), epochs=1, seed=0, progress=False)
        assert same(state(pair), state(good))
    else:
        assert all(torch.equal(a, b) for a, b in zip(state(pair).values(), start.values(), strict=True))
    assert all(value.isfinite().all() for value in pair.state_dict().values())


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_not_finite_may_be_skipped_and_is_counted(name):
    make, step, x = TRAINED[name]
    torch.manual_seed(0)
    pair = make()
    history = train(step(pair), Batches(x, {1, 2}), epochs=3, seed=0, skip_nonfinite=True, progress=False)
    assert history.skipped == 6 and len(history.loss) == 3 and all(map(math.isfinite, history.loss))
    assert all(value.isfinite().all() for value in pair.state_dict().values())


class Failing(models.GaussianMixture):
    """A mixture whose E-step or M-step number `at` has no finite end."""

    def __init__(self, half, at):
        super().__init__(2, 4)
        self.half, self.at, self.calls = half, at, 0

    def expectation(self, *batch):
        found = super().expectation(*batch)
        self.calls += 1
        bad = self.half == "E" and self.calls == self.at
        return {**found, "log_likelihood": found["log_likelihood"] * math.nan} if bad else found

    def maximization(self, statistics):
        super().maximization(statistics)
        if self.half == "M" and self.calls == self.at:
            self.logits.fill_(math.nan)


@pytest.mark.parametrize(("half", "at"), [("E", 1), ("E", 4), ("M", 3), ("M", 4)])
def test_a_step_of_em_that_fails_changes_nothing(half, at):
    said = {"E": "log-likelihood is nan", "M": "would make logits not finite"}[half]
    torch.manual_seed(0)
    pair = Failing(half, at)
    good = copy.deepcopy(pair)
    start = state(pair)
    batches = Batches(X)
    with pytest.raises(FloatingPointError, match=rf"batch {at} of 4.*{said}.*Likely causes"):
        train(EM(pair, seed=0), batches, epochs=1, seed=0, progress=False)
    step = EM(good, seed=0)
    step.rate.bind(4)
    good.at = -1
    for batch in batches.batches[: at - 1]:
        step.step(batch)
    assert same(state(pair), state(good)) if at > 1 else same(state(pair), start)
    again = Failing(half, at)
    history = train(EM(again, seed=0), batches, epochs=3, seed=0, skip_nonfinite=True, progress=False)
    assert history.skipped == 1 and all(map(math.isfinite, history.loss))
    assert all(value.isfinite().all() for value in again.state_dict().values())


def test_an_epoch_of_which_nothing_is_finite_is_an_error():
    pair = vae()
    with pytest.raises(FloatingPointError, match="batch 4 of 4"):
        train(SVI(pair), Batches(X, {0, 1, 2, 3}), epochs=1, skip_nonfinite=True, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", ["VAE", "VAE with batch normalisation", "mixture by gradients"])
def test_compiled_steps_do_the_same(name, skip):
    make, _, x = TRAINED[name]
    torch.manual_seed(0)
    pair = make()
    good = copy.deepcopy(pair)
    settings = {"epochs": 1, "compile": True, "seed": 0, "progress": False}
    if skip:
        history = fit(pair, Batches(x, {1, 2}), skip_nonfinite=True, **settings)
        assert history.compiled and history.skipped == 2
    else:
        with pytest.raises(FloatingPointError, match=r"batch 3 of 4.*site.*Likely causes"):
            fit(pair, Batches(x, {2}), **settings)
        assert fit(good, Batches(x, count=2), **settings).compiled
        assert same(state(pair), state(good))
    assert all(value.isfinite().all() for value in pair.state_dict().values())


def test_a_validation_loss_that_is_not_finite_is_an_error():
    pair = vae()
    with pytest.raises(FloatingPointError, match=r"validation loss after epoch 1 is (inf|nan)"):
        fit(pair, X, validation=Batches(X, {3}), epochs=2, seed=0, progress=False)
    assert all(value.isfinite().all() for value in pair.state_dict().values())


class Breaking(tnn.Module):
    """A decoder that gives NaN for its calls numbered so."""

    def __init__(self, at):
        super().__init__()
        self.net, self.at, self.calls = nn.MLP(2, 8, 4), at, 0

    def forward(self, z):
        self.calls += self.training and torch.is_grad_enabled()
        return self.net(z) * (float("nan") if self.training and self.calls in self.at else 1.0)


def breaking(at):
    torch.manual_seed(1)
    return models.VAE(priors.StandardNormal(2), decoders.Bernoulli(Breaking(at)), posteriors.DiagNormal(net(4, 4)))


def test_a_step_that_is_not_finite_is_named_and_moves_nothing():
    good, bad = breaking([]), breaking([6])
    fit(good, BITS, epochs=1, batch_size=10, seed=5, progress=False)
    with pytest.raises(FloatingPointError, match=r"Epoch 2, batch 1 of 5 \(step 6\): .*the model's site 'x'.*Likely"):
        fit(bad, BITS, epochs=2, batch_size=10, seed=5, progress=False)
    for a, b in zip(good.state_dict().values(), bad.state_dict().values(), strict=True):
        assert torch.equal(a, b)  # buffers of batch normalisation, too


def test_steps_that_are_not_finite_can_be_skipped_and_are_counted(caplog):
    pair = breaking([3, 4, 8])
    with caplog.at_level(logging.WARNING):
        history = fit(pair, BITS, epochs=2, batch_size=10, seed=5, progress=False, skip_nonfinite=True)
    assert history.skipped == 3 and len(history.loss) == 2
    assert "Epoch 2, batch 3 of 5 (step 8) is skipped" in caplog.text
    assert all(value.isfinite().all() for value in pair.state_dict().values())
    with pytest.raises(FloatingPointError, match="batch 5 of 5"):  # a whole epoch of them is no training
        fit(breaking(range(1, 99)), BITS, epochs=2, batch_size=10, seed=5, progress=False, skip_nonfinite=True)


def test_buffers_that_the_first_step_left_as_they_were_are_given_back_too():
    """Batch normalisation behind a layer that begins at zero: its first mean is the one that it has."""
    torch.manual_seed(0)
    layer, norm = tnn.Linear(4, 4), tnn.BatchNorm1d(4)
    tnn.init.zeros_(layer.weight), tnn.init.zeros_(layer.bias)
    encoder = tnn.Sequential(layer, norm, tnn.Linear(4, 4))
    pair = models.VAE(priors.StandardNormal(2), decoders.Normal(nn.MLP(2, 4), 1.0), posteriors.DiagNormal(encoder))
    step = SVI(pair, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    step.step(X)
    assert not norm.running_mean.any()
    for _ in range(3):
        step.step(X)
    assert norm.running_mean.any()
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    with pytest.raises(FloatingPointError):
        step.step(X * HUGE)
    assert all(torch.equal(before[name], value) for name, value in pair.state_dict().items())


def test_a_gradient_that_is_not_finite_reaches_no_parameter():
    """The loss is finite: the square root has an infinite slope at 0."""

    class Pair(tnn.Module):
        def __init__(self):
            super().__init__()
            self.weight = tnn.Parameter(torch.zeros(()))

        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.weight.sqrt(), 1.0), obs=x)

        def guide(self, x):
            pass

    for compile in (False, True):
        pair = Pair()
        with pytest.raises(FloatingPointError, match="its gradient is not finite"):
            SVI(pair, compile=compile).step(torch.ones(3))
        assert pair.weight == 0
