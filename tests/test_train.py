"""The training loop: schedules, early stopping, data of every kind, and what it refuses."""

import functools
import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from parts import small_vae
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ppgen import nn as networks
from ppgen.inference import SVI, elbo, fit, train, warmup
from ppgen.inference.execution.batches import Rows, Shuffled
from ppgen.inference.losses.loss import as_loss
from ppgen.models import Custom
from ppgen.pair import data_plate

X = torch.bernoulli(torch.full((60, 16), 0.4), generator=torch.Generator().manual_seed(0))


def test_schedules_count_steps_and_epochs():
    loss = elbo(beta=warmup(2))
    fit(small_vae(), X, loss=loss, epochs=1, batch_size=20, progress=False)
    assert loss.beta.value.item() == pytest.approx(0.5)
    other = elbo(beta=warmup(2))
    other.beta.bind(3)
    other.load_state_dict(loss.state_dict())
    assert int(other.beta.count) == 3 and not other.beta.done
    pair, before = small_vae(), small_vae().state_dict()
    with pytest.raises(ValueError, match=r"warmup\(epochs=2\) does not know"):
        SVI(pair, elbo(beta=warmup(2))).step(X)
    assert all(torch.equal(before[name], value) for name, value in pair.state_dict().items())
    with pytest.raises(ValueError, match="got epochs=1, steps=2"):
        warmup(1, steps=2)


annealed = elbo(beta=warmup(steps=4))  # of this module


def test_a_warm_up_that_would_stand_still_is_refused_and_one_in_use_goes_on_aloud(caplog):
    objective, beta = elbo(beta=warmup(steps=4)), warmup(steps=4)

    def by_a_loss(model, guide, *batch):
        return objective(model, guide, *batch)

    def by_itself(model, guide, *batch):
        return beta() * elbo()(model, guide, *batch)

    def of_the_same_name(model, guide, *batch):
        found = SimpleNamespace(annealed=elbo()(model, guide, *batch))  # an attribute called as a global is
        return found.annealed + later

    assert as_loss(of_the_same_name) is of_the_same_name
    later = 0  # bound only now
    pair = small_vae()
    assert of_the_same_name(pair.model, pair.guide, X).isfinite()
    for loss, name in ((by_a_loss, "objective"), (by_itself, "beta")):
        with pytest.raises(ValueError, match=rf"{loss.__name__} uses the warm-up in '{name}'.*nn\.Module"):
            fit(small_vae(), X, loss=loss, epochs=1, progress=False)
    fit(small_vae(), X, loss=objective, epochs=1, batch_size=20, progress=False)
    assert not caplog.records
    fit(small_vae(), X, loss=objective, epochs=1, batch_size=20, progress=False)
    assert "0.0 to 1.0 in 4 steps has been through 3 steps, and goes on there" in caplog.text
    assert objective.beta().item() == 1.0


def test_validation_looks_at_the_unannealed_objective_with_fixed_noise():
    pair = small_vae()
    step = SVI(pair, elbo(beta=warmup(steps=100)))
    first = step.evaluate(X)
    assert torch.equal(first, step.evaluate(X)) and step.loss.beta.value.item() == 0.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert first.item() == pytest.approx(elbo()(pair.model, pair.guide, X).item(), rel=1e-6)


def test_early_stopping_gives_the_best_parameters_back():
    class Worse:
        """Wanders off: validation gets worse after the second epoch."""

        def __init__(self):
            self.pair = nn.Linear(1, 1, bias=False)
            self.pair.weight.data.fill_(-1.0)

        def step(self, *batch):
            self.pair.weight.data += 0.5
            return torch.zeros(())

        def evaluate(self, *batch, seed):
            return self.pair.weight.detach().abs().squeeze()

    step = Worse()
    history = train(step, torch.zeros(4, 1), epochs=20, validation=torch.zeros(4, 1), patience=3, progress=False)
    assert history.validation[:3] == [0.5, 0.0, 0.5] and history.stopped_early
    assert len(history.loss) == 5 and history.best_epoch == 1
    assert step.pair.weight.item() == 0.0


def test_patience_waits_for_the_schedule():
    history = fit(
        small_vae(), X, loss=elbo(beta=warmup(5)), epochs=8, validation=X, patience=1, progress=False, seed=0
    )  # fmt: skip
    assert len(history.loss) > 5 or history.best_epoch >= 4


def test_the_same_seed_gives_the_same_result_and_the_generators_back():
    state = torch.get_rng_state()
    pairs = [small_vae(), small_vae()]
    torch.set_rng_state(state)
    first = fit(pairs[0], X, epochs=2, seed=3, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    second = fit(pairs[1], X, epochs=2, seed=3, progress=False)
    assert first.loss == second.loss
    assert all(torch.equal(p, q) for p, q in zip(pairs[0].parameters(), pairs[1].parameters(), strict=True))


@pytest.mark.parametrize("data", [X, X.numpy(), (X,), DataLoader(TensorDataset(X), 20, shuffle=True)])
def test_data_of_every_kind(data):
    history = fit(
        small_vae(), data, epochs=30, batch_size=20, progress=False, optimizer=lambda p: torch.optim.Adam(p, 1e-2)
    )
    assert history.loss[-1] < history.loss[0]


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (torch.full((60, 16), 0.5), ["datum 0", "'x'", "Bernoulli", "Binarise"]),
        (torch.where(torch.arange(60) == 59, math.nan, 0.0).unsqueeze(-1).expand(60, 16), ["nan", "(59, 0)"]),
        (torch.zeros(60, 5), ["5", "16"]),
        (torch.zeros(0, 16), ["empty"]),
        ((X, torch.zeros(3, 2)), ["differ in length", "[60, 3]"]),
        (DataLoader(TensorDataset(torch.full((60, 16), 0.5)), 20), ["'x'", "Bernoulli"]),
        ([[1, 2], [3, 4]], ["list"]),
    ],
)
def test_bad_data_leave_the_parameters_as_they_were(data, facts):
    pair = small_vae()
    before = [p.detach().clone() for p in pair.parameters()]
    with pytest.raises((ValueError, TypeError)) as error:
        fit(pair, data, epochs=1, progress=False)
    for fact in facts:
        assert fact in str(error.value)
    assert all(torch.equal(p, q) for p, q in zip(pair.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"epochs": 0}, "epochs must be a positive whole number, got 0"),
        ({"epochs": 1, "batch_size": 1.5}, "batch_size must be a positive whole number, got 1.5"),
        ({"epochs": 1, "patience": 3}, "patience=3 needs validation data"),
        ({"epochs": 1, "optimizer": 0.1}, "optimizer must be a torch optimiser"),
        ({"epochs": 1, "loss": "elbo"}, "loss must be a function"),
    ],
)
def test_bad_settings_are_named(options, fact):
    with pytest.raises((ValueError, TypeError), match=fact):
        fit(small_vae(), X, progress=False, **options)


def test_a_loss_that_is_not_finite_updates_nothing_and_names_the_site():
    pair = small_vae()
    with torch.no_grad():
        pair.posterior.net.output.bias[0] = math.nan
    before = [p.detach().clone() for p in pair.parameters()]
    with pyro.validation_enabled(False), pytest.raises(FloatingPointError, match="the guide's site 'z'"):
        SVI(pair).step(X)
    assert all(torch.equal(p, q) or p.isnan().any() for p, q in zip(pair.parameters(), before, strict=True))


def test_a_parameter_that_appears_late_is_an_error():
    calls = []

    def model(x):
        calls.append(1)
        loc = pyro.param("late", torch.tensor(0.0)) if len(calls) > 2 else pyro.param("early", torch.tensor(0.0))
        with data_plate(x):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    step = SVI(Custom(model, lambda x: None))
    with pytest.raises(ValueError, match="'late' appeared only after the first step"):
        for _ in range(3):
            step.step(torch.randn(5))


def test_the_order_of_rows_is_where_they_are_before_the_first_batch():
    """On a GPU an index of the host's would be copied batch by batch, and each copy waits for the device."""

    class Member:
        def __init__(self):
            self.places = []

        def __len__(self):
            return 25

        def __getitem__(self, index):
            self.places.append(index.device.type)
            return torch.zeros(len(index))

    member = Member()
    rows = Rows((member,))
    order = torch.Generator().manual_seed(0)
    assert len(list(Shuffled(rows, 10, order))) == 3 and member.places == ["cpu"] * 3
    rows.place = torch.device("meta")
    list(Shuffled(rows, 10, order))
    assert member.places[3:] == ["meta"] * 3


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def by_hand(x):
    loc = pyro.param("loc", torch.zeros(len(x)))
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.5))


def subsampled(x):
    with pyro.plate("data", 40, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def by_index(x):
    loc = pyro.param("loc", torch.zeros(40))
    with pyro.plate("data", 40, subsample_size=len(x)) as i:
        pyro.sample("z", dist.Normal(loc[i], 0.5))


PER_ROW = [(local, functools.partial(guide, local)) for guide in (AutoNormal, AutoDelta, AutoDiagonalNormal)]
PER_ROW += [(local, lambda: by_hand), (subsampled, lambda: by_index)]


@pytest.mark.parametrize("model, guide", PER_ROW)
def test_parameters_of_each_row_are_trained_in_one_batch_and_refused_in_several(model, guide):
    x = 2 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    pair = Custom(model, guide())
    fit(pair, x, epochs=40, batch_size=40, optimizer=lambda p: torch.optim.Adam(p, lr=0.1), seed=0, progress=False)
    trace = pyro.poutine.trace(pair.guide).get_trace(x)
    z = trace.nodes["z"]["value"] if model is local else trace.nodes["z"]["fn"].mean
    assert torch.corrcoef(torch.stack([z, x]))[0, 1] > 0.8
    for data in (x, DataLoader(TensorDataset(x), batch_size=20)):
        with pytest.raises(ValueError, match=r"parameters for each row of the data \(.*batch_size=len\(data\)"):
            fit(Custom(model, guide()), data, epochs=1, batch_size=20, progress=False)


def test_parameters_that_are_as_many_as_rows_by_chance_are_trained():
    """Units of a hidden layer, classes of an embedding and components of a mixture."""
    net, embedding = networks.MLP(1, 20, 1), nn.Embedding(20, 1)
    x = torch.randn(40)

    def of_classes(x, k):
        local(x)

    def amortised(x, k=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((net(x[:, None]) if k is None else embedding(k))[:, 0], 1.0))

    def mixture(x):
        with pyro.plate("components", 20):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean.mean(), 1.0), obs=x)

    pairs = [
        (Custom(local, amortised, net=net), x),
        (Custom(of_classes, amortised, net=embedding), (x, torch.arange(40) % 20)),
        (Custom(mixture, AutoNormal(mixture)), x),
        (Custom(mixture, AutoDiagonalNormal(mixture)), x),
    ]
    pairs = [(pair, data, 20) for pair, data in pairs] + [(Custom(local, amortised, net=net), x[:3], 1)]
    for pair, data, batch_size in pairs:
        fit(pair, data, epochs=1, batch_size=batch_size, progress=False)
        before = [p.detach().clone() for p in pair.parameters()]
        fit(pair, data, epochs=1, batch_size=batch_size, progress=False)
        assert any(not torch.equal(old, new) for old, new in zip(before, pair.parameters(), strict=True))
