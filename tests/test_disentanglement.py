"""Measures of disentanglement: exact values for made-up codes, and what must not matter to them."""

import math
import re

import numpy as np
import pytest
import torch

from ppgen.disentanglement import (
    beta_vae_score,
    dci,
    disentanglement,
    factor_vae_score,
    importance_scores,
    mutual_information_gap,
)

SIZES = (3, 4, 5)
FACTORS = torch.cartesian_prod(*(torch.arange(size) for size in SIZES)).repeat(20, 1)
PERFECT = (FACTORS - FACTORS.double().mean(0)) / FACTORS.double().std(0, correction=0)


def rotated(codes, degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return codes @ torch.tensor([[c, -s], [s, c]]).double()


def entangled():
    return PERFECT @ torch.linalg.qr(torch.randn(3, 3).double())[0]


@pytest.mark.parametrize(
    "codes",
    [PERFECT, FACTORS, PERFECT.float() ** 3, -7 * PERFECT[:, [2, 0, 1]] + 100, 1e-6 * PERFECT],
    ids=["standardised", "indices", "cubed", "permuted, negated, scaled, shifted", "tiny"],
)
def test_a_perfect_code_scores_one(codes):
    scores = disentanglement(codes, FACTORS)
    assert list(scores) == [
        "beta-VAE score",
        "FactorVAE score",
        "MIG",
        "disentanglement",
        "completeness",
        "informativeness",
    ]
    assert all(score == pytest.approx(1, abs=1e-9) for score in scores.values())


def test_a_code_that_knows_nothing_is_at_chance():
    factors = FACTORS.repeat(3, 1)
    scores = disentanglement(torch.randn(len(factors), 4), factors)
    assert scores["beta-VAE score"] == pytest.approx(1 / 3, abs=0.05)
    assert scores["FactorVAE score"] == pytest.approx(1 / 3, abs=0.05)
    assert scores["informativeness"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 5) / 3, abs=0.05)
    assert max(scores[name] for name in ("MIG", "disentanglement", "completeness")) < 0.02


def test_an_entangled_code_scores_much_lower():
    scores = disentanglement(entangled(), FACTORS)
    assert max(scores[name] for name in ("MIG", "disentanglement", "completeness")) < 0.4
    assert scores["FactorVAE score"] < 0.9
    assert scores["informativeness"] > 0.9  # all is still known of the factors


def test_the_order_sign_and_scale_of_dimensions_do_not_matter():
    codes = torch.cat([entangled() + 0.1 * torch.randn(len(FACTORS), 3).double(), torch.randn(len(FACTORS), 1)], 1)
    scores = disentanglement(codes, FACTORS)
    changed = codes[:, [3, 1, 0, 2]] * torch.tensor([1.0, -1.0, -4.0, 0.25])
    for name, score in disentanglement(changed, FACTORS).items():
        assert score == pytest.approx(scores[name], abs=0.02), name
    assert mutual_information_gap(codes[:, [3, 1, 0, 2]], FACTORS) == pytest.approx(scores["MIG"], abs=1e-12)


def test_the_known_weakness_of_the_two_accuracies():
    """A slight rotation of the perfect code passes both; of one by 45 degrees neither can tell the two factors."""
    factors = torch.cartesian_prod(torch.arange(10), torch.arange(10)).repeat(20, 1)
    codes = factors - factors.double().mean(0)
    slight, half = rotated(codes, 20), rotated(codes, 45)
    assert beta_vae_score(slight, factors) > 0.99 and factor_vae_score(slight, factors) > 0.99
    assert mutual_information_gap(slight, factors) < 0.5 < 0.99 < mutual_information_gap(codes, factors)
    assert beta_vae_score(half, factors) == pytest.approx(0.5, abs=0.03)
    assert factor_vae_score(half, factors) == pytest.approx(0.5, abs=0.03)
    assert mutual_information_gap(half, factors) == pytest.approx(0, abs=1e-9)


def test_a_factor_that_no_dimension_holds_is_guessed():
    codes = PERFECT[:, :2]
    # The votes of the batches that share the third factor fall on either dimension: they are all lost.
    assert factor_vae_score(codes, FACTORS) == pytest.approx(2 / 3, abs=0.01)
    assert mutual_information_gap(codes, FACTORS) == pytest.approx(2 / 3)
    found = dci(codes, FACTORS)
    assert found.informativeness == pytest.approx((1 + 1 + 1 / 5) / 3, abs=0.05)
    assert found.importance.shape == (2, 3)
    assert torch.allclose(found.importance[:, :2], torch.eye(2).double())
    # Higgins' classifier still wins: where neither dimension shares its value, it is the third factor.
    assert beta_vae_score(codes, FACTORS) > 0.99


def test_the_mutual_information_gap_has_the_values_worked_out_by_hand():
    a, b = torch.cartesian_prod(torch.arange(2), torch.arange(2)).repeat(100, 1).T
    factors = torch.stack([a, b], 1)
    assert mutual_information_gap(torch.stack([a, b], 1), factors) == pytest.approx(1)
    assert mutual_information_gap(torch.stack([a, b, a], 1), factors) == pytest.approx(0.5)  # a is held twice
    assert mutual_information_gap(torch.stack([2 * a + b, b], 1), factors) == pytest.approx(0.5)
    assert mutual_information_gap(torch.stack([a ^ b, b], 1), factors) == pytest.approx(0.5)
    assert mutual_information_gap((2 * a + b).unsqueeze(1), factors) == pytest.approx(1)  # of both, and no second
    # One in four copies of a is wrong, whatever b is: I = log 2 - H(1/4), beside a dimension that holds b.
    wrong = (torch.arange(400) // 4) % 4 == 0
    information = math.log(2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    noisy = torch.stack([torch.where(wrong, 1 - a, a), b], 1)
    assert mutual_information_gap(noisy, factors) == pytest.approx((information / math.log(2) + 1) / 2)
    # With four bins, eight equally likely values of a factor become four.
    eight = torch.arange(8).repeat(50).unsqueeze(1)
    assert mutual_information_gap(eight, eight, num_bins=4) == pytest.approx(2 / 3)


def test_importances_worked_out_by_hand():
    assert importance_scores(torch.eye(4)[[2, 0, 1, 3]]) == (1.0, 1.0)
    assert importance_scores(torch.full((4, 3), 0.25)) == pytest.approx((0, 0), abs=1e-12)
    # Two dimensions share the first factor: each serves one factor, but that factor needs two of three.
    split = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]])
    assert importance_scores(split) == pytest.approx((1, (1 - math.log(2) / math.log(3) + 1) / 2))
    # One dimension holds two factors of three, and counts twice as much; the third dimension serves nothing.
    joint = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert importance_scores(joint) == pytest.approx(((2 * (1 - math.log(2) / math.log(3)) + 1) / 3, 1))
    assert importance_scores(torch.zeros(2, 2)) == (0.0, 0.0)


def test_copies_of_dimensions_cost_completeness_alone():
    found = dci(torch.cat([PERFECT, -PERFECT], 1), FACTORS)
    assert found.disentanglement == pytest.approx(1) and found.informativeness == pytest.approx(1)
    assert found.completeness < 0.75
    assert found.importance.sum(0) == pytest.approx(torch.ones(3).double())


def test_dead_dimensions_change_no_accuracy():
    dead = torch.cat([PERFECT, 1e-3 * torch.randn(len(PERFECT), 5), torch.full((len(PERFECT), 1), 2.0)], 1)
    assert beta_vae_score(dead, FACTORS) == beta_vae_score(PERFECT, FACTORS) == 1
    assert factor_vae_score(dead, FACTORS) == factor_vae_score(PERFECT, FACTORS) == 1
    nothing = torch.zeros(len(FACTORS), 2)
    assert beta_vae_score(nothing, FACTORS) == factor_vae_score(nothing, FACTORS) == 1 / 3
    assert mutual_information_gap(nothing, FACTORS) == 0
    assert dci(nothing, FACTORS).disentanglement == 0


def test_a_seed_decides_all_and_no_global_generator_is_touched():
    codes = entangled() + torch.randn(len(FACTORS), 3)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (disentanglement(codes, FACTORS, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize("measure", [disentanglement, beta_vae_score, factor_vae_score, mutual_information_gap, dci])
@pytest.mark.parametrize(
    ("codes", "factors", "error", "words"),
    [
        (PERFECT[:, 0], FACTORS, ValueError, "codes must be a matrix, a row a datum, got shape (1200,)"),
        (PERFECT, FACTORS[:, :0], ValueError, "factors must be a matrix, a row a datum, got shape (1200, 0)"),
        (PERFECT[:-1], FACTORS, ValueError, "must belong to the same data, got 1,199 and 1,200 rows"),
        (
            PERFECT + 0j,
            FACTORS,
            TypeError,
            "codes is a tensor of torch.complex128: numbers (float, integer or boolean)",
        ),
        (PERFECT, PERFECT, TypeError, "factors must be integers, got torch.float64: give the index"),
        (
            torch.where(FACTORS[:, :1] == 1, math.nan, PERFECT),
            FACTORS,
            ValueError,
            "codes must be finite, got nan in row 20, dimension 0",
        ),
        (PERFECT, FACTORS * torch.tensor([1, 1, 0]), ValueError, "got the one value 0 in column 2: leave it out"),
        (PERFECT, torch.arange(3600).reshape(-1, 3), ValueError, "got 1,200 values in the 1,200 rows of column 0"),
    ],
    ids=["vector", "no factors", "rows", "complex", "real factors", "not finite", "constant factor", "own value each"],
)
def test_what_cannot_be_measured_is_refused(measure, codes, factors, error, words):
    with pytest.raises(error, match=re.escape(words)):
        measure(codes, factors)


@pytest.mark.parametrize(
    "stored",
    [
        lambda a: a.astype(a.dtype.newbyteorder(">")),
        lambda a: np.ascontiguousarray(a[::-1])[::-1],
        lambda a: a.astype(np.longdouble if a.dtype.kind == "f" else np.uint16),
        lambda a: a.tolist(),
    ],
    ids=["big-endian", "negative strides", "wide and unsigned", "lists"],
)
def test_it_does_not_matter_how_numbers_are_stored(stored):
    codes, factors = PERFECT.numpy(), FACTORS.numpy()
    expected = mutual_information_gap(PERFECT, FACTORS)
    assert mutual_information_gap(stored(codes), stored(factors)) == pytest.approx(expected)
    assert mutual_information_gap(codes[::-1], factors[::-1]) == pytest.approx(expected)


def test_neither_an_offset_nor_a_scale_of_the_codes_changes_what_is_read_off_them():
    plain, far, large = (dci(codes, FACTORS, num_trees=3) for codes in (PERFECT, PERFECT + 1e8, PERFECT * 1e60))
    for found in (far, large):
        assert found.informativeness == plain.informativeness == 1
        assert found.disentanglement == pytest.approx(plain.disentanglement, abs=1e-3)


def test_settings_and_importances_that_make_no_sense_are_refused():
    for measure in (disentanglement, beta_vae_score, factor_vae_score):
        with pytest.raises(ValueError, match="factors must have at least 2 columns to be told apart, got 1"):
            measure(PERFECT, FACTORS[:, :1])
    with pytest.raises(ValueError, match=r"batch_size must be at least 2.*got 1"):
        factor_vae_score(PERFECT, FACTORS, batch_size=1)
    with pytest.raises(ValueError, match="batch_size must be a positive whole number, got 0"):
        beta_vae_score(PERFECT, FACTORS, batch_size=0)
    with pytest.raises(ValueError, match="num_bins must be a positive whole number, got '2'"):
        mutual_information_gap(PERFECT, FACTORS, num_bins="2")
    with pytest.raises(ValueError, match="num_trees must be a positive whole number, got 0"):
        dci(PERFECT, FACTORS, num_trees=0)
    with pytest.raises(ValueError, match=re.escape("got shape (3,)")):
        importance_scores(torch.ones(3))
    with pytest.raises(ValueError, match=r"not negative.* with values from -1 to"):
        importance_scores(-torch.eye(2))
