"""Factor analysis against Gaussians by hand, scikit-learn, and itself under EM and SVI, complete and with gaps."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from sklearn.decomposition import FactorAnalysis as SklearnFactorAnalysis

from ppgen import data
from ppgen.inference import EM, elbo, encode, fit, impute, iwae, log_likelihood, log_weights, sample, train
from ppgen.models import FactorAnalysis, ProbabilisticPCA, factor

D, Q = 6, 2


def correlated(n=400, dim=D, latent_dim=Q, seed=0):
    """Rows of a factor analysis with noises that differ, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, latent_dim, generator=generator, dtype=torch.float64)
    loadings = torch.randn(latent_dim, dim, generator=generator, dtype=torch.float64)
    scale = torch.linspace(0.4, 1.0, dim, dtype=torch.float64)
    return z @ loadings + 1 + scale * torch.randn(n, dim, generator=generator, dtype=torch.float64)


def gaps(x, share=0.3, seed=0):
    """A mask with a row of which nothing was seen, and one of which all was."""
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) > share
    mask[0], mask[1] = False, True
    return mask


def made(kind=FactorAnalysis, dim=D, latent_dim=Q):
    """A model whose parameters are nothing special."""
    model = kind(dim, latent_dim).double()
    with torch.no_grad():
        model.loc.normal_()
        model.log_scale.normal_(-0.5, 0.5)
    return model


def moments(model):
    loadings = model.loadings.detach().numpy()
    return loadings, model.loc.detach().numpy(), np.diag(model.variance.detach().numpy())


def log_prob_by_hand(model, x, mask):
    loadings, loc, noise = moments(model)
    covariance = loadings @ loadings.T + noise
    values = []
    for row, seen in zip(x.numpy(), mask.numpy(), strict=True):
        part = multivariate_normal(loc[seen], covariance[np.ix_(seen, seen)]) if seen.any() else None
        values.append(part.logpdf(row[seen]) if part else 0.0)
    return torch.tensor(np.array(values))


def posterior_by_hand(model, row, seen):
    """What was seen tells of z: by conditioning in the joint Gaussian of (z, x)."""
    loadings, loc, noise = moments(model)
    loadings, loc, noise = loadings[seen], loc[seen], noise[np.ix_(seen, seen)]
    gain = loadings.T @ np.linalg.inv(loadings @ loadings.T + noise)
    return gain @ (row[seen] - loc), np.eye(loadings.shape[1]) - gain @ loadings


@pytest.fixture(params=[FactorAnalysis, ProbabilisticPCA], ids=["fa", "ppca"])
def kind(request):
    return request.param


@pytest.mark.parametrize("incomplete", [False, True])
def test_marginal_and_posterior_by_hand(kind, incomplete):
    model, x = made(kind), correlated(20)
    mask = gaps(x) if incomplete else None
    seen = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    expected = log_prob_by_hand(model, x, seen)
    torch.testing.assert_close(model.log_prob(x, mask), expected)
    assert model.score(x, mask) == pytest.approx(expected.mean().item())
    posterior = model.posterior(x, mask)
    for i in range(len(x)):
        mean, covariance = posterior_by_hand(model, x[i].numpy(), seen[i].numpy())
        np.testing.assert_allclose(posterior.mean[i].detach(), mean, atol=1e-10)
        np.testing.assert_allclose(posterior.covariance_matrix[i].detach(), covariance, atol=1e-10)
    if mask is None:
        torch.testing.assert_close(model.marginal().log_prob(x), expected)


@pytest.mark.parametrize("incomplete", [False, True])
def test_one_sample_is_exact(kind, incomplete):
    model, x = made(kind), correlated(150)
    mask = gaps(x) if incomplete else None
    exact = model.log_prob(x, mask)
    holes = x if mask is None else torch.where(mask, x, torch.nan)  # what is missing is never looked at
    one = log_likelihood(model, holes, mask=mask, num_samples=1)
    torch.testing.assert_close(one.values, exact, check_dtype=False)
    torch.testing.assert_close(one.elbo, exact, check_dtype=False)
    if mask is None:
        assert log_weights(model, x, num_samples=9).std(0).max() < 1e-12
    many = log_likelihood(model.float(), holes.float(), mask=mask, num_samples=30)  # and single precision knows it, too
    assert many.reliable.all() and many.mean_mc_standard_error == 0
    torch.testing.assert_close(many.values, exact, check_dtype=False, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("loss", [elbo(), elbo(num_particles=2), iwae(3)], ids=str)
@pytest.mark.parametrize("incomplete", [False, True])
def test_every_bound_has_the_gradient_of_the_likelihood(kind, incomplete, loss):
    model, x = made(kind), correlated(30)
    mask = gaps(x) if incomplete else None
    exact = torch.autograd.grad(-model.log_prob(x, mask).mean(), list(model.parameters()))

    def with_mask(program):
        return lambda x: program(x, mask=mask)

    value = loss(with_mask(model.model), with_mask(model.guide), x)
    assert value.item() == pytest.approx(-model.score(x, mask))
    for ours, theirs in zip(torch.autograd.grad(value, list(model.parameters())), exact, strict=True):
        torch.testing.assert_close(ours, theirs)


def digits(n=600):
    """Digits with a little noise, since some of their pixels never vary."""
    x = data.load("digits", binarize="none").train[:n].flatten(1).double() / 16
    return x + 0.05 * torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("x", "latent_dim"), [(correlated(), 2), (digits(), 8)], ids=["small", "digits"])
def test_scikit_learns_factor_analysis_has_the_same_likelihood(x, latent_dim):
    reference = SklearnFactorAnalysis(latent_dim, tol=1e-10, max_iter=10_000, svd_method="lapack").fit(x.numpy())
    model = FactorAnalysis(x.shape[1], latent_dim).double()
    train(EM(model, tolerance=1e-10), x, epochs=2000, batch_size=len(x), progress=False)
    assert model.score(x) == pytest.approx(reference.score(x.numpy()), abs=1e-5)
    np.testing.assert_allclose(
        model.marginal().covariance_matrix.detach(), reference.get_covariance(), atol=2e-3 * x.var().item()
    )


@pytest.mark.parametrize("x", [correlated(), digits()], ids=["small", "digits"])
def test_scikit_learns_pca_has_the_same_likelihood(x):
    reference = PCA(2, svd_solver="full").fit(x.numpy())
    model = ProbabilisticPCA(x.shape[1], 2).double()
    model.initialize(x)
    # scikit-learn divides its covariance by N − 1, the maximum of the likelihood by N.
    smaller = (len(x) - 1) / len(x)
    model_covariance = model.marginal().covariance_matrix.detach()
    np.testing.assert_allclose(model_covariance, smaller * reference.get_covariance(), atol=1e-8)
    assert 0 <= model.score(x) - reference.score(x.numpy()) < 1e-3
    before = model.score(x)
    model.maximization(model.expectation(x))
    assert model.score(x) == pytest.approx(before, abs=1e-9)  # the optimum stays where it is


def test_digits_in_single_precision(kind):
    x = digits(300).float()
    model = kind(64, 8)
    train(EM(model), x, epochs=5, batch_size=len(x), progress=False)
    assert log_likelihood(model, x, num_samples=30).reliable.all()
    twin = copy.deepcopy(model).double()
    torch.testing.assert_close(model.log_prob(x), twin.log_prob(x.double()), check_dtype=False, atol=1e-4, rtol=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    dim=st.integers(1, 7),
    fewer=st.integers(0, 6),
    share=st.sampled_from([0.0, 0.2, 0.7]),
    isotropic=st.booleans(),
    rows=st.integers(2, 60),
    closed_form_start=st.booleans(),
)
def test_em_is_monotone(dim, fewer, share, isotropic, rows, closed_form_start):
    x = correlated(rows, dim=dim, latent_dim=min(2, dim), seed=rows)
    batch = (x, gaps(x, share, seed=dim)) if share else (x,)
    model = FactorAnalysis(dim, max(1, dim - fewer), isotropic=isotropic, min_variance=1e-3).double()
    if closed_form_start:
        model.initialize(*batch)
    scores = []
    for _ in range(25):
        scores.append(model.score(*batch))
        statistics = model.expectation(*batch)
        assert statistics["log_likelihood"].item() == pytest.approx(scores[-1])
        model.maximization(statistics)
    floor = (model.variance < 1.1e-3).any()  # where the smallest noise is reached, it is not the maximum any more
    assert np.diff(scores).min() > (-1e-2 if floor else -1e-9)
    assert np.isfinite(scores).all() and scores[-1] >= scores[0] - 1e-9


@pytest.mark.parametrize("incomplete", [False, True])
def test_em_ends_where_the_gradient_is_zero_and_svi_arrives_there(kind, incomplete):
    x = correlated()
    mask = gaps(x, 0.1) if incomplete else None
    batch = (x,) if mask is None else (x, mask)
    model = kind(D, Q).double()
    train(EM(model, tolerance=1e-11), batch, epochs=3000, batch_size=len(x), progress=False)
    model.zero_grad()
    model.log_prob(*batch).mean().backward()
    assert all(p.grad.abs().max() < 1e-4 for p in model.parameters())

    climber = kind(D, Q).double()
    for lr in (0.1, 0.01):
        fit(
            climber,
            x,
            mask=mask,
            epochs=150,
            batch_size=len(x),
            optimizer=lambda p, lr=lr: torch.optim.Adam(p, lr),
            seed=0,
            progress=False,
        )
    assert climber.score(*batch) == pytest.approx(model.score(*batch), abs=1e-4)


@pytest.mark.parametrize("incomplete", [False, True])
def test_stepwise_em_on_small_batches(kind, incomplete):
    x = correlated(1000)
    batch = (x, gaps(x)) if incomplete else (x,)
    whole, small = kind(D, Q).double(), kind(D, Q).double()
    train(EM(whole), batch, epochs=200, batch_size=len(x), progress=False)
    train(EM(small), batch, epochs=30, batch_size=100, seed=0, progress=False)
    assert whole.score(*batch) - 0.02 < small.score(*batch) < whole.score(*batch) + 1e-6


def test_what_generated_the_data_is_found():
    truth = made()
    x = sample(truth, 5000, seed=0)
    model = FactorAnalysis(D, Q).double()
    train(EM(model, tolerance=1e-8), x, epochs=500, batch_size=len(x), progress=False)
    assert 0 < model.score(x) - truth.score(x) < 0.01  # about parameters / (2 N)
    expected = truth.marginal().covariance_matrix
    torch.testing.assert_close(model.marginal().covariance_matrix, expected, atol=0.15, rtol=0.1)


def test_a_mask_of_ones_changes_nothing(kind):
    model, x = made(kind), correlated(40)
    ones = torch.ones_like(x, dtype=torch.bool)
    torch.testing.assert_close(model.log_prob(x, ones), model.log_prob(x))
    torch.testing.assert_close(encode(model, x, mask=ones), encode(model, x))
    other = copy.deepcopy(model)
    model.maximization(model.expectation(x))
    other.maximization(other.expectation(x, ones))
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("incomplete", [False, True])
def test_blocks_of_rows_do_not_show(kind, incomplete, monkeypatch):
    model, x = made(kind), correlated(40)
    mask = gaps(x) if incomplete else None
    whole, statistics = model.log_prob(x, mask), model.expectation(x, mask)
    monkeypatch.setattr(factor, "ROWS", 7)
    torch.testing.assert_close(model.log_prob(x, mask), whole)
    for name, value in model.expectation(x, mask).items():
        torch.testing.assert_close(value, statistics[name])


def test_incomplete_rows_are_filled_by_their_conditional_mean():
    model, x = made(), correlated(12)
    mask = gaps(x)
    filled = impute(model, torch.where(mask, x, torch.nan), mask=mask, num_samples=20_000)
    assert torch.equal(filled[mask], x[mask])
    loadings, loc, _ = moments(model)
    for i in range(len(x)):
        mean, _ = posterior_by_hand(model, x[i].numpy(), mask[i].numpy())
        np.testing.assert_allclose(filled[i][~mask[i]], (loc + loadings @ mean)[~mask[i].numpy()], atol=0.06)


def test_a_coordinate_that_was_never_seen_stays_as_it_was(kind):
    x = correlated(50)
    mask = gaps(x)
    mask[:, 2] = False
    model = kind(D, Q).double()
    train(EM(model), (x, mask), epochs=20, batch_size=len(x), progress=False)
    before = copy.deepcopy(model.state_dict())
    assert model.score(x, mask) == pytest.approx(log_prob_by_hand(model, x, mask).mean().item())
    model.maximization(model.expectation(x, mask))
    assert all(p.isfinite().all() for p in model.parameters())
    assert model.loc[2].item() == pytest.approx(before["loc"][2].item(), abs=1e-9)
    if kind is FactorAnalysis:
        assert model.log_scale[2].item() == pytest.approx(before["log_scale"][2].item(), abs=1e-9)


def test_a_coordinate_that_factors_explain_completely_keeps_a_little_noise(kind):
    x = correlated(100)
    x[:, 0] = 1.0  # never varies
    x[:, 1] = 2 * x[:, 2] - 1  # the one is the other
    model = kind(D, D, min_variance=1e-4).double()
    train(EM(model), x, epochs=100, batch_size=len(x), progress=False)
    assert (model.variance >= 1e-4).all() and np.isfinite(model.score(x))


def test_the_whole_interface(kind):
    model, x = made(kind).float(), correlated(8).float()
    assert encode(model, x).shape == (8, Q)
    torch.testing.assert_close(encode(model, x), model.posterior(x).mean.detach())
    assert sample(model, 5, seed=0).shape == (5, D)
    again = kind(D, Q)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.log_prob(x), model.log_prob(x))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit(model, x, epochs=1, seed=0, progress=False)
    assert not [n for n, p in model.named_parameters() if torch.equal(p, before[n])]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ((0, 2), "dim must be a positive whole number, got 0"),
        ((3, 1.5), "latent_dim must be a positive whole number, got 1.5"),
        ((3, 4), "latent_dim=4 is more than dim=3"),
    ],
)
def test_sizes_that_make_no_sense(kind, arguments, facts):
    with pytest.raises((ValueError, TypeError), match=facts):
        kind(*arguments)
    with pytest.raises(ValueError, match="min_variance must be a positive finite number, got 0"):
        kind(3, 2, min_variance=0)


def test_data_of_another_shape(kind):
    model, x = kind(D, Q), correlated(4).float()
    for call in (model.log_prob, model.initialize, model.expectation, model.guide):
        with pytest.raises(ValueError, match=r"dim=6\) takes x of shape \(N, 6\), .* got \(4, 5\)"):
            call(x[:, :5])
        with pytest.raises(ValueError, match=r"images flattened by x\.flatten\(1\)"):
            call(x.reshape(4, 1, 2, 3))
        with pytest.raises(TypeError, match=r"mask must be a boolean tensor, True where .* got torch.float32"):
            call(x, mask=torch.ones(4, D))
        with pytest.raises(ValueError, match=r"mask has shape \(4, 5\) and x \(4, 6\)"):
            call(x, mask=torch.ones(4, D - 1).bool())
    with pytest.raises(ValueError, match=r"got \(0, 6\)"):
        model.log_prob(x[:0])


@pytest.mark.parametrize("masked", [False, True])
def test_data_far_from_zero_are_learned_as_data_near_it(masked):
    """As dates in seconds are: counted from zero, x² would leave nothing of their variance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=generator).double() @ torch.randn(2, 6, generator=generator).double()
    x = x + 0.3 * torch.randn(300, 6, generator=generator).double()
    losses = []
    for offset in (0.0, 2.0**30):
        fa = FactorAnalysis(6, 2).double()
        batch = (x + offset, torch.rand(x.shape, generator=generator.manual_seed(1)) < 0.8)
        step = EM(fa, seed=0)
        losses.append([step.step(*batch[: 1 + masked]).item() for _ in range(20)])
        loaded = FactorAnalysis(6, 2).double()
        loaded.load_state_dict(fa.state_dict())
        assert torch.equal(loaded.expectation(*batch[: 1 + masked])["xx"], fa.expectation(*batch[: 1 + masked])["xx"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_a_start_from_data_that_are_not_finite_is_refused():
    fa = FactorAnalysis(3, 1)
    before = copy.deepcopy(fa.state_dict())
    x = torch.randn(20, 3)
    x[4, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite: drop the rows, or mask"):
        fa.initialize(x)
    assert all(torch.equal(before[name], value) for name, value in fa.state_dict().items())
    fa.initialize(x, x.isfinite())
    assert bool(fa.loc.isfinite().all())
