"""Conditional pairs p(x | y): exact likelihoods of linear-Gaussian ones, labels that matter, contexts of all kinds."""

import math
from types import SimpleNamespace

import pyro
import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.nn.functional import one_hot

from ppgen import decoders, models, nn, posteriors, priors
from ppgen.data import DynamicBinarization
from ppgen.inference import (
    decode,
    denoise,
    elbo,
    encode,
    fit,
    impute,
    iwae,
    log_likelihood,
    reconstruct,
    sample,
    train,
)

D, X, Y = 2, 4, 3  # numbers in z, x and y


class Affine(torch.nn.Module):
    """The contexts side by side, times a matrix, plus a constant."""

    def __init__(self, matrix, constant):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("constant", constant)

    def forward(self, *context):
        return nn.concat(*context) @ self.matrix.T + self.constant


@pytest.fixture
def linear():
    """The pair z | y ~ N(A y, diag(s²)), x | z, y ~ N(W z + B y + c, σ² I) with all that follows in closed form."""
    a, w, b, c = (torch.randn(*shape, dtype=torch.float64) for shape in ((D, Y), (X, D), (X, Y), (X,)))
    s, sigma = torch.rand(D, dtype=torch.float64) + 0.5, 0.7
    covariance = w @ torch.diag(s**2) @ w.T + sigma**2 * torch.eye(X, dtype=torch.float64)
    posterior_covariance = torch.linalg.inv(torch.diag(s**-2) + w.T @ w / sigma**2)
    prior = priors.DiagNormal(D, Affine(torch.cat([a, torch.zeros_like(a)]), torch.cat([torch.zeros_like(s), s.log()])))
    decoder = decoders.Normal(Affine(torch.cat([w, b], 1), c), scale=sigma)

    def posterior(widening=1.0):
        """The exact q(z | x, y), or one that is wider."""
        factor = torch.linalg.cholesky(posterior_covariance * widening)
        on_x = posterior_covariance @ w.T / sigma**2
        on_y = posterior_covariance @ torch.diag(s**-2) @ a - on_x @ b
        spread = torch.cat([factor.diagonal().log(), factor[1:, 0]])
        zeros = torch.zeros(len(spread), X + Y, dtype=torch.float64)
        net = Affine(torch.cat([torch.cat([on_x, on_y], 1), zeros]), torch.cat([-on_x @ c, spread]))
        return posteriors.FullNormal(net, D)

    def exact(y):
        return MultivariateNormal(y @ (w @ a + b).T + c, covariance)

    return SimpleNamespace(prior=prior, decoder=decoder, posterior=posterior, exact=exact, w=w, b=b, c=c, a=a)


def data(linear, n):
    y = torch.randn(n, Y, dtype=torch.float64)
    return linear.exact(y).sample(), y


def cvae(linear, widening=1.0):
    return models.VAE(linear.prior, linear.decoder, linear.posterior(widening)).double()


def test_with_the_exact_posterior_one_sample_is_the_conditional_likelihood(linear):
    x, y = data(linear, 120)
    truth = linear.exact(y).log_prob(x)
    pair = cvae(linear)
    assert torch.allclose(log_likelihood(pair, x, y, num_samples=1).values, truth, atol=1e-6)
    for loss in (elbo(), elbo(num_particles=3), iwae(5)):  # all weights are equal, so every bound is tight
        assert loss(pair.model, pair.guide, x, y).item() == pytest.approx(-truth.mean().item(), abs=1e-6)
    order = torch.randperm(120)
    assert torch.allclose(log_likelihood(pair, x[order], y[order], num_samples=1).values, truth[order], atol=1e-6)
    mixed_up = log_likelihood(pair, x, y[order], num_samples=1).values
    assert torch.allclose(mixed_up, linear.exact(y[order]).log_prob(x), atol=1e-6)
    assert mixed_up.mean() < truth.mean() - 1


@pytest.mark.parametrize("proposal", ["a wider posterior", "the prior"])
def test_importance_sampling_finds_the_conditional_likelihood(linear, proposal):
    x, y = data(linear, 100)
    pair = models.DensityNetwork(linear.prior, linear.decoder) if proposal == "the prior" else cvae(linear, 1.6)
    estimate = log_likelihood(pair, x, y, num_samples=2000)
    z = (estimate.values - linear.exact(y).log_prob(x)) / estimate.mc_standard_error
    assert (z.abs() < 2).double().mean() > 0.85
    assert estimate.elbo.mean() < linear.exact(y).log_prob(x).mean() - 0.05


def test_incomplete_data_keep_their_context(linear):
    x, y = data(linear, 30)
    mask = torch.rand(30, X) < 0.5
    pair, whole = models.DensityNetwork(linear.prior, linear.decoder).double(), linear.exact(y)
    got = log_likelihood(pair, x.masked_fill(~mask, math.nan), y, mask=mask, num_samples=20_000).values
    filled = impute(pair, x.masked_fill(~mask, math.nan), y, mask=mask, num_samples=20_000)
    for n in range(30):
        seen, mean, covariance = mask[n], whole.mean[n], whole.covariance_matrix[n]
        if seen.any():
            inner = MultivariateNormal(mean[seen], covariance[seen][:, seen])
            assert got[n] == pytest.approx(inner.log_prob(x[n, seen]).item(), abs=0.2)
            regression = covariance[~seen][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
            mean = mean.index_put((~seen,), mean[~seen] + regression @ (x[n, seen] - mean[seen]))
        else:
            assert got[n] == 0
        assert torch.allclose(filled[n, ~seen], mean[~seen], atol=0.2)
        assert torch.equal(filled[n, seen], x[n, seen])


def test_samples_follow_their_context(linear):
    pair, y = cvae(linear), torch.randn(2, Y, dtype=torch.float64)
    for row in y:
        drawn, exact = sample(pair, 20_000, row[None], seed=0), linear.exact(row)
        assert drawn.shape == (20_000, X)
        assert torch.allclose(drawn.mean(0), exact.mean, atol=0.1)
        assert torch.allclose(drawn.T.cov(), exact.covariance_matrix, atol=0.2)
    both = sample(pair, 10_000, y.repeat_interleave(5000, 0), seed=0).reshape(2, 5000, X).mean(1)
    assert torch.allclose(both, linear.exact(y).mean, atol=0.15)
    trace = pyro.poutine.trace(pair.model).get_trace(None, torch.zeros(7, Y, dtype=torch.float64))
    plates = {(f.name, f.size) for f in trace.nodes["x"]["cond_indep_stack"]}
    assert plates == {("data", 7)} and trace.nodes["z"]["value"].shape == (7, D)


def test_latents_are_decoded_under_another_context(linear):
    pair = cvae(linear)
    x, y = data(linear, 9)
    z, other = encode(pair, x, y), torch.randn(9, Y, dtype=torch.float64)
    assert torch.allclose(decode(pair, z, other), z @ linear.w.T + other @ linear.b.T + linear.c)
    assert torch.allclose(reconstruct(pair, x, y), decode(pair, z, y))
    assert torch.allclose(denoise(pair, x, y, num_samples=20_000), decode(pair, z, y), atol=0.1)


def test_an_explicit_conditional_density_is_exact(linear):
    y = torch.randn(30, Y, dtype=torch.float64)
    density = models.ExplicitDensity(decoders.Normal(Affine(linear.b, linear.c), scale=0.7))
    x = sample(density, 30, y, seed=0)
    expected = torch.distributions.Normal(y @ linear.b.T + linear.c, 0.7).log_prob(x).sum(-1)
    assert torch.allclose(log_likelihood(density, x, y, num_samples=1).values, expected)


def test_several_contexts_are_one_in_pieces(linear):
    x, y = data(linear, 50)
    pair = cvae(linear, 1.6)
    whole, pieces = (log_likelihood(pair, x, *c, num_samples=20).values for c in ((y,), (y[:, :1], y[:, 1:])))
    assert torch.equal(whole, pieces)
    assert torch.equal(sample(pair, 50, y, seed=1), sample(pair, 50, y[:, :1], y[:, 1:], seed=1))


def clusters(n):
    """Three classes far apart: who knows the class knows log 3 nats more."""
    labels = torch.arange(n) % 3
    angle = labels * (2 * math.pi / 3)
    return torch.stack([5 * angle.cos(), 5 * angle.sin()], 1) + 0.5 * torch.randn(n, 2), labels


def test_a_trained_pair_draws_and_recognises_its_classes():
    (x, labels), (x_test, labels_test) = clusters(600), clusters(300)
    y = one_hot(labels, 3).float()
    pair = models.VAE(
        priors.StandardNormal(1),
        decoders.Normal(nn.MLP(1 + 3, 2), 1.0, learn_scale=True),
        posteriors.DiagNormal(nn.MLP(2 + 3, 2)),
    )
    optimizer = torch.optim.Adam(pair.parameters(), lr=0.05)
    fit(pair, (x, y), epochs=40, optimizer=optimizer, seed=0, progress=False)
    values = [log_likelihood(pair, x_test, c.expand(300, 3), num_samples=50).values for c in torch.eye(3)]
    scores = torch.stack(values)
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.5))  # of x given its class
    known = scores.gather(0, labels_test[None])[0]
    assert known.mean() == pytest.approx(-entropy, abs=0.15)
    assert (scores.argmax(0) == labels_test).double().mean() > 0.99
    unknown = scores.logsumexp(0) - math.log(3)  # log p(x), the class summed out
    assert (known - unknown).mean() == pytest.approx(math.log(3), abs=0.02)
    for label, c in enumerate(torch.eye(3)):
        assert torch.allclose(sample(pair, 400, c[None], seed=0).mean(0), x[labels == label].mean(0), atol=0.25)


def test_an_image_is_a_condition_like_any_other():
    """The sum x of the rows of an image y is improbable under another image."""
    y = torch.rand(400, 1, 4, 4)
    x = y.sum((1, 2)) + 0.1 * torch.randn(400, 4)
    pair = models.VAE(
        priors.DiagNormal(2, nn.GatedMLP((1, 4, 4), 16, 4)),
        decoders.Normal(nn.GatedBranches([2, (1, 4, 4)], 32, 4), 1.0, learn_scale=True),
        posteriors.DiagNormal(nn.GatedBranches([4, (1, 4, 4)], 16, 4)),
    )
    before = {name: p.detach().clone() for name, p in pair.named_parameters()}
    fit(pair, (x, y), epochs=25, optimizer=lambda p: torch.optim.Adam(p, lr=0.01), seed=0, progress=False)
    assert not [name for name, p in pair.named_parameters() if torch.equal(p, before[name])]
    right, wrong = (log_likelihood(pair, x, c, num_samples=50).mean for c in (y, y.roll(1, 0)))
    assert right > wrong + 3
    assert sample(pair, 5, y[:1], seed=0).shape == (5, 4)
    assert (sample(pair, 400, y, mean=True, seed=0) - x).square().mean() < 0.25 * x.var(0).mean()


def test_rows_and_labels_stay_together():
    labels = torch.arange(101)
    bits = (labels[:, None] >> torch.arange(7)) & 1

    class Check:
        seen = 0

        def step(self, x, y):
            assert torch.equal((x.long() << torch.arange(7)).sum(1), y)
            self.seen += len(y)
            return torch.tensor(0.0)

    for x in (bits.float(), DynamicBinarization(bits.float())):
        check = Check()
        train(check, (x, labels), epochs=3, batch_size=10, seed=0, progress=False)
        assert check.seen == 303


def test_bad_contexts_are_named(linear):
    pair = cvae(linear)
    x, y = data(linear, 10)
    with pytest.raises(ValueError, match=r"y\[0\] has 4 rows, and n=6 samples"):
        sample(pair, 6, y[:4])
    for call in (log_likelihood, encode, lambda *batch: fit(*batch[:1], batch[1:], epochs=1, progress=False)):
        with pytest.raises(ValueError, match=r"10.*9|9.*10"):
            call(pair, x, y[:9])
        with pytest.raises(ValueError, match=r"finite|NaN|nan"):
            call(pair, x, y.masked_fill(y > 0, math.nan))
    with pytest.raises(ValueError, match=r"Encode class indices first.*one_hot"):
        log_likelihood(pair, x, torch.arange(10))
    with pytest.raises(ValueError, match="takes 7 numbers"):
        net = nn.MLP(X + Y, 2 * D)
        other = models.VAE(linear.prior, linear.decoder, posteriors.DiagNormal(net)).double()
        log_likelihood(other, x, torch.cat([y, y], 1))
    for take in (nn.MLP(X + Y, 2 * D), nn.MLP(X, 2 * D, context_dim=Y), nn.GatedBranches([X, Y], 3, 2 * D)):
        other = models.VAE(linear.prior, linear.decoder, posteriors.DiagNormal(take)).double()
        with pytest.raises(ValueError, match=r"hand over .*missing .*the y of a batch \(x, y\)"):
            log_likelihood(other, x)
    with pytest.raises(TypeError, match="posterior must be a module"):
        models.VAE(linear.prior, linear.decoder, lambda x, y: None)
