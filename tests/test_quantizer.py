"""Vector quantisation against brute force and its formulas."""

import copy
import itertools
import math

import pytest
import torch

from ppgen import nn

K = 6


@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
def test_the_nearest_code_is_that_of_brute_force(lead):
    quantizer = nn.VectorQuantizer(11, 3).eval()
    quantizer.codebook.data.normal_()
    h = torch.randn(*lead, 3, 2, 5)
    codes = quantizer(h)
    assert codes.shape == (*lead, 2, 5)
    distance = (h.unsqueeze(-4) - quantizer.codebook[:, :, None, None]).square().sum(-3)  # (*, K, H, W)
    assert torch.equal(codes, distance.argmin(-3))
    e = quantizer.embed(codes)
    assert e.shape == h.shape
    assert torch.allclose((h - e).square().sum(-3), distance.amin(-3))
    assert torch.equal(quantizer(e), codes), "a code is nearest to itself"
    assert torch.equal(quantizer.embed(codes.float()), e), "codes that come as floating-point numbers"


def test_the_straight_through_gradient_is_that_of_the_decoders_input():
    quantizer = nn.VectorQuantizer(K, 3)
    h = torch.randn(4, 3, 2, 2, requires_grad=True)
    codes = quantizer.eval()(h)
    weights = torch.randn(4, 3, 2, 2)
    passed = quantizer.straight_through(h, codes)
    assert torch.equal(passed, quantizer.embed(codes)), "its value is the code's, exactly"
    (passed.sin() * weights).sum().backward()
    e = quantizer.embed(codes).detach().requires_grad_()
    (e.sin() * weights).sum().backward()
    assert torch.equal(h.grad, e.grad)
    assert quantizer.codebook.grad is None


def test_the_commitment_reaches_the_encoder_only_and_the_codebook_term_the_codebook_only():
    quantizer = nn.VectorQuantizer(K, 3, ema=False, commitment=0.3).eval()
    h = torch.randn(4, 3, 2, 2, requires_grad=True)
    codes = quantizer(h)
    penalty = quantizer.penalty(h, codes)
    e = quantizer.embed(codes).detach()
    distance = (h.detach() - e).square().sum((-3, -2, -1))
    assert penalty.shape == (4,) and torch.allclose(penalty, 1.3 * distance)
    penalty.sum().backward()
    assert torch.allclose(h.grad, 2 * 0.3 * (h.detach() - e))
    expected = torch.zeros(K, 3)
    for n, i, j in itertools.product(range(4), range(2), range(2)):
        expected[codes[n, i, j]] += 2 * (e - h.detach())[n, :, i, j]
    assert torch.allclose(quantizer.codebook.grad, expected, atol=1e-6)

    average = nn.VectorQuantizer(K, 3, commitment=0.3).eval()
    codes = average(h)
    expected = 0.3 * (h - average.embed(codes)).square().sum((-3, -2, -1))
    assert torch.allclose(average.penalty(h, codes), expected), "no codebook term beside the averages"
    assert not average.codebook.requires_grad


def test_the_averages_are_those_of_the_formula():
    decay = 0.8
    quantizer = nn.VectorQuantizer(5, 2, decay=decay, revival=0.0)
    quantizer.codebook.data.normal_()
    start = quantizer.codebook.detach().clone()
    history = []
    for _ in range(6):
        h = torch.randn(7, 2, 1, 3)
        before = quantizer.codebook.detach().clone()
        codes = quantizer(h)
        vectors = h.movedim(1, -1).reshape(-1, 2)
        nearest = torch.cdist(vectors, before).argmin(-1)
        assert torch.equal(codes.reshape(-1), nearest), "assigned by the codebook as it was"
        history.append((vectors, nearest))
        for k in range(5):
            # Weights of the batches in an exponential average that started at 0, corrected for that start.
            powers = [(1 - decay) * decay**age for age in reversed(range(len(history)))]
            bias = 1 - decay ** len(history)
            count = sum(p * (n == k).sum() for p, (_, n) in zip(powers, history, strict=True)) / bias
            total = sum(p * v[n == k].sum(0) for p, (v, n) in zip(powers, history, strict=True)) / bias
            expected = total / count if count > 0 else start[k]
            assert torch.allclose(quantizer.codebook[k], expected, atol=1e-5)
            assert torch.allclose(quantizer.counts[k] / bias, torch.as_tensor(count).float(), atol=1e-5)


def test_a_dead_code_is_revived_and_one_in_use_is_not():
    quantizer = nn.VectorQuantizer(4, 2, decay=0.5, revival=0.1)
    centres = torch.tensor([[5.0, 0.0], [0.0, 5.0], [-5.0, 0.0]])
    quantizer.codebook.data.copy_(torch.cat([centres, torch.full((1, 2), 100.0)]))  # the last is out of reach
    h = (centres[torch.arange(30) % 3] + 0.1 * torch.randn(30, 2)).reshape(30, 2, 1, 1)
    quantizer(h)
    assert (quantizer.codebook[:3] - centres).abs().max() < 0.5, "codes in use stay with their data"
    distance = (h.reshape(30, 2) - quantizer.codebook[3]).norm(dim=-1)
    assert distance.min() == 0, "the dead one is on a vector of the batch"
    assert quantizer.counts[3] > 0 and torch.allclose(quantizer.sums[3], quantizer.counts[3] * quantizer.codebook[3])
    for _ in range(3):
        quantizer(h)
    assert quantizer.perplexity > 3

    kept = nn.VectorQuantizer(4, 2, revival=0.0)
    kept.codebook.data.fill_(100.0)
    kept.codebook.data[0] = 0.0
    kept(h)
    assert bool((kept.codebook[1:] == 100.0).all()), "no revival, and an unused code stays where it is"


def test_the_first_batch_places_the_codebook_among_the_data():
    for ema in (True, False):
        quantizer = nn.VectorQuantizer(64, 2, ema=ema)
        h = 10 + torch.randn(100, 2, 1, 1)
        quantizer(h)
        nearest = (quantizer.codebook.detach().unsqueeze(1) - h.reshape(100, 2)).norm(dim=-1).amin(-1)
        assert (nearest == 0).sum() >= 55
        assert len(torch.unique(quantizer.codebook, dim=0)) == 64
        tiny = nn.VectorQuantizer(64, 2, ema=ema)
        tiny(h[:5])  # fewer vectors than codes
        assert tiny.codebook.isfinite().all()


def test_the_perplexity_of_uniform_use_is_the_number_of_codes():
    quantizer = nn.VectorQuantizer(8, 2)
    assert math.isnan(quantizer.perplexity)
    quantizer.codebook.data.copy_(torch.randn(8, 2) * 10)
    h = quantizer.codebook.detach().reshape(8, 2, 1, 1)
    quantizer(h.repeat(3, 1, 1, 1))
    assert quantizer.perplexity == pytest.approx(8, abs=1e-4)
    single = nn.VectorQuantizer(8, 2, revival=0.0)
    single(torch.zeros(4, 2, 1, 1) + single.codebook[3].detach()[:, None, None])
    assert single.perplexity == pytest.approx(1)


@pytest.mark.parametrize("still", ["eval mode", "no gradients", "a batch that is not finite"])
def test_the_codebook_moves_in_training_only(still):
    quantizer = nn.VectorQuantizer(4, 2)
    before = copy.deepcopy(quantizer.state_dict())
    h = torch.randn(10, 2, 1, 1)
    if still == "eval mode":
        quantizer.eval()(h)
    elif still == "no gradients":
        with torch.no_grad():
            quantizer(h)
    else:
        quantizer(h / 0)
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"codebook_size": 0}, "codebook_size must be a positive whole number, got 0"),
        ({"code_dim": 2.5}, "code_dim must be"),
        ({"decay": 1.0}, "decay must be at least 0 and below 1, got 1.0"),
        ({"revival": -0.1}, "revival must be"),
        ({"commitment": -1.0}, "commitment must be a finite number that is not negative, got -1.0"),
    ],
)
def test_quantizers_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        nn.VectorQuantizer(**{"codebook_size": 4, "code_dim": 2, **options})


def test_grids_of_other_vectors_are_refused():
    with pytest.raises(ValueError, match=r"grids of vectors \(\*, 3, H, W\).*\(4, 2, 5, 5\)"):
        nn.VectorQuantizer(4, 3)(torch.zeros(4, 2, 5, 5))


def test_a_code_that_is_long_unused_stays():
    """Until its averages are below what a number can hold, and after."""
    quantizer = nn.VectorQuantizer(2, 1, revival=0.0, decay=0.5).train()
    quantizer.codebook.data.copy_(torch.tensor([[0.3], [5.0]]))
    quantizer(torch.tensor([0.3, 5.0]).reshape(1, 1, 2, 1))
    for _ in range(200):
        quantizer(torch.full((1, 1, 1, 1), 0.3))
    assert quantizer.counts[1] == 0 and torch.allclose(quantizer.codebook.flatten(), torch.tensor([0.3, 5.0]))


def test_the_nearest_code_is_found_far_from_zero():
    vectors, codes = torch.randn(500, 16) + 1000, torch.randn(64, 16) + 1000
    quantizer = nn.VectorQuantizer(64, 16).eval()
    quantizer.codebook.data.copy_(codes)
    found = quantizer(vectors.T.reshape(1, 16, 500, 1)).flatten()
    assert torch.equal(found, torch.cdist(vectors.double(), codes.double()).argmin(-1))
