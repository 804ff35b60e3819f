"""Hierarchies: one layer is the VAE, linear-Gaussian ones have exact answers, every part of each layer trains."""

import copy
import itertools
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from hierarchies import X, binary, dense, diagonal, ladder

from ppgen import decoders, nn, posteriors, priors
from ppgen.inference import (
    decode,
    dreg,
    elbo,
    encode,
    fit,
    iwae,
    latent_report,
    log_likelihood,
    log_weights,
    reconstruct,
    renyi,
    sample,
    sticking_the_landing,
    warmup,
)
from ppgen.models import VAE, HierarchicalVAE, LadderVAE

IMAGE = (1, 5, 4)


def convolutional(vamp=True):
    options = {"channels": (2, 3), "gated": True, "kernel_size": 3, "hidden": (8,)}
    q1 = posteriors.DiagNormal(nn.ConvNet(IMAGE, 6, context_dim=2, **options))
    q2 = posteriors.DiagNormal(nn.ConvNet(IMAGE, 4, **options))
    prior = priors.VampPrior(q2, torch.rand(5, *IMAGE)) if vamp else priors.StandardNormal(2)
    decoder = decoders.Bernoulli(nn.DeconvNet(3, IMAGE, context_dim=2, **options))
    return HierarchicalVAE(prior, [priors.DiagNormal(3, nn.GatedMLP(2, 8, 6))], decoder, [q1, q2])


PAIRS = {
    "dense": (dense, (X,)),
    "dense, vamp": (lambda: dense(vamp=True), (X,)),
    "dense, markov": (lambda: dense(markov=True), (X,)),
    "one layer": (lambda: dense(num_layers=1, vamp=True), (X,)),
    "convolutional, vamp": (convolutional, IMAGE),
    "ladder": (ladder, (X,)),
    "ladder, vamp": (lambda: ladder(vamp=True), (X,)),
    "ladder, markov": (lambda: ladder(markov=True), (X,)),
}
LOSSES = {
    "elbo": lambda: elbo(beta=warmup(2)),
    "analytic": lambda: elbo(analytic_kl=True, free_bits=1e-3),
    "iwae": lambda: iwae(3),
    "dreg": lambda: dreg(3),
    "renyi": lambda: renyi(0.5, 3),
    "sticking": lambda: sticking_the_landing(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", PAIRS)
def test_every_parameter_trains_under_every_objective(name, loss):
    build, shape = PAIRS[name]
    pair, x = build(), binary(shape=shape)
    before = {n: p.detach().clone() for n, p in pair.named_parameters()}
    fit(pair, x, loss=LOSSES[loss](), epochs=3, batch_size=6, seed=0, progress=False)
    assert not [n for n, p in pair.named_parameters() if torch.equal(p, before[n])]


@pytest.mark.parametrize("name", PAIRS)
def test_the_whole_interface(name):
    build, shape = PAIRS[name]
    pair, x = build(), binary(shape=shape)
    latents = encode(pair, x)
    if name == "one layer":
        latents = {"z": latents}
    assert list(latents) == (["z"] if name == "one layer" else [f"z{i}" for i in range(len(latents), 0, -1)])
    assert reconstruct(pair, x).shape == x.shape
    assert decode(pair, latents).shape == x.shape
    top = next(iter(latents))
    first, second = (decode(pair, {top: latents[top]}, seed=seed) for seed in (0, 1))
    assert torch.equal(first, second) == (len(latents) == 1)  # the layers below are drawn anew
    assert sample(pair, 4, seed=0).shape == (4, *shape)
    estimate = log_likelihood(pair, x, num_samples=30)
    assert estimate.values.isfinite().all() and (estimate.elbo <= estimate.values).all()
    assert set(latent_report(pair, x).kl) == set(latents)
    again = build()
    again.load_state_dict(pair.state_dict())
    copied = copy.deepcopy(pair)
    for other in (again, copied):
        assert torch.equal(log_likelihood(other, x, num_samples=30).values, estimate.values)


@pytest.mark.parametrize("loss", [elbo(), elbo(analytic_kl=True), iwae(5), dreg(5)], ids=str)
@pytest.mark.parametrize("kind", ["hierarchical", "ladder"])
def test_one_layer_is_the_vae(kind, loss):
    encoder, head = nn.GatedMLP(X, 8, 6), nn.MLP(6, 4)
    decoder, prior = decoders.Bernoulli(nn.MLP(2, 8, X)), priors.MixtureOfGaussians(3, 2)
    whole = posteriors.DiagNormal(torch.nn.Sequential(encoder, head))
    if kind == "ladder":
        ours = LadderVAE(prior, [], decoder, [encoder], [posteriors.DiagNormal(head)])
    else:
        ours = HierarchicalVAE(prior, [], decoder, [whole])
    reference, x = VAE(prior, decoder, whole), binary()
    assert torch.equal(
        log_likelihood(ours, x, num_samples=50).values, log_likelihood(reference, x, num_samples=50).values
    )
    values, gradients = [], []
    for pair in (ours, reference):
        torch.manual_seed(1)
        pair.zero_grad()
        value = loss(pair.model, pair.guide, x)
        value.backward()
        values.append(value.item())
        gradients.append([p.grad.clone() for p in (*encoder.parameters(), *decoder.parameters(), *prior.parameters())])
    assert values[0] == values[1]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


class Affine(torch.nn.Module):
    """N(sum of W_i c_i + b, S) of its contexts, with a diagonal or a full scale: exact answers to compare with."""

    def __init__(self, weights, bias, scale):
        super().__init__()
        self.weights, self.bias, self.scale = weights, bias, scale

    def forward(self, *context):
        assert len(context) == len(self.weights)
        loc = self.bias + sum(c @ w.T for c, w in zip(context, self.weights, strict=True))
        if self.scale.dim() == 1:
            return dist.Normal(loc, self.scale).to_event(1)
        return dist.MultivariateNormal(loc, scale_tril=self.scale)


class LinearGaussian:
    """A hierarchy of affine Gaussians with its joint N(mean, cov) over (z_1, ..., z_L, x) worked out."""

    def __init__(self, widths, num_data_coordinates, markov=False):
        options = {"dtype": torch.float64}
        sizes = [*widths, num_data_coordinates]
        starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        self.slices = [slice(a, b) for a, b in itertools.pairwise(starts)]
        mean, cov = torch.zeros(starts[-1], **options), torch.zeros(starts[-1], starts[-1], **options)
        self.parts = []
        order = [*reversed(range(len(widths))), len(widths)]  # z_L, ..., z_1, x
        for place, i in enumerate(order):
            parents = sorted(order[:place])[: 1 if markov else None]
            weights = [torch.randn(sizes[i], sizes[p], **options) for p in parents]
            part = Affine(weights, torch.randn(sizes[i], **options), 0.5 + torch.rand(sizes[i], **options))
            self.parts.append(part)
            own = self.slices[i]
            mean[own] = part.bias
            for w, p in zip(weights, parents, strict=True):
                mean[own] += w @ mean[self.slices[p]]
            done = torch.cat([torch.arange(len(mean))[self.slices[j]] for j in order[:place]] or [torch.arange(0)])
            for w, p in zip(weights, parents, strict=True):
                cov[own, done] += w @ cov[self.slices[p]][:, done]
            cov[done, own] = cov[own, done].T if len(done) else cov[done, own]
            cov[own, own] = part.scale.square().diag()
            for w, p in zip(weights, parents, strict=True):
                cov[own, own] += cov[own, self.slices[p]] @ w.T
        self.mean, self.cov, self.markov = mean, cov, markov

    @property
    def marginal(self):
        x = self.slices[-1]
        return dist.MultivariateNormal(self.mean[x], self.cov[x, x])

    def posterior(self, i, inflation=1.0):
        """p(z_i | x, those above it) from the joint, its scale inflated."""
        num_layers = len(self.slices) - 1
        given = [num_layers, *range(i + 1, num_layers)][: 2 if self.markov else None]
        own, index = self.slices[i], torch.cat([torch.arange(len(self.mean))[self.slices[g]] for g in given])
        weight = torch.linalg.solve(self.cov[index][:, index], self.cov[index][:, own]).T
        bias = self.mean[own] - weight @ self.mean[index]
        tril = torch.linalg.cholesky(self.cov[own, own] - weight @ self.cov[index][:, own])
        sizes = [self.slices[g].stop - self.slices[g].start for g in given]
        return Affine(list(weight.split(sizes, 1)), bias, inflation * tril)

    def pair(self, inflation=1.0):
        top, *conditionals, decoder = self.parts
        guide = [self.posterior(i, inflation) for i in range(len(self.slices) - 1)]
        return HierarchicalVAE(TopPrior(top), conditionals[::-1], decoder, guide, markov=self.markov)


class TopPrior(torch.nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self):
        return dist.Normal(self.part.bias, self.part.scale).to_event(1)


@pytest.mark.parametrize("widths", [(2, 3), (3, 2, 2)], ids=str)
@pytest.mark.parametrize("markov", [False, True])
def test_a_linear_gaussian_hierarchy_against_its_marginal(widths, markov):
    truth = LinearGaussian(widths, 4, markov)
    x = truth.marginal.sample((60,))
    exact = truth.marginal.log_prob(x)
    log_w = log_weights(truth.pair(), x, num_samples=5)  # under the exact posterior every weight is p(x)
    assert (log_w - exact).abs().max() < 1e-8
    estimate = log_likelihood(truth.pair(inflation=1.2), x, num_samples=2000)
    assert estimate.reliable_fraction > 0.95
    error = estimate.values - exact
    assert error.abs().max() > 1e-6
    assert abs(error.mean()) < 4 * estimate.mean_mc_standard_error
    assert (error.abs() < 3 * estimate.mc_standard_error).double().mean() > 0.9


def test_samples_have_the_marginals_moments():
    truth = LinearGaussian((2, 2, 3), 3)
    x = sample(truth.pair(), 40_000, seed=0)
    exact = truth.marginal
    assert ((x.mean(0) - exact.mean) / exact.stddev).abs().max() < 0.03
    assert ((x.T.cov() - exact.covariance_matrix) / torch.outer(exact.stddev, exact.stddev)).abs().max() < 0.05


def test_each_layers_kl_has_its_closed_form():
    truth = LinearGaussian((2, 3), 4)
    pair = truth.pair(inflation=0.7)
    q1, q2 = pair.posteriors
    p1, prior = pair.conditionals[0], pair.prior
    x = truth.marginal.sample((50,))
    report = latent_report(pair, x, num_samples=3000)
    top = q2(x)
    expected = torch.distributions.kl_divergence(top, _full(prior())).mean()
    assert report.kl["z2"] == pytest.approx(expected.item(), rel=0.02)
    # The mean over z2 of a divergence that is quadratic in it: at its mean, and half a trace.
    z2 = top.mean
    at_mean = torch.distributions.kl_divergence(q1(x, z2), _full(p1(z2)))
    slope = q1.weights[1] - p1.weights[0]
    spread = (slope @ q2.scale).square() / p1.scale.square().unsqueeze(-1)
    assert report.kl["z1"] == pytest.approx((at_mean + 0.5 * spread.sum()).mean().item(), rel=0.02)
    # The ELBO is the reconstruction minus both, and free bits hold each layer from below.
    with torch.no_grad():
        whole = -elbo(num_particles=3000)(pair.model, pair.guide, x)
        floored = -elbo(num_particles=3000, free_bits=100.0)(pair.model, pair.guide, x)
    assert whole.item() - floored.item() == pytest.approx(200 - sum(report.kl.values()), rel=0.01)


def _full(normal):
    return dist.MultivariateNormal(normal.mean, scale_tril=torch.diag_embed(normal.stddev))


def test_closed_forms_of_the_divergence_have_the_value_of_draws():
    for pair in (dense(), ladder()):
        x = binary()
        with torch.no_grad():
            drawn, closed = (
                torch.stack([loss(pair.model, pair.guide, x) for _ in range(80)])
                for loss in (elbo(num_particles=50), elbo(num_particles=50, analytic_kl=True))
            )
        assert (drawn.mean() - closed.mean()).abs() < 4 * ((drawn.var() + closed.var()) / 80).sqrt()
        assert closed.std() < drawn.std()


@pytest.mark.parametrize("build", [dense, ladder])
@pytest.mark.parametrize("vamp", [False, True])
def test_contexts_reach_every_layer(build, vamp):
    x, y = binary(), torch.eye(3)[torch.arange(12) % 3]
    pair = build(vamp=vamp and build is dense, y=3)
    before = {n: p.detach().clone() for n, p in pair.named_parameters()}
    fit(pair, (x, y), epochs=2, seed=0, progress=False)
    assert not [n for n, p in pair.named_parameters() if torch.equal(p, before[n])]
    one, other = (encode(pair, x, torch.eye(3)[i].expand(12, 3)) for i in (0, 1))
    assert all(not torch.equal(one[name], other[name]) for name in ("z1", "z2", "z3"))
    assert sample(pair, 12, y, seed=0).shape == (12, X)
    assert log_likelihood(pair, x, y, num_samples=5).values.isfinite().all()


@pytest.mark.parametrize("build", [dense, ladder])
def test_what_is_missing_is_neither_seen_nor_scored(build):
    pair, x = build(), binary()
    mask = torch.rand(12, X) < 0.7
    other = torch.where(mask, x, 1 - x)
    estimates = [log_likelihood(pair, given, mask=mask, num_samples=20).values for given in (x, other)]
    assert torch.equal(*estimates)
    assert not torch.equal(estimates[0], log_likelihood(pair, x, num_samples=20).values)
    assert torch.equal(encode(pair, x, mask=mask)["z1"], encode(pair, torch.where(mask, x, 0))["z1"])
    fit(pair, x, mask=mask, epochs=1, seed=0, progress=False)


class FromPrior(torch.nn.Module):
    """A proposal that does not look at x."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x, *above):
        return self.part(*above)


def test_incomplete_data_have_the_marginal_of_what_was_observed():
    truth = LinearGaussian((2, 2), 4)
    pair = truth.pair()
    pair.posteriors = torch.nn.ModuleList(FromPrior(part) for part in (pair.conditionals[0], pair.prior))
    x = truth.marginal.sample((30,))
    mask = torch.tensor([True, False, True, False]).expand(30, 4)
    exact = truth.marginal
    seen = [0, 2]
    exact = dist.MultivariateNormal(exact.mean[seen], exact.covariance_matrix[seen][:, seen]).log_prob(x[:, seen])
    estimate = log_likelihood(pair, torch.where(mask, x, float("nan")), mask=mask, num_samples=20_000)
    assert abs((estimate.values - exact).mean()) < 4 * estimate.mean_mc_standard_error < 0.1


def test_pyros_own_svi_trains_a_second_hierarchy_too(global_param_store):
    for pair in (dense(), dense(vamp=True), ladder()):
        before = {n: p.detach().clone() for n, p in pair.named_parameters()}
        svi = pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.Trace_ELBO())
        for _ in range(2):
            svi.step(binary())
        assert not [n for n, p in pair.named_parameters() if torch.equal(p, before[n])]


def refused(**change):
    q1, q2 = diagonal(X, 8, 8, context_dim=2), diagonal(X, 8, 4)
    parts = {
        "prior": priors.StandardNormal(2),
        "conditionals": [priors.DiagNormal(4, nn.MLP(2, 8))],
        "decoder": decoders.Bernoulli(nn.MLP(6, X)),
        "posteriors": [q1, q2],
    }
    given = parts | change
    if "encoders" in given:
        return LadderVAE(
            given["prior"], given["conditionals"], given["decoder"], given["encoders"], given["posteriors"]
        )
    return HierarchicalVAE(**given)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"prior": 3}, TypeError, "prior must be a module whose forward(*context) returns a distribution, got int"),
        ({"decoder": len}, TypeError, "decoder must be a module"),
        ({"posteriors": []}, ValueError, "posteriors is empty"),
        ({"posteriors": [1.0]}, TypeError, "posteriors[0] must be a module, got float"),
        ({"posteriors": diagonal(X, 4)}, TypeError, "posteriors must be a list of modules"),
        ({"conditionals": 3}, TypeError, "conditionals must be a list of modules"),
        ({"conditionals": []}, ValueError, "2 posteriors make 2 layers, which need 1 conditionals"),
        (
            {"prior": priors.StandardNormal(4)},
            ValueError,
            "prior has latent_dim 4, but posteriors[1] has latent_dim 2, and both are distributions of z2",
        ),
        (
            {"posteriors": [diagonal(X, 8, 4), diagonal(X, 8, 8, context_dim=2)]},
            ValueError,
            "conditionals[0] has latent_dim 4, but posteriors[0] has latent_dim 2, and both are distributions of z1. "
            "Lists go from the bottom",
        ),
        ({"encoders": [nn.MLP(X, 8)]}, ValueError, "2 posteriors make 2 layers, which need as many encoders"),
        ({"encoders": nn.MLP(X, 8)}, TypeError, "LadderVAE: encoders must be a list"),
    ],
    ids=lambda v: str(v)[:40] if isinstance(v, str) else None,
)
def test_what_does_not_fit_is_refused(change, error, words):
    with pytest.raises(error, match=re.escape(words)):
        refused(**change)
