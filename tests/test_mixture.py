"""Gaussian mixtures against scikit-learn, torch's own mixtures, and conditional Gaussians row by row."""

import copy
import math
import warnings

import numpy as np
import pyro
import pytest
import torch
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Scikit
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.testing import assert_close

from ppgen.inference import elbo, fit, impute, iwae, log_likelihood, sample
from ppgen.models import GaussianMixture

KINDS = ["full", "tied", "diag", "spherical"]


def tiny_and_far():
    """Clusters of very different sizes, a long way from the origin."""
    generator = np.random.default_rng(0)
    centres, scales = generator.normal(size=(4, 3)), np.array([1e-3, 1e-2, 0.1, 1.0])
    return np.concatenate([c + s * generator.normal(size=(100, 3)) for c, s in zip(centres, scales, strict=True)]) + 1e3


DATA = {
    "iris": (lambda: load_iris().data, 3),
    "wine": (lambda: load_wine().data, 3),  # coordinates in units from 0.1 to 1000
    "digits": (lambda: PCA(12).fit_transform(load_digits().data), 10),
    "tiny and far": (tiny_and_far, 4),
    "one coordinate": (lambda: load_iris().data[:, 2:3], 2),
}


def start(x, num_components, seed=0):
    """Weights, means and one covariance matrix for all: the same start for us and for scikit-learn."""
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.full(num_components, 5.0))
    loc = x[generator.choice(len(x), num_components, replace=False)]
    return weights, loc, np.atleast_2d(np.cov(x.T)) + 1e-3 * np.eye(x.shape[1])


def in_form(kind, covariance, num_components):
    """A covariance matrix as each kind has it, and its inverse."""
    variances = np.diag(covariance)
    form = {
        "full": np.stack([covariance] * num_components),
        "tied": covariance,
        "diag": np.stack([variances] * num_components),
        "spherical": np.full(num_components, variances.mean()),
    }[kind]
    return form, np.linalg.inv(form) if form.ndim > 1 and kind != "diag" else 1 / form


def random_mixture(kind, num_components=3, dim=4, seed=0):
    """A mixture in float64 of which no two parameters are alike."""
    gmm = GaussianMixture(num_components, dim, kind).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gmm.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return gmm


def matrices(gmm):
    """Covariance matrices (K, D, D), whatever the kind."""
    covariances = gmm.covariances.detach()
    if covariances.dim() == 2:
        return torch.diag_embed(covariances.expand(-1, gmm.dim))
    return covariances.expand(gmm.num_components, -1, -1)


def incomplete(num_rows=50, dim=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    mask = torch.rand(num_rows, dim, generator=generator) < 0.6
    mask[0], mask[1] = False, True
    return torch.where(mask, x, torch.nan), mask


def given_observed(gmm, row, seen):
    """Log p(k, observed), and the conditional means and covariances of a whole row, by the textbook."""
    log_joint, means, covariances = [], [], []
    missing = ~seen
    for weight, loc, covariance in zip(gmm.weights, gmm.loc, matrices(gmm), strict=True):
        mean, conditional = row.clone(), torch.zeros_like(covariance)
        log_prob = torch.tensor(0.0, dtype=torch.float64)
        if seen.any():
            observed_covariance = covariance[seen][:, seen]
            log_prob = MultivariateNormal(loc[seen], observed_covariance).log_prob(row[seen])
            regression = covariance[missing][:, seen] @ observed_covariance.inverse()
            mean[missing] = loc[missing] + regression @ (row[seen] - loc[seen])
            within = covariance[missing][:, missing] - regression @ covariance[seen][:, missing]
        else:
            mean, within = loc, covariance
        conditional[missing.outer(missing)] = within.flatten()
        log_joint.append(weight.log() + log_prob)
        means.append(mean)
        covariances.append(conditional)
    return torch.stack(log_joint), torch.stack(means), torch.stack(covariances)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DATA)
def test_em_takes_the_same_course_as_scikit_learn(name, kind):
    load, num_components = DATA[name]
    x = load()
    weights, loc, covariance = start(x, num_components)
    form, precision = in_form(kind, covariance, num_components)
    scikit = Scikit(
        num_components,
        covariance_type=kind,
        tol=0.0,
        max_iter=25,
        weights_init=weights,
        means_init=loc,
        precisions_init=precision,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        scikit.fit(x)
    gmm = GaussianMixture(num_components, x.shape[1], kind).double()
    gmm.set_parameters(weights, loc, form)
    rows = torch.as_tensor(x)
    for _ in range(25):
        gmm.maximization(gmm.expectation(rows))
    assert abs(gmm.score(rows) - scikit.score(x)) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_readings_of_a_mixture_are_those_of_scikit_learn(kind):
    x = load_wine().data
    scikit = Scikit(3, covariance_type=kind, random_state=0).fit(x)
    gmm = GaussianMixture(3, x.shape[1], kind).double()
    gmm.set_parameters(scikit.weights_, scikit.means_, scikit.covariances_)
    rows = torch.as_tensor(x)
    assert_close(gmm.log_prob(rows), torch.as_tensor(scikit.score_samples(x)), rtol=1e-9, atol=1e-9)
    assert_close(gmm.responsibilities(rows), torch.as_tensor(scikit.predict_proba(x)), rtol=1e-7, atol=1e-9)
    assert gmm.predict(rows).tolist() == scikit.predict(x).tolist()
    assert gmm.num_parameters == scikit._n_parameters()
    for reading in ("score", "bic", "aic"):
        assert getattr(gmm, reading)(rows) == pytest.approx(getattr(scikit, reading)(x), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_every_likelihood_is_the_exact_one(kind):
    gmm = random_mixture(kind)
    x = torch.randn(30, 4, dtype=torch.float64)
    components = MultivariateNormal(gmm.loc, matrices(gmm))
    exact = MixtureSameFamily(Categorical(logits=gmm.logits), components).log_prob(x)
    assert_close(gmm.log_prob(x), exact)
    estimate = log_likelihood(gmm, x, num_samples=1)
    assert_close(estimate.values, exact)
    assert bool(estimate.reliable.all())
    for loss in (elbo(), iwae(3)):
        assert_close(loss(gmm.model, gmm.guide, x), -exact.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_elbo_is_exact(kind):
    gmm = random_mixture(kind)
    x = torch.randn(30, 4, dtype=torch.float64)
    by_enumeration = torch.autograd.grad(elbo()(gmm.model, gmm.guide, x), list(gmm.parameters()))
    exact = torch.autograd.grad(-gmm.log_prob(x).mean(), list(gmm.parameters()))
    assert all(bool(gradient.any()) for gradient in exact)
    assert_close(by_enumeration, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_fit_reaches_what_em_reaches(kind):
    x = torch.as_tensor(load_iris().data)
    gmm = GaussianMixture(2, 4, kind).double()
    gmm.fit_predict(x, num_iterations=300, tolerance=1e-9, generator=torch.Generator().manual_seed(0))
    optimum = gmm.score(x)
    with torch.no_grad():
        for parameter in gmm.parameters():
            parameter.add_(0.2)
    assert gmm.score(x) < optimum - 0.05
    options = {"epochs": 80, "batch_size": 150, "seed": 0, "progress": False}
    fit(gmm, x, optimizer=lambda p: torch.optim.Adam(p, lr=0.05), **options)
    assert gmm.score(x) == pytest.approx(optimum, abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_pyro_trains_every_instance(kind, global_param_store):
    x = torch.randn(30, 4)
    for _ in range(2):
        gmm = GaussianMixture(3, 4, kind)
        before = copy.deepcopy(gmm.state_dict())
        objective = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
        pyro.infer.SVI(gmm.model, gmm.guide, pyro.optim.Adam({"lr": 0.1}), objective).step(x)
        assert all(bool((before[name] != p).any()) for name, p in gmm.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_missing_entries_are_integrated_out(kind):
    gmm = random_mixture(kind)
    x, mask = incomplete()
    rows = [given_observed(gmm, row, seen)[0] for row, seen in zip(x, mask, strict=True)]
    exact = torch.stack(rows).logsumexp(-1)
    assert exact[0].item() == pytest.approx(0.0, abs=1e-12)  # nothing observed
    assert_close(gmm.log_prob(x, mask), exact)
    assert_close(log_likelihood(gmm, x, mask=mask, num_samples=1).values, exact)
    assert_close(gmm.responsibilities(x, mask), torch.stack(rows).softmax(-1))
    assert_close(gmm.responsibilities(x, mask)[0], gmm.weights)


@pytest.mark.parametrize("kind", KINDS)
def test_incomplete_rows_of_many_coordinates_keep_the_digits_of_float64(kind):
    dim = 300
    gmm = GaussianMixture(2, dim, kind).double()
    x = torch.randn(3, dim, dtype=torch.float64)
    covariance = gmm.covariances.detach()[0]
    mask = torch.arange(dim).expand(3, -1) < torch.tensor([[dim], [dim - 1], [7]])
    for row, seen, found in zip(x, mask, gmm.log_prob(x, mask), strict=True):
        if kind in ("full", "tied"):
            scale = gmm.covariances.detach().reshape(-1, dim, dim).diagonal(dim1=-2, dim2=-1).expand(2, -1).sqrt()
        else:
            scale = covariance.sqrt().expand(dim).expand(2, -1)
        each = torch.distributions.Normal(gmm.loc.detach(), scale).log_prob(row)[:, seen].sum(-1)
        assert found.item() == pytest.approx((each + gmm.weights.log()).logsumexp(0).item(), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_entries_are_filled_in_by_their_mean(kind):
    gmm = random_mixture(kind)
    x, mask = incomplete(10)
    filled = impute(gmm, x, mask=mask, num_samples=1)
    for row, seen, found in zip(x, mask, filled, strict=True):
        log_joint, means, _ = given_observed(gmm, row, seen)
        assert_close(found, (log_joint.softmax(-1) @ means).detach())


@pytest.mark.parametrize("kind", KINDS)
def test_the_e_step_of_incomplete_rows(kind):
    gmm = random_mixture(kind)
    gmm.decoder.origin.fill_(0.3)
    x, mask = incomplete()
    first = torch.zeros(3, 4, dtype=torch.float64)
    second = torch.zeros(3, 4, 4, dtype=torch.float64)
    for row, seen in zip(x, mask, strict=True):
        log_joint, mean, covariance = given_observed(gmm, row, seen)
        share, mean = log_joint.softmax(-1), mean - 0.3
        first += share[:, None] * mean / len(x)
        second += share[:, None, None] * (covariance + mean[:, :, None] * mean[:, None]) / len(x)
    if kind in ("diag", "spherical"):
        second = second.diagonal(dim1=-2, dim2=-1)
    if kind == "tied":
        second = second.sum(0, keepdim=True)
    statistics = gmm.expectation(x, mask)
    assert_close(statistics["first"], first)
    assert_close(statistics["second"], second)
    assert_close(statistics["weight"], gmm.responsibilities(x, mask).mean(0))
    assert_close(statistics["log_likelihood"], gmm.log_prob(x, mask).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_everything_changes_nothing(kind):
    gmm = random_mixture(kind)
    x = torch.randn(40, 4, dtype=torch.float64)
    assert_close(gmm.expectation(x, torch.ones_like(x, dtype=torch.bool)), gmm.expectation(x))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_rows_add_up(kind, masked, monkeypatch):
    gmm = random_mixture(kind)
    x, mask = incomplete()
    batch = (x, mask) if masked else (torch.where(mask, x, 0.0),)
    whole, log_prob = gmm.expectation(*batch), gmm.log_prob(*batch)
    monkeypatch.setattr(gmm.decoder, "rows_of_a_block", lambda complete: 7)
    assert_close(gmm.expectation(*batch), whole)
    assert_close(gmm.log_prob(*batch), log_prob)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_is_learned_from_incomplete_rows(kind):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 2
    x = torch.randn(600, 3, generator=generator) + 6 * labels[:, None]
    mask = torch.rand(600, 3, generator=generator) < 0.7
    gmm = GaussianMixture(2, 3, kind)
    found = gmm.fit_predict(torch.where(mask, x, torch.nan), mask, tolerance=1e-6, generator=generator)
    order = gmm.loc[:, 0].argsort()
    assert_close(gmm.loc[order], torch.tensor([[0.0] * 3, [6.0] * 3]), atol=0.25, rtol=0)
    assert_close(matrices(gmm), torch.eye(3).expand(2, 3, 3), atol=0.35, rtol=0)
    right = (order[labels] == found)[mask.any(-1)]  # where nothing was observed there is nothing to be right about
    assert right.double().mean() > 0.97


NOISE = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
DEGENERATE = {
    "one point, many times": torch.ones(20, 3),
    "fewer distinct points than components": torch.tensor([[0.0, 0.0, 1.0], [1e3, 0.0, 1.0]]).repeat(10, 1),
    "a coordinate that never varies": torch.cat([NOISE[:, :2], torch.full((40, 1), 7.0)], 1),
    "coordinates that are the same": NOISE[:, :1].expand(-1, 3),
    "one row far away": torch.cat([NOISE, torch.full((1, 3), 1e6)]),
    "as many rows as components": NOISE[:4],
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_data_do_not_break_it(name, kind, masked):
    x = DEGENERATE[name]
    batch = (x, torch.arange(x.numel()).reshape(x.shape) % 5 > 0) if masked else (x,)
    gmm = GaussianMixture(4, 3, kind)
    labels = gmm.fit_predict(*batch, tolerance=0.0, generator=torch.Generator().manual_seed(0))
    assert set(labels.tolist()) <= set(range(4))
    for tensor in gmm.state_dict().values():
        assert bool(tensor.isfinite().all())
    assert bool(gmm.log_prob(*batch).isfinite().all())
    assert_close(gmm.responsibilities(*batch).sum(-1), torch.ones(len(x)))
    # every variance is at least about what reg_covar leaves of it
    assert bool((torch.linalg.eigvalsh(matrices(gmm).double()) > 0).all())


def test_a_component_without_data_stays_where_it_is():
    gmm = GaussianMixture(2, 1, "diag").double()
    gmm.set_parameters([0.5, 0.5], [[0.0], [1e6]], [[1.0], [1.0]])
    x = torch.randn(50, 1, dtype=torch.float64)
    for _ in range(3):
        gmm.maximization(gmm.expectation(x))
    assert gmm.loc[1].item() == 1e6 and gmm.covariances[1].item() == pytest.approx(1.0)
    assert gmm.loc[0].item() == pytest.approx(x.mean().item())
    assert gmm.weights[1] < 1e-30


@pytest.mark.parametrize("kind", KINDS)
def test_samples(kind):
    gmm = random_mixture(kind)
    gmm.set_parameters(gmm.weights.detach(), gmm.loc.detach(), gmm.covariances.detach())
    draws = sample(gmm, 40_000, seed=0)
    mean = gmm.weights @ gmm.loc
    spread = (gmm.weights[:, None, None] * (matrices(gmm) + gmm.loc[:, :, None] * gmm.loc[:, None])).sum(0)
    assert draws.shape == (40_000, 4)
    assert_close(draws.mean(0), mean.detach(), atol=0.1, rtol=0)
    assert_close(draws.T.cov(), (spread - mean.outer(mean)).detach(), atol=0.3, rtol=0.05)


def test_starts_are_decided_by_their_generator():
    x = torch.as_tensor(load_iris().data)
    scores = set()
    for _ in range(2):
        gmm = GaussianMixture(5, 4).double()
        state = torch.get_rng_state()
        gmm.initialize(x, generator=torch.Generator().manual_seed(3))
        assert torch.equal(torch.get_rng_state(), state)
        scores.add(gmm.score(x))
    assert len(scores) == 1


def test_a_state_is_a_whole_mixture():
    x = torch.randn(50, 2) + 100
    gmm = GaussianMixture(2, 2)
    gmm.fit_predict(x)
    other = GaussianMixture(2, 2)
    other.load_state_dict(gmm.state_dict())
    assert other.score(x) == gmm.score(x) == copy.deepcopy(gmm).score(x)


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: GaussianMixture(0, 2), ["num_components", "0"]),
        (lambda: GaussianMixture(2, 2.5), ["dim", "2.5"]),
        (lambda: GaussianMixture(2, 2, "diagonal"), ["covariance", "'diagonal'", "'diag'", "'tied'"]),
        (lambda: GaussianMixture(2, 2, reg_covar=0.0), ["reg_covar", "0.0", "positive"]),
        (lambda: GaussianMixture(2, 2).log_prob(torch.zeros(5, 3)), ["(5, 3)", "(N, 2)"]),
        (lambda: GaussianMixture(2, 2).expectation(torch.zeros(0, 2)), ["(0, 2)", "at least 1"]),
        (lambda: GaussianMixture(3, 2).initialize(torch.zeros(2, 2)), ["num_components=3", "2"]),
        (lambda: GaussianMixture(1, 1).initialize(torch.tensor([[math.nan]])), ["not finite", "mask"]),
        (lambda: GaussianMixture(2, 2).fit_predict(torch.zeros(5, 2), num_iterations=0), ["num_iterations", "0"]),
        (
            lambda: GaussianMixture(2, 2).score(torch.zeros(5, 2), torch.ones(5, dtype=torch.bool)),
            ["mask", "(5,)", "(5, 2)"],
        ),
        (
            lambda: GaussianMixture(2, 1, "diag").set_parameters([0.5, 0.5], [[0.0], [1.0]], [[1.0], [-2.0]]),
            ["covariances", "-2"],
        ),
        (
            lambda: GaussianMixture(1, 2).set_parameters([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]]),
            ["covariances", "matrix 0", "positive definite"],
        ),
        (
            lambda: GaussianMixture(2, 2).set_parameters([0.5, 0.5], [[0.0, 0.0]], torch.eye(2)),
            ["loc", "(2, 2)", "(1, 2)"],
        ),
        (
            lambda: GaussianMixture(2, 1, "tied").set_parameters([1.0, 0.0], [[0.0], [1.0]], [[1.0]]),
            ["weights", "positive", "0.0"],
        ),
    ],
)
def test_errors_name_what_is_wrong(make, facts):
    with pytest.raises(ValueError) as error:
        make()
    for fact in facts:
        assert fact in str(error.value)


def test_a_mask_must_be_boolean():
    with pytest.raises(TypeError, match=r"boolean.*torch.float32"):
        GaussianMixture(2, 2).log_prob(torch.zeros(5, 2), torch.ones(5, 2))


def test_refused_data_leave_a_mixture_as_it_was():
    gmm = GaussianMixture(2, 2)
    gmm.fit_predict(torch.randn(30, 2) + 5)
    before = copy.deepcopy(gmm.state_dict())
    with pytest.raises(ValueError, match="not finite"):
        gmm.initialize(torch.full((5, 2), math.inf))
    assert all(torch.equal(before[name], value) for name, value in gmm.state_dict().items())
