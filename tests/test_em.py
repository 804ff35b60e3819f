"""EM: monotone on every model that has it, right on a published example; restarts, batches, tolerance."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import PCA
from torch import nn

from ppgen.inference import EM, log_likelihood, train
from ppgen.models import FactorAnalysis, GaussianMixture, ProbabilisticPCA

MODELS = {
    **{
        f"mixture, {kind}": lambda dim, kind=kind: GaussianMixture(3, dim, kind, reg_covar=1e-9).double()
        for kind in ("full", "tied", "diag", "spherical")
    },
    "factor analysis": lambda dim: FactorAnalysis(dim, 1).double(),
    "probabilistic PCA": lambda dim: ProbabilisticPCA(dim, 1).double(),
}


def blobs(num_rows=600, dim=3, seed=0, spread=5.0):
    generator = torch.Generator().manual_seed(seed)
    centres = spread * torch.randn(3, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (num_rows,), generator=generator)
    return centres[labels] + torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), dim=st.integers(1, 5), num_rows=st.integers(60, 120), spread=st.floats(0.0, 20.0))
def test_the_loss_never_rises(name, masked, seed, dim, num_rows, spread):
    x = blobs(num_rows, dim, seed, spread)
    batch = (x, torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.8) if masked else (x,)
    step = EM(MODELS[name](dim), seed=seed)
    losses = [step.step(*batch).item() for _ in range(25)]
    assert all(later <= earlier + 1e-8 for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < losses[0] + 1e-8


@pytest.mark.parametrize("name", MODELS)
def test_a_step_gives_the_loss_before_it(name):
    x = blobs()
    model = MODELS[name](3)
    model.initialize(x)
    before = log_likelihood(model, x, num_samples=1).mean
    step = EM(model, num_restarts=0)
    assert step.evaluate(x).item() == pytest.approx(-before, abs=1e-9)
    assert step.step(x).item() == pytest.approx(-before, abs=1e-9)
    assert step.evaluate(x) < -before + 1e-9


class TwoCoins(nn.Module):
    """Which of two coins made each series of tosses is not known, and both are as probable."""

    def __init__(self, probs):
        super().__init__()
        self.probs = nn.Parameter(torch.tensor(probs, dtype=torch.float64))

    def initialize(self, heads, tails, generator=None):
        self.probs.copy_(torch.rand(2, generator=generator))

    def expectation(self, heads, tails):
        log_joint = heads[:, None] * self.probs.log() + tails[:, None] * (1 - self.probs).log() - math.log(2)
        share = log_joint.softmax(-1)
        return {
            "heads": (share * heads[:, None]).mean(0),
            "tosses": (share * (heads + tails)[:, None]).mean(0),
            "log_likelihood": log_joint.logsumexp(-1).mean(),
        }

    def maximization(self, statistics):
        self.probs.copy_(statistics["heads"] / statistics["tosses"])


def test_a_published_example():
    # What is the expectation maximization algorithm? (Do & Batzoglou, 2008), figure 1
    heads = torch.tensor([5.0, 9.0, 8.0, 4.0, 7.0])
    coins = TwoCoins([0.6, 0.5])
    step = EM(coins, num_restarts=0)
    step.step(heads, 10 - heads)
    assert coins.probs.tolist() == pytest.approx([0.71, 0.58], abs=5e-3)
    for _ in range(9):
        step.step(heads, 10 - heads)
    assert coins.probs.tolist() == pytest.approx([0.80, 0.52], abs=5e-3)


def test_train_takes_a_model_of_ones_own():
    heads = torch.distributions.Binomial(20, torch.tensor([0.2, 0.9]).repeat(100)).sample()
    coins = TwoCoins([0.5, 0.5])
    history = train(EM(coins, seed=0), (heads, 20 - heads), epochs=50, batch_size=200, progress=False)
    assert sorted(coins.probs.tolist()) == pytest.approx([0.2, 0.9], abs=0.03)
    assert history.loss[-1] < history.loss[0]


class Immovable(nn.Module):
    """A model that stays where it starts, and is the worse the farther from zero that is."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.tensor(10.0))

    def initialize(self, x, generator=None):
        self.place.copy_(torch.randn((), generator=generator))

    def expectation(self, x):
        return {"log_likelihood": -self.place.square()}

    def maximization(self, statistics):
        assert not statistics


@pytest.mark.parametrize("num_restarts", [0, 1, 2, 7])
def test_the_best_of_several_starts_goes_on(num_restarts):
    generator = torch.Generator().manual_seed(5)
    starts = [torch.randn((), generator=generator) for _ in range(num_restarts)]
    model = Immovable()
    loss = EM(model, num_restarts=num_restarts, seed=5).step(torch.zeros(3))
    assert model.place == min(starts, key=abs, default=10.0)
    assert loss == model.place.square()


def test_restarts_are_worth_their_time():
    x = torch.as_tensor(PCA(6).fit_transform(load_digits().data[:400]))

    def loss(num_restarts, seed):
        step = EM(GaussianMixture(8, 6).double(), num_restarts=num_restarts, seed=seed)
        return train(step, x, epochs=25, batch_size=len(x), seed=0, progress=False).loss[-1]

    single = [loss(1, seed) for seed in range(8)]
    several = loss(8, 0)
    assert loss(8, 0) == several  # the seed decides
    assert several < sum(single) / len(single)


def test_tolerance_ends_training():
    x = blobs()
    step = EM(GaussianMixture(3, 3).double(), tolerance=1e-5, seed=0)
    history = train(step, x, epochs=500, batch_size=len(x), seed=0, progress=False)
    assert step.converged and history.stopped_early and len(history.loss) < 500
    assert history.loss[-2] - history.loss[-1] < 1e-5 <= history.loss[-3] - history.loss[-2]
    steady = EM(GaussianMixture(3, 3).double(), seed=0)
    history = train(steady, x, epochs=60, batch_size=len(x), seed=0, progress=False)
    assert not steady.converged and not history.stopped_early and len(history.loss) == 60


def test_tolerance_looks_at_whole_epochs():
    x = blobs(900)
    step = EM(GaussianMixture(3, 3).double(), tolerance=1e-3, seed=0)
    history = train(step, x, epochs=200, batch_size=100, seed=0, progress=False)
    assert step.converged and 2 < len(history.loss) < 200
    assert abs(history.loss[-1] - history.loss[-2]) < 1e-3


def test_validation_and_patience():
    x, validation = blobs(300, seed=1), blobs(200, seed=1)
    model = GaussianMixture(3, 3).double()
    options = {"epochs": 200, "batch_size": len(x), "seed": 0, "progress": False}
    history = train(EM(model, seed=0), x, validation=validation, patience=3, **options)
    assert history.best_epoch is not None
    assert -model.score(validation) == pytest.approx(min(history.validation), abs=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_stepwise_em_needs_fewer_passes(name):
    x = blobs(6000, spread=3.0)
    exact, stepwise = MODELS[name](3), MODELS[name](3)
    train(EM(exact, seed=0), x, epochs=100, batch_size=len(x), seed=0, progress=False)
    train(EM(stepwise, seed=0), x, epochs=5, batch_size=250, seed=0, progress=False)
    optimum = -EM(exact).evaluate(x)
    assert -EM(stepwise).evaluate(x) == pytest.approx(optimum.item(), abs=0.02)


def test_one_odd_row_in_a_batch_of_its_own_moves_little():
    x = torch.cat([blobs(1000), torch.full((1, 3), 50.0, dtype=torch.float64)])
    model = GaussianMixture(3, 3).double()
    step = EM(model, seed=0)
    step.rate.bind(5)
    for batch in x.split(250):
        before = model.loc.detach().clone()
        step.step(batch)
    assert (model.loc - before).abs().max() < 1.0


def test_a_batch_smaller_than_the_model_waits_for_others():
    x = torch.as_tensor(load_iris().data)
    model = GaussianMixture(3, 4).double()
    train(EM(model, seed=0), x, epochs=20, batch_size=10, seed=0, progress=False)
    exact = GaussianMixture(3, 4).double()
    train(EM(exact, seed=0), x, epochs=100, batch_size=len(x), seed=0, progress=False)
    assert model.score(x) > exact.score(x) - 0.5
    assert bool((torch.linalg.eigvalsh(model.covariances) > 1e-4).all())


@pytest.mark.parametrize("name", MODELS)
def test_data_that_are_not_finite_change_nothing(name):
    x = blobs()
    model = MODELS[name](3)
    step = EM(model, seed=0)
    step.step(x)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match="nothing was updated"):
        step.step(torch.where(x > x.max() - 1, torch.nan, x))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_incomplete_rows_are_a_batch_of_two():
    x = blobs()
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    model = GaussianMixture(3, 3).double()
    train(EM(model, seed=0), (x.where(mask, 0), mask), epochs=50, batch_size=len(x), seed=0, progress=False)
    complete = GaussianMixture(3, 3).double()
    train(EM(complete, seed=0), x, epochs=50, batch_size=len(x), seed=0, progress=False)
    assert model.score(x) > complete.score(x) - 0.05


@pytest.mark.parametrize(
    ("make", "error", "facts"),
    [
        (lambda: EM(nn.Linear(2, 2)), TypeError, ["initialize", "Linear", "fit"]),
        (lambda: EM(GaussianMixture(2, 2), num_restarts=-1), ValueError, ["num_restarts", "-1"]),
        (lambda: EM(GaussianMixture(2, 2), num_restarts=1.5), ValueError, ["num_restarts", "1.5"]),
        (lambda: EM(GaussianMixture(2, 2), tolerance=-1.0), ValueError, ["tolerance", "-1.0"]),
        (lambda: EM(GaussianMixture(2, 2), tolerance=math.nan), ValueError, ["tolerance", "nan"]),
    ],
)
def test_errors_name_what_is_wrong(make, error, facts):
    with pytest.raises(error) as raised:
        make()
    for fact in facts:
        assert fact in str(raised.value)
