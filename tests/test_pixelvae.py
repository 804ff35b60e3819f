"""Autoregressive decoders in VAEs, plain and hierarchical; whether the latent is used, and what makes it so."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch

from ppgen import decoders, models, nn, posteriors, priors
from ppgen.inference import (
    decode,
    elbo,
    encode,
    fit,
    latent_report,
    log_likelihood,
    mutual_information,
    reconstruct,
    sample,
)
from ppgen.models import Custom
from ppgen.pair import data_plate
from ppgen.pair import sample as draw


def pixel_vae(shape=(1, 4, 4), latent_dim=2, features=None, context=None, **options):
    net = nn.GatedPixelCNN(shape, shape, channels=8, context_shapes=[context or latent_dim], **options)
    return models.VAE(
        priors.StandardNormal(latent_dim),
        decoders.Autoregressive(decoders.Bernoulli(net), features=features),
        posteriors.DiagNormal(nn.MLP(shape, 16, 2 * latent_dim)),
    )


def test_likelihood_against_quadrature():
    vae = pixel_vae((1, 2, 2), latent_dim=1, num_layers=2)
    for parameter in vae.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).reshape(-1, 1, 2, 2)
    z = torch.linspace(-8, 8, 2001)
    with torch.no_grad():
        given_z = vae.decoder(z[:, None, None]).log_prob(x)
        exact = (given_z + dist.Normal(0.0, 1.0).log_prob(z)[:, None]).logsumexp(0) + math.log(16 / 2000)
    assert exact.logsumexp(0).abs() < 1e-4  # all images together
    assert given_z.std(0).mean() > 0.1
    estimate = log_likelihood(vae, x, num_samples=2000)
    assert ((estimate.values - exact).abs() < 5 * estimate.mc_standard_error + 1e-3).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"context": (4, 4, 4), "features": nn.DeconvNet(2, (4, 4, 4), channels=(4,), hidden=(8,))},
        {"latent_dim": 8, "context": (2, 2, 2), "features": torch.nn.Unflatten(-1, (2, 2, 2))},  # a spatial latent
    ],
    ids=["vector", "map of a vector", "spatial latent"],
)
def test_all_that_a_vae_does(options):
    vae = pixel_vae(num_layers=2, **options)
    x = torch.bernoulli(torch.full((30, 1, 4, 4), 0.5))
    before = [p.clone() for p in vae.parameters()]
    fit(vae, x, epochs=2, batch_size=10, seed=0, progress=False)
    assert all(not torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
    assert log_likelihood(vae, x, num_samples=10).values.shape == (30,)
    for pictures in (sample(vae, 5, seed=0), reconstruct(vae, x[:5], seed=0), decode(vae, encode(vae, x[:5]), seed=0)):
        assert pictures.shape == (5, 1, 4, 4) and set(pictures.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(sample(vae, 5, seed=1), sample(vae, 5, seed=1))


def test_a_hierarchy_with_a_label():
    net = nn.GatedPixelCNN((1, 4, 4), (1, 4, 4), channels=8, num_layers=2, context_shapes=[3, 2, 10])
    hierarchy = models.HierarchicalVAE(
        priors.StandardNormal(2),
        [priors.DiagNormal(3, nn.MLP(2 + 10, 6))],
        decoders.Autoregressive(decoders.Bernoulli(net)),
        [posteriors.DiagNormal(nn.MLP((1, 4, 4), 2 * d, context_dim=c)) for d, c in ((3, 12), (2, 10))],
    )
    x, y = torch.bernoulli(torch.full((20, 1, 4, 4), 0.5)), torch.eye(10).repeat(2, 1)
    fit(hierarchy, (x, y), epochs=2, batch_size=10, seed=0, progress=False)
    assert set(latent_report(hierarchy, x, y).kl) == {"z1", "z2"}
    assert log_likelihood(hierarchy, x, y, num_samples=5).values.isfinite().all()
    assert sample(hierarchy, 10, torch.eye(10)).shape == (10, 1, 4, 4)
    assert 0 <= mutual_information(hierarchy, x, y) <= math.log(20)


def trained(loss=None, epochs=40, **options):
    """A VAE of images whose left half is either dark or bright, and whose right half is like it."""
    torch.manual_seed(0)
    bright = (torch.arange(100) % 2).float()[:, None, None, None]
    x = torch.bernoulli((0.1 + 0.8 * bright).expand(-1, 1, 4, 4))
    vae = pixel_vae(latent_dim=1, **options)
    fit(
        vae,
        x,
        loss=loss,
        epochs=epochs,
        batch_size=50,
        seed=0,
        progress=False,
        optimizer=lambda p: torch.optim.Adam(p, 1e-2),
    )
    return latent_report(vae, x), mutual_information(vae, x)


@pytest.fixture(scope="module")
def ignored():
    """What the latent is to a decoder that sees the whole image: next to nothing of the log 2 nats there are."""
    with torch.random.fork_rng():
        return trained(num_layers=3)


def test_a_strong_decoder_leaves_the_latent_alone(ignored):
    report, information = ignored
    assert report.kl["z"] < 0.3 and information < 0.25


def test_free_bits_mend_it(ignored):
    report, information = trained(elbo(free_bits=0.7), num_layers=3)
    assert report.kl["z"] > 0.5 and information > ignored[1] + 0.2 and report.active_units["z"] == 1


def test_a_smaller_field_leaves_the_latent_something_to_say(ignored):
    report, information = trained(num_layers=1, first_kernel_size=3, epochs=100)
    assert report.kl["z"] > ignored[0].kl["z"] + 0.3 and information > 0.3 and report.active_units["z"] == 1


def pair_of(posterior):
    def model(x):
        with data_plate(x):
            z = draw("z", dist.Normal(0.0, 1.0))
            draw("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            draw("z", posterior(x))

    return Custom(model, guide)


def test_mutual_information_of_known_guides():
    x = torch.tensor([-10.0, 10.0]).repeat(150)
    wide, narrow = pair_of(lambda x: dist.Normal(x, 1.0)), pair_of(lambda x: dist.Normal(x, 1e-3))
    blind = pair_of(lambda x: dist.Normal(torch.zeros_like(x), 1.0))
    assert mutual_information(wide, x) == pytest.approx(math.log(2), abs=1e-6)
    assert mutual_information(blind, x) == pytest.approx(0, abs=1e-6)
    assert mutual_information(narrow, torch.arange(250.0)) == pytest.approx(math.log(250))
    noisy = mutual_information(wide, torch.randn(1000), seed=1)
    assert noisy == pytest.approx(0.5 * math.log(2), abs=0.06)  # of two Gaussians, one in noise of its own size


def test_mutual_information_needs_latents():
    net = nn.GatedPixelCNN((1, 2, 2), (1, 2, 2), channels=4, num_layers=2)
    density = models.ExplicitDensity(decoders.Autoregressive(decoders.Bernoulli(net)))
    with pytest.raises(ValueError, match="draws no latents"):
        mutual_information(density, torch.zeros(3, 1, 2, 2))
