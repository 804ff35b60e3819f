"""Sequences: a latent a step, several lengths, masks and annealing, packed rows, chains that are summed out."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro_examples import DMM, Z, backwards, cases, pair_of
from torch import nn

from ppgen.compare import compare
from ppgen.inference import (
    ais,
    encode,
    fit,
    latent_report,
    log_likelihood,
    log_weights,
    repaired_log_likelihood,
)
from ppgen.inference.execution.batches import checked_rows
from ppgen.models import Custom


def test_masked_steps_and_annealing_leave_the_likelihood_alone():
    """Behind its end a sequence may hold anything; a scale that anneals training is not part of log p(x)."""
    torch.manual_seed(0)
    dmm, (data, reverse, mask, lengths) = cases()["dmm"]
    filled = torch.where(mask[..., None] > 0, data, 1.0)
    first = log_likelihood(dmm, data, reverse, mask, lengths, num_samples=30)
    second = log_likelihood(dmm, filled, reverse, mask, lengths, num_samples=30)
    assert torch.equal(first.values, second.values)
    torch.manual_seed(5)
    plain = log_weights(dmm, data, reverse, mask, lengths, num_samples=3)
    torch.manual_seed(5)
    assert torch.allclose(plain, log_weights(dmm, data, reverse, mask, lengths, 0.1, num_samples=3))


def packed(n=40, seed=0):
    """Sequences of several lengths in the order that the example's data come in, the longest first."""
    torch.manual_seed(seed)
    lengths = torch.randint(1, 7, (n,)).sort(descending=True).values
    mask = (torch.arange(int(lengths[0])) < lengths[:, None]).float()
    data = torch.bernoulli(torch.full((n, int(lengths[0]), DMM.notes), 0.4)) * mask[..., None]
    reverse = nn.utils.rnn.pack_padded_sequence(backwards(data, lengths), lengths, batch_first=True)
    return pair_of(DMM()), (data, reverse, mask, lengths)


def test_a_packed_sequence_goes_in_as_the_example_has_it():
    torch.manual_seed(0)
    dmm, (data, reverse, mask, lengths) = cases()["dmm"]
    packed = nn.utils.rnn.pack_padded_sequence(reverse, lengths, batch_first=True)
    torch.manual_seed(5)
    plain = log_weights(dmm, data, reverse, mask, lengths, num_samples=3)
    torch.manual_seed(5)
    found = log_weights(dmm, data, packed, mask, lengths, num_samples=3)
    assert found.shape == plain.shape and found.isfinite().all()
    assert torch.allclose(plain[:, :2], found[:, :2], atol=1e-5)  # of full length, so that nothing is padded


def test_packed_sequences_in_memory_are_trained_and_evaluated():
    dmm, batch = packed()
    history = fit(dmm, batch, epochs=20, batch_size=7, progress=False, seed=0)
    assert history.loss[-1] < history.loss[0]
    estimate = log_likelihood(dmm, *batch, num_samples=5000)
    assert estimate.values.shape == (40,) and estimate.values.isfinite().all()
    z = encode(dmm, *batch)
    assert set(z) == {f"z_{t}" for t in range(1, 7)} and z["z_6"].shape == (40, Z)
    report = latent_report(dmm, *batch, num_aggregate=10)
    assert report.kl["z_1"] > report.kl["z_6"] >= 0  # few sequences are so long
    chains = ais(dmm, *batch, num_chains=4, num_temperatures=30)
    assert abs(chains.mean - estimate.mean) < 0.3
    table = compare({"first": dmm, "second": packed(seed=1)[0]}, *batch, num_samples=50)
    assert table.best == "first"


def test_the_likelihood_of_a_packed_row_is_its_own_whatever_rows_are_with_it():
    """In blocks of 100 rows, whose longest are of several lengths, every row is what it is alone."""
    dmm, (data, reverse, mask, lengths) = packed(120)
    fit(dmm, (data, reverse, mask, lengths), epochs=10, batch_size=20, progress=False, seed=0)
    whole = log_likelihood(dmm, data, reverse, mask, lengths, num_samples=2000).values
    members = checked_rows((data, reverse, mask, lengths))
    for row in (0, 60, 119):
        x, packed_row, m, length = members([row])
        assert x.shape[1] == m.shape[1] == length == len(packed_row.batch_sizes)
        alone = log_likelihood(dmm, x, packed_row, m, length, num_samples=2000).values
        assert abs(alone - whole[row]) < 0.2
    refined = repaired_log_likelihood(dmm, data, reverse, mask, lengths, num_steps=10, num_samples=200)
    assert refined.values.mean() > whole.mean() - 0.2


def test_rows_of_packed_sequences_in_any_order():
    torch.manual_seed(0)
    lengths = torch.tensor([4, 3, 3, 1])
    data = torch.randn(4, 4, 2) * (torch.arange(4) < lengths[:, None])[..., None]
    features = torch.randn(4, 4)  # no sequence, though as wide as they are long
    rows = checked_rows((data, nn.utils.rnn.pack_padded_sequence(data, lengths, batch_first=True), lengths, features))
    rnn = nn.RNN(2, 3, batch_first=True)
    expected = rnn(data)[0]
    for order in ([3, 1], [1, 2, 0, 3], [2]):
        x, sequence, length, f = rows(torch.tensor(order))
        found, their_lengths = nn.utils.rnn.pad_packed_sequence(rnn(sequence)[0], batch_first=True)
        assert torch.equal(their_lengths, lengths[order]) and torch.equal(length, lengths[order])
        assert x.shape == (len(order), int(length.max()), 2) and f.shape == (len(order), 4)
        for i, n in enumerate(length.tolist()):
            assert torch.allclose(found[i, :n], expected[order[i], :n], atol=1e-6)


def test_a_packed_sequence_of_another_length_is_named():
    _, (data, reverse, mask, lengths) = packed()
    with pytest.raises(ValueError, match=r"members of data differ in length: \[40, 39, 40, 40\]"):
        rows = checked_rows((data, reverse, mask, lengths))(slice(0, 39))
        checked_rows((data, rows[1], mask, lengths))


def test_packed_sequences_alone_are_rows_like_others():
    """One latent a sequence, with its exact posterior as the guide: every number is known."""

    def unpacked(x):
        values, lengths = nn.utils.rnn.pad_packed_sequence(x, batch_first=True)
        return values, torch.arange(values.shape[1]) < lengths[:, None]

    def model(x):
        values, mask = unpacked(x)
        with pyro.plate("data", len(values)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).mask(mask).to_event(1), obs=values)

    def guide(x):
        values, mask = unpacked(x)
        precision = 1 + mask.sum(1)
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("data", len(values)):
            pyro.sample("z", dist.Normal((values * mask).sum(1) / precision + shift, precision**-0.5))

    lengths, pair = torch.tensor([5, 4, 4, 3, 2, 2, 1]), Custom(model, guide)
    rows = [torch.randn(n) for n in lengths.tolist()]
    x = nn.utils.rnn.pack_sequence(rows)
    exact = torch.stack(
        [dist.MultivariateNormal(torch.zeros(len(r)), torch.eye(len(r)) + 1.0).log_prob(r) for r in rows]
    )
    estimate = log_likelihood(pair, x, num_samples=2)
    assert torch.allclose(estimate.values.float(), exact, atol=1e-5)
    kl = torch.distributions.kl_divergence(
        dist.Normal(torch.stack([r.sum() for r in rows]) / (1 + lengths), (1.0 + lengths) ** -0.5),
        dist.Normal(0.0, 1.0),
    )
    assert latent_report(pair, x, num_samples=2000).kl["z"] == pytest.approx(kl.mean().item(), abs=0.1)
    # Batches of three, three and one: each sequence counts as much as any other, in training and in validation.
    history = fit(pair, x, epochs=1, batch_size=3, validation=x, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    assert history.loss[0] == pytest.approx(-exact.mean().item(), abs=1e-5) == history.validation[0]
    refined = repaired_log_likelihood(pair, x, num_steps=2, num_samples=200)
    assert torch.allclose(refined.values.float(), exact, atol=0.2)
    assert torch.allclose(ais(pair, x, num_chains=20, num_temperatures=50).values.float(), exact, atol=0.3)


def test_the_exact_likelihood_of_a_linear_markov_model():
    """One latent a step, linear and Gaussian, with the lengths in masks: log p(x) in closed form."""
    a, noise, steps = 0.8, 0.5, 3
    lengths = torch.tensor([3, 3, 2, 1])
    mask = torch.arange(steps) < lengths[:, None]
    x = torch.randn(4, steps)

    def model(x, mask):
        z = 0.0
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(steps)):
                with poutine.mask(mask=mask[:, t]):
                    z = pyro.sample(f"z_{t + 1}", dist.Normal(a * z, 1.0))
                    pyro.sample(f"obs_x_{t + 1}", dist.Normal(z, noise), obs=x[:, t])

    def guide(x, mask):
        with pyro.plate("z_minibatch", len(x)):
            for t in range(steps):
                with poutine.mask(mask=mask[:, t]):
                    pyro.sample(f"z_{t + 1}", dist.Normal(0.8 * x[:, t], 0.7))

    transition = torch.tensor([[a ** (i - j) if i >= j else 0.0 for j in range(steps)] for i in range(steps)])
    covariance = transition @ transition.T + noise**2 * torch.eye(steps)
    exact = torch.stack(
        [
            dist.MultivariateNormal(torch.zeros(n), covariance[:n, :n]).log_prob(x[i, :n])
            for i, n in enumerate(lengths.tolist())
        ]
    )
    estimate = log_likelihood(Custom(model, guide), x, mask, num_samples=5000)
    assert (estimate.values - exact).abs().max() < 0.05 and estimate.reliable.all()


def test_a_hidden_markov_model_is_summed_out_as_by_the_forward_algorithm():
    transition, locs = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([-1.0, 1.0])

    def model(x):
        with pyro.plate("sequences", len(x), dim=-1):
            state = 0
            for t in pyro.markov(range(x.shape[1])):
                state = pyro.sample(f"s_{t}", dist.Categorical(transition[state]), infer={"enumerate": "parallel"})
                pyro.sample(f"y_{t}", dist.Normal(locs[state], 1.0), obs=x[:, t])

    x = torch.randn(5, 6)
    forward = transition[0].log() + dist.Normal(locs, 1.0).log_prob(x[:, :1])
    for t in range(1, 6):
        forward = (forward[..., None] + transition.log()).logsumexp(1) + dist.Normal(locs, 1.0).log_prob(
            x[:, t : t + 1]
        )
    estimate = log_likelihood(Custom(model, lambda x: None), x, num_samples=1)
    assert torch.allclose(estimate.values.float(), forward.logsumexp(1), atol=1e-5)
