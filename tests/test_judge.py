"""Measures of samples against answers that are known: closed forms, known manifolds, the same distribution."""

import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppgen import data, judge
from ppgen.judge.measures import _radii

MEASURES = {
    "precision": lambda real, fake, **o: judge.precision_recall(real, fake, **o)[0],
    "recall": lambda real, fake, **o: judge.precision_recall(real, fake, **o)[1],
    "density": lambda real, fake, **o: judge.density_coverage(real, fake, **o)[0],
    "coverage": lambda real, fake, **o: judge.density_coverage(real, fake, **o)[1],
    "Fréchet distance": judge.frechet_distance,
    "kernel distance": judge.kernel_distance,
}
every_measure = pytest.mark.parametrize("name", MEASURES)


def draws(n, dim, seed, loc=0.0, scale=1.0):
    return loc + scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


# -- all of them -----------------------------------------------------------------------------------


@every_measure
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter(name, seed):
    real, fake = draws(60, 3, 1), draws(50, 3, 2, loc=0.5)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [x[torch.randperm(len(x), generator=generator)] for x in (real, fake)]
    expected, found = MEASURES[name](real, fake), MEASURES[name](*shuffled)
    assert found.value == pytest.approx(expected.value, abs=1e-9)


@every_measure
def test_chunks_do_not_matter(name, monkeypatch):
    real, fake = draws(130, 3, 1), draws(90, 3, 2, loc=0.5)
    expected = MEASURES[name](real, fake).value
    monkeypatch.setattr("ppgen.judge.measures.ROWS", 37)
    assert MEASURES[name](real, fake).value == pytest.approx(expected, abs=1e-9)


@every_measure
def test_a_score_carries_its_numbers(name):
    score = MEASURES[name](draws(40, 3, 1), draws(30, 3, 2))
    assert (score.name, score.num_real, score.num_generated) == (name, 40, 30)
    assert "(40 data, 30 samples)" in str(score) and f"{score.value:.4f}" in str(score)


@every_measure
def test_features_come_first(name):
    real, fake = draws(40, 3, 1), draws(40, 3, 2)
    fake[:, 2] += 100  # in what the features leave out
    net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(3, 2, bias=False))
    net[1].weight.data = torch.eye(2, 3)
    expected = MEASURES[name](real[:, :2], fake[:, :2]).value
    assert MEASURES[name](real, fake, features=net).value == pytest.approx(expected, abs=1e-6)
    assert net.training, "the extractor's mode was not given back"


@every_measure
def test_levels_and_images_are_taken_as_they_are(name):
    levels = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8)
    assert MEASURES[name](levels[:20], levels[20:]).value == pytest.approx(
        MEASURES[name](levels[:20].double(), levels[20:].double()).value
    )


@every_measure
def test_arrays_and_data_that_are_drawn_at_every_read_are_taken_as_tensors_are(name):
    real, fake = draws(40, 3, 1), draws(30, 3, 2, loc=0.5)
    assert MEASURES[name](real.numpy(), fake.numpy()).value == MEASURES[name](real, fake).value
    binary = (real > 0).float(), (fake > 0).float()  # as probabilities certain
    drawn = [data.DynamicBinarization(x) for x in binary]
    assert MEASURES[name](*drawn).value == MEASURES[name](*binary).value
    with pytest.raises(TypeError, match="generated is list: a torch tensor or a numpy array is expected"):
        MEASURES[name](real, fake.tolist())


def test_classes_modes_and_reports_take_arrays():
    x = draws(200, 2, 1)
    labels = (x[:, 0] > 0).long()
    classifier = judge.train_classifier(x.numpy(), labels.numpy(), epochs=2, progress=False)
    assert classifier.accuracy(x.numpy(), labels.numpy()) == classifier.accuracy(x, labels)
    assert judge.class_shares(classifier, x.numpy()).confident == judge.class_shares(classifier, x).confident
    assert judge.mode_coverage(x.numpy(), x[:3].numpy(), 0.1).found == judge.mode_coverage(x, x[:3], 0.1).found
    found, expected = (judge.sample_report(given[:50], given[50:]).summary() for given in (x.numpy(), x))
    assert found == expected


@every_measure
def test_bad_input_is_refused(name):
    measure = MEASURES[name]
    with pytest.raises(ValueError, match=r"one shape, got \(3,\) and \(2,\)"):
        measure(torch.zeros(9, 3), torch.zeros(9, 2))
    with pytest.raises(ValueError, match="generated has 1 rows"):
        measure(torch.zeros(9, 3), torch.zeros(1, 3))
    broken = draws(9, 3, 1)
    broken[4, 1] = math.nan
    with pytest.raises(ValueError, match="real has features that are NaN or infinite, first in row 4"):
        measure(broken, draws(9, 3, 2))


# -- manifolds -------------------------------------------------------------------------------------


def test_radii_are_those_of_the_kth_neighbour():
    line = torch.tensor([0.0, 1.0, 3.0, 7.0, 15.0]).double()[:, None]
    assert _radii(line, 1).tolist() == pytest.approx([1, 1, 2, 4, 8], rel=1e-4)
    assert _radii(line, 3).tolist() == pytest.approx([7, 6, 4, 7, 14], rel=1e-4)


def uniform(n, low, high, seed):
    return low + (high - low) * torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))


def test_half_of_the_data_is_precise_and_recalls_half():
    real = uniform(2000, torch.tensor([0.0, 0.0]), torch.tensor([2.0, 1.0]), 1)
    fake = uniform(2000, torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]), 2)
    precision, recall = judge.precision_recall(real, fake)
    assert precision.value > 0.95 and recall.value == pytest.approx(0.5, abs=0.05)
    recalled, precise = judge.precision_recall(fake, real)  # the roles change places
    assert (recalled.value, precise.value) == (recall.value, precision.value)
    density, coverage = judge.density_coverage(real, fake)
    assert density.value == pytest.approx(1, abs=0.05) and coverage.value == pytest.approx(0.5, abs=0.03)


def test_what_lies_apart_has_neither():
    real, fake = uniform(500, torch.zeros(2), torch.ones(2), 1), uniform(500, 10 * torch.ones(2), 11 * torch.ones(2), 2)
    assert [MEASURES[n](real, fake).value for n in ("precision", "recall", "density", "coverage")] == [0, 0, 0, 0]


def test_the_data_themselves_have_both():
    real = draws(300, 4, 1)
    assert [MEASURES[n](real, real).value for n in ("precision", "recall", "coverage")] == [1, 1, 1]


def by_counting(real, fake, k):
    """Precision, recall and density of rows of integers, by squared distances, which are integers too."""

    def inside(centres, points):
        radii = (centres[:, None] - centres).square().sum(-1).sort(1).values[:, k]
        return (centres[:, None] - points).square().sum(-1) <= radii[:, None]

    samples, data = inside(real, fake), inside(fake, real)
    return [samples.any(0), data.any(0), samples.sum(0) / k, samples.any(1)]


@pytest.mark.parametrize("step", [1.0, 0.1])
@pytest.mark.parametrize("k", [3, 5])
def test_neighbours_at_the_same_distance_are_all_inside(step, k):
    real, fake = (torch.randint(3, (300, 5), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    a, b = step * real + 0.7, step * fake + 0.7
    found = [*judge.precision_recall(a, b, k=k), *judge.density_coverage(a, b, k=k)]
    expected = [values.double().mean().item() for values in by_counting(real, fake, k)]
    assert [score.value for score in found] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_of_the_data_s_own_distribution(k):
    n = 3000
    density, coverage = judge.density_coverage(draws(n, 8, 1), draws(n, 8, 2), k=k)
    expected = 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))
    assert density.value == pytest.approx(1, abs=0.06 if k > 1 else 0.15)
    assert coverage.value == pytest.approx(expected, abs=0.03)


def test_an_outlier_spoils_precision_and_not_density():
    real = torch.cat([draws(500, 2, 1), torch.tensor([[60.0, 0.0], [0.0, 60.0], [60.0, 60.0], [0.0, -60.0]])])
    fake = draws(500, 2, 2, loc=20.0)
    precision, _ = judge.precision_recall(real, fake)
    density, _ = judge.density_coverage(real, fake)
    assert precision.value > 0.9 and density.value < 0.9


# -- distances -------------------------------------------------------------------------------------


def exact_moments(x, mean, covariance):
    """The rows, moved linearly so that their sample moments are these."""
    x = x.double() - x.double().mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


@pytest.mark.parametrize("measure", [judge.precision_recall, judge.density_coverage])
def test_neighbours_are_found_far_from_zero(measure):
    real = torch.randn(200, 5, dtype=torch.float64)
    generated = 0.8 * torch.randn(200, 5, dtype=torch.float64)
    near, far = measure(real, generated), measure(real + 1e8, generated + 1e8)
    assert [a.value for a in far] == pytest.approx([a.value for a in near], abs=1e-9)


def test_frechet_distance_of_gaussians_that_commute():
    mean, scales = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([[1.0, 2.0, 3.0], [0.5, 2.0, 4.0]]).double()
    real = exact_moments(draws(50, 3, 1), torch.zeros(3).double(), scales[0].square().diag())
    fake = exact_moments(draws(70, 3, 2), mean, scales[1].square().diag())
    expected = mean.square().sum() + (scales[0] - scales[1]).square().sum()
    assert judge.frechet_distance(real, fake).value == pytest.approx(expected.item(), rel=1e-8)


def test_frechet_distance_of_gaussians_that_do_not_commute():
    from scipy.linalg import sqrtm

    a, b = (torch.cov(draws(20, 4, seed).double().T) for seed in (1, 2))
    real = exact_moments(draws(50, 4, 3), torch.zeros(4).double(), a)
    fake = exact_moments(draws(50, 4, 4), torch.ones(4).double(), b)
    expected = 4 + float((a + b).trace()) - 2 * sqrtm((a @ b).numpy()).real.trace()
    assert judge.frechet_distance(real, fake).value == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_is_of_the_biased_kind():
    same = [judge.frechet_distance(draws(n, 16, 1), draws(n, 16, 2)).value for n in (100, 1000, 10000)]
    assert same[0] > same[1] > same[2] > 0 and same[2] < 0.05


def test_frechet_distance_of_a_set_from_itself_and_of_flat_ones():
    flat = torch.cat([draws(30, 3, 1), torch.zeros(30, 5)], 1)  # singular covariances
    assert judge.frechet_distance(flat, flat).value == pytest.approx(0, abs=1e-9)
    assert judge.frechet_distance(flat, flat + 1).value == pytest.approx(8, rel=1e-6)
    assert judge.frechet_distance(flat[:, :1], flat[:, :1] + 2).value == pytest.approx(4, rel=1e-6)
    few = 255 * draws(50, 784, 1)  # rows of more features than rows
    assert 0 <= judge.frechet_distance(few, few).value < 1e-6


def test_kernel_distance_is_without_bias():
    values = torch.tensor(
        [judge.kernel_distance(draws(12, 3, 2 * i), draws(15, 3, 2 * i + 1)).value for i in range(400)]
    )
    assert abs(values.mean()) < 3 * values.std() / 20
    assert (values < 0).any() and (values > 0).any()


def test_kernel_distance_by_its_definition():
    real, fake = draws(5, 2, 1).double(), draws(4, 2, 2).double()

    def k(a, b):
        return (float(a @ b) / 2 + 1) ** 3

    def mean(rows, others, skip):
        return sum(k(a, b) for i, a in enumerate(rows) for j, b in enumerate(others) if not (skip and i == j))

    expected = mean(real, real, True) / 20 + mean(fake, fake, True) / 12 - 2 * mean(real, fake, False) / 20
    score = judge.kernel_distance(real, fake)
    assert score.value == pytest.approx(expected, rel=1e-10) and score.standard_error is None


def test_kernel_distance_tells_distributions_apart_by_its_error():
    same = judge.kernel_distance(draws(1000, 4, 1), draws(1000, 4, 2))
    other = judge.kernel_distance(draws(1000, 4, 1), draws(1000, 4, 2, loc=0.3))
    assert abs(same.value) < 3 * same.standard_error and other.value > 5 * other.standard_error


# -- modes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "modes", "num"), [("ring", data.ring_modes(), 8), ("grid", data.grid_modes(), 25)])
def test_a_mixture_s_own_samples_have_all_its_modes(name, modes, num):
    x = data.load(name).test
    coverage = judge.mode_coverage(x, *modes)
    assert (coverage.found, coverage.num_modes, coverage.num_samples) == (num, num, 10_000)
    assert coverage.high_quality == pytest.approx(1 - math.exp(-4.5), abs=0.004)  # P(chi² with 2 d.f. ≤ 9)
    assert coverage.kl < 0.005 and coverage.counts.sum() == round(coverage.high_quality * 10_000)
    labels = data.load(name).test_labels
    assert torch.equal(torch.cdist(x, modes.centres).argmin(1), labels)


def test_modes_found_and_their_divergence():
    centres, scale = data.ring_modes()
    samples = torch.cat([centres[0].expand(30, 2), centres[3].expand(10, 2), torch.zeros(60, 2)])
    coverage = judge.mode_coverage(samples, centres, scale)
    assert coverage.found == 2 and coverage.high_quality == pytest.approx(0.4)
    assert coverage.kl == pytest.approx(math.log(8) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert judge.mode_coverage(samples, centres, scale, at_least=11).found == 1
    nothing = judge.mode_coverage(torch.zeros(5, 2), centres, scale)
    assert nothing.found == 0 and nothing.high_quality == 0 and math.isnan(nothing.kl)
    assert "2 of 8 modes" in str(coverage) and "(100 samples)" in str(coverage)


def test_modes_refuse_what_is_no_sample():
    with pytest.raises(ValueError, match=r"shape \(N, 2\).*got \(5, 3\)"):
        judge.mode_coverage(torch.zeros(5, 3), *data.ring_modes())
    with pytest.raises(ValueError, match="row 1 is not"):
        judge.mode_coverage(torch.tensor([[0.0, 0.0], [math.inf, 0.0]]), *data.ring_modes())
    centres, scale = data.ring_modes()
    for wrong in (-1.0, 0.0, math.nan):
        with pytest.raises(ValueError, match=f"scale must be a positive finite number, got {wrong}"):
            judge.mode_coverage(centres, centres, wrong)
        with pytest.raises(ValueError, match=f"radius must be a positive finite number, got {wrong}"):
            judge.mode_coverage(centres, centres, scale, radius=wrong)
    with pytest.raises(ValueError, match=r"got \(5, 3\)"):
        judge.stacked_coverage(torch.nn.Identity(), torch.zeros(5, 3))


class Brightest(torch.nn.Module):
    """Reads the class off the only bright pixel of ten."""

    def forward(self, x):
        return 20 * x.flatten(1)


def test_stacked_modes():
    digits = torch.eye(10).reshape(10, 1, 2, 5)
    x, modes = data.stacked(digits, torch.arange(10), 3000)
    assert x.shape == (3000, 3, 2, 5)
    read = x.flatten(2).argmax(-1)
    assert torch.equal(read @ torch.tensor([100, 10, 1]), modes)
    coverage = judge.stacked_coverage(Brightest(), x)
    assert coverage.num_modes == 1000 and coverage.high_quality == 1
    assert coverage.found == len(modes.unique()) and torch.equal(coverage.counts, torch.bincount(modes, minlength=1000))
    blurred = judge.stacked_coverage(Brightest(), torch.cat([x[:50], 0.1 * x[:50]]))
    assert blurred.high_quality == 0.5


def test_stacked_mnist_is_made_of_mnist():
    if not (Path(os.environ.get("PPGEN_DATA", "")) / "mnist").is_dir() or not os.environ.get("PPGEN_DATA"):
        pytest.skip("PPGEN_DATA names no folder that has mnist")
    stacked, mnist = data.load("stacked-mnist"), data.load("mnist", binarize="none")
    assert stacked.event_shape == (3, 28, 28) and stacked.num_levels == 256
    known = {
        image.numpy().tobytes(): int(label) for image, label in zip(mnist.test[:, 0], mnist.test_labels, strict=True)
    }
    for image, mode in zip(stacked.test[:20], stacked.test_labels[:20], strict=True):
        digits = [known[channel.numpy().tobytes()] for channel in image]
        assert int(mode) == 100 * digits[0] + 10 * digits[1] + digits[2]


# -- classifiers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", binarize="none")


@pytest.fixture(scope="module")
def classifier(digits):
    return judge.train_classifier(digits.train, digits.train_labels, levels=17, epochs=12, progress=False)


def test_the_default_classifier_knows_the_digits(classifier, digits):
    assert classifier.accuracy(digits.test, digits.test_labels) > 0.95
    assert classifier.features(digits.test).shape == (300, 128) and not classifier.training


def test_classifiers_have_seeds_and_leave_the_generator_alone(digits):
    state = torch.get_rng_state()
    first, second = (
        judge.train_classifier(
            digits.train[:200], digits.train_labels[:200], levels=17, epochs=1, seed=3, progress=False
        )
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_classifiers_refuse_bad_labels():
    with pytest.raises(ValueError, match="labels must be a class"):
        judge.train_classifier(torch.zeros(5, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="labels must be a class"):
        judge.train_classifier(torch.zeros(5, 3), torch.zeros(5))
    with pytest.raises(ValueError, match="got shape"):
        judge.train_classifier(torch.zeros(5, 3, 3), torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match="for each of the 0 data, at least one"):
        judge.train_classifier(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.uint16, torch.int64, torch.uint64])
def test_classifiers_take_labels_of_any_whole_type(dtype):
    x = torch.tensor([[-1.0], [1.0]]).repeat(20, 1)
    labels = (x[:, 0] > 0).to(dtype)
    assert judge.train_classifier(x, labels, epochs=20, progress=False).accuracy(x, labels) == 1.0


def test_the_accuracy_wants_a_label_a_datum(classifier, digits):
    x, labels = digits.test[:], digits.test_labels
    for wrong in (labels[:, None], labels[:1], labels[:-1]):
        with pytest.raises(ValueError, match="labels must be a class"):
            classifier.accuracy(x, wrong)


def test_shares_of_classes(classifier, digits):
    shares = judge.class_shares(classifier, digits.test)
    assert shares.confident > 0.8 and shares.num_samples == 300
    assert shares.shares.sum() == pytest.approx(1) and shares.smallest > 0.05
    noise = torch.randint(0, 17, (300, 1, 8, 8), dtype=torch.uint8)
    assert judge.class_shares(classifier, noise).confident < shares.confident - 0.2
    assert "(300 samples)" in str(shares)


def test_a_report_has_it_all(classifier, digits):
    report = judge.sample_report(digits.test, digits.validation, classifier=classifier)
    assert list(report.scores) == list(MEASURES) and all(s.num_real == 300 for s in report.scores.values())
    figures = report.summary()
    assert figures["num_samples"] == 200 and len(figures["class_shares"]) == 10 and figures["confident"] > 0.8
    assert str(report).count("samples)") == 7
    noise = torch.randint(0, 17, (200, 1, 8, 8), dtype=torch.uint8)
    bad = judge.sample_report(digits.test, noise, classifier=classifier).scores
    for better, name in (
        (1, "precision"),
        (1, "recall"),
        (1, "coverage"),
        (-1, "Fréchet distance"),
        (-1, "kernel distance"),
    ):
        assert better * report.scores[name].value > better * bad[name].value
    assert judge.sample_report(digits.test, noise).classes is None
