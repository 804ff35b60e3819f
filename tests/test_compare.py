"""Comparisons of pairs with known likelihoods, and what their latents carry."""

import copy
import csv
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppgen.compare import compare, paired_difference, rank
from ppgen.inference import ais, latent_report, log_likelihood, repaired_log_likelihood
from ppgen.models import VAE
from ppgen.pair import data_plate, sample


class Fixed(nn.Module):
    """A conditional from a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, *context):
        return self.function(*context)


def linear_gaussian(noise: float) -> VAE:
    """Z ~ N(0, I), x = z + noise · ε in two dimensions, with the exact posterior."""
    gain, scale = 1 / (1 + noise**2), math.sqrt(noise**2 / (1 + noise**2))
    return VAE(
        Fixed(lambda *y: dist.Normal(torch.zeros(2), 1.0).to_event(1)),
        Fixed(lambda z: dist.Normal(z, noise).to_event(1)),
        Fixed(lambda x: dist.Normal(gain * x, scale).to_event(1)),
    )


def test_differences_are_paired_and_the_better_model_wins():
    x = math.sqrt(2) * torch.randn(500, 2)  # drawn from the first of them
    pairs = {"one": linear_gaussian(1.0), "two": linear_gaussian(2.0)}
    result = compare(pairs, x, num_samples=50)
    exact = {
        name: dist.Normal(0, math.sqrt(1 + noise**2)).log_prob(x.double()).sum(-1)
        for name, noise in (("one", 1.0), ("two", 2.0))
    }
    gap = exact["two"] - exact["one"]
    assert result.best == "one" and result.ties == []
    row = result.rows[1]
    assert row["difference"] == pytest.approx(gap.mean().item(), abs=1e-5)
    assert row["difference_standard_error"] == pytest.approx(gap.std().item() / math.sqrt(500), rel=1e-4)
    assert row["mc_standard_error"] == 0.0 and row["reliable_fraction"] == 1.0
    assert "ahead of two by" in result.verdict() and "lower bound" not in result.verdict()


def test_what_cannot_be_told_apart_is_said():
    pairs = {"one": linear_gaussian(1.0), "same": linear_gaussian(1.0)}
    result = compare(pairs, torch.randn(50, 2), num_samples=30)
    assert len(result.ties) == 1 and "not to be told apart" in result.verdict()


def test_ranks_are_shared_where_nothing_sets_two_apart():
    x = math.sqrt(2) * torch.randn(500, 2)
    pairs = {"far": linear_gaussian(3.0), "one": linear_gaussian(1.0), "same": linear_gaussian(1.0)}
    result = compare(pairs, x, num_samples=30)
    assert result.ranks == {"one": 1, "same": 1, "far": 3}
    assert result.difference("one", "far").told_apart and result.difference("one", "far").mean > 0


def test_a_single_datum_tells_nothing_apart():
    pairs = {"one": linear_gaussian(1.0), "two": linear_gaussian(2.0)}
    result = compare(pairs, torch.zeros(1, 2), num_samples=30)
    assert result.ties == ["two"] and "not to be told apart" in result.verdict()


def test_estimates_of_a_test_set_that_was_binarised_again_are_not_compared():
    grey = torch.rand(40, 2)
    first, again = torch.bernoulli(grey), torch.bernoulli(grey)
    one, two = linear_gaussian(1.0), linear_gaussian(2.0)
    estimates = {"one": log_likelihood(one, first, num_samples=30), "two": log_likelihood(two, again, num_samples=30)}
    with pytest.raises(ValueError, match=r"different data.*member 0.*binarised again"):
        rank(estimates)
    shuffled = log_likelihood(two, first.flip(0), num_samples=30)
    with pytest.raises(ValueError, match="different data"):
        paired_difference(estimates["one"], shuffled)
    with pytest.raises(ValueError, match="40 data and 'second' on 30"):
        paired_difference(estimates["one"], log_likelihood(two, first[:30], num_samples=30))


def test_estimates_of_all_kinds_on_the_same_data_are_ranked():
    """In another precision, and repaired or annealed, they are still estimates of the same data."""
    x = torch.randn(20, 2)
    pair = linear_gaussian(1.0)
    estimates = {
        "plain": log_likelihood(pair, x, num_samples=30),
        "again": log_likelihood(pair, x.clone(), num_samples=30),
        "repaired": repaired_log_likelihood(pair, x, num_samples=30, num_pilot=10),
        "annealed": ais(pair, x, num_chains=4, num_temperatures=3, num_leapfrog=1),
    }
    assert len({estimate.data for estimate in estimates.values()}) == 1
    assert set(rank(estimates).ranks) == set(estimates)


def test_pairs_that_share_parameters_are_refused():
    first = linear_gaussian(1.0)
    second = VAE(first.prior, copy.deepcopy(first.decoder), copy.deepcopy(first.posterior))
    with pytest.raises(ValueError, match="'a' and 'b' share parameters"):
        compare({"a": first, "b": second}, torch.randn(5, 2), num_samples=5)


def test_latent_report_against_closed_forms():
    x = math.sqrt(2) * torch.randn(2000, 2)
    report = latent_report(linear_gaussian(1.0), x, num_samples=64)
    posterior = dist.Normal(x / 2, math.sqrt(0.5))
    exact = torch.distributions.kl_divergence(posterior, dist.Normal(0.0, 1.0)).sum(-1).mean().item()
    assert report.kl["z"] == pytest.approx(exact, abs=0.02)
    assert report.active_units == {"z": 2}


def test_an_ignored_latent_has_no_active_units():
    pair = linear_gaussian(1.0)
    pair.posterior = Fixed(lambda x: dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
    report = latent_report(pair, torch.randn(500, 2), num_samples=16)
    assert report.active_units == {"z": 0}
    assert report.kl["z"] == 0.0


class Plain:
    """An ordinary object, whose networks are attributes."""

    def __init__(self, decoder=None):
        self.net, self.decoder = nn.Linear(2, 4), nn.Linear(2, 2) if decoder is None else decoder

    def model(self, x):
        with data_plate(x):
            z = sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with data_plate(x):
            loc, log_scale = self.net(x).chunk(2, -1)
            sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_networks_of_an_ordinary_object_are_counted_and_not_shared():
    x, own = torch.randn(20, 2), Plain()
    assert [row["parameters"] for row in compare({"own": own}, x, num_samples=30).rows] == [12 + 6]
    with pytest.raises(ValueError, match="'own' and 'other' share parameters"):
        compare({"own": own, "other": Plain(own.decoder)}, x, num_samples=30)


def test_a_table_has_the_details_of_any_row(tmp_path):
    x = torch.randn(20, 2)
    for name in "ab":  # one of them is the best
        compared = compare({"a": Plain(), "b": Plain()}, x, num_samples=30, details={name: {"epochs": 3}})
        compared.write_csv(tmp_path / "table.csv", [{"name": "c", "refused": "why"}])
        with (tmp_path / "table.csv").open() as file:
            table = {row["name"]: row for row in csv.DictReader(file)}
        assert table[name]["epochs"] == "3" and table["c"]["refused"] == "why"
        assert table["b" if name == "a" else "a"]["epochs"] == ""
