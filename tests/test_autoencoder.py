"""The linear autoencoder is principal component analysis; what has no density says so; every decoder is a loss."""

import copy

import numpy as np
import pyro
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

from ppgen import decoders, models, nn, priors
from ppgen.inference import (
    SVI,
    decode,
    elbo,
    encode,
    fit,
    iwae,
    log_likelihood,
    log_weights,
    reconstruct,
    sample,
)

IMAGE = (1, 6, 5)


def build(kind, latent_dim=2):
    if kind == "linear":
        return models.Autoencoder(nn.MLP(IMAGE, latent_dim), decoders.Normal(nn.MLP(latent_dim, IMAGE), scale=1.0))
    if kind == "dense":
        return models.Autoencoder(
            nn.MLP(IMAGE, 16, latent_dim), decoders.Normal(nn.MLP(latent_dim, 16, IMAGE), scale=0.5)
        )
    if kind == "dense, binary":
        return models.Autoencoder(nn.GatedMLP(IMAGE, 16, latent_dim), decoders.Bernoulli(nn.MLP(latent_dim, 16, IMAGE)))
    if kind == "convolutional":
        narrow = {"channels": (4, 8), "hidden": (16,)}
        return models.Autoencoder(
            nn.ConvNet(IMAGE, latent_dim, **narrow), decoders.Bernoulli(nn.DeconvNet(latent_dim, IMAGE, **narrow))
        )
    grid = (2, 3, 3)
    small = {"channels": 8, "num_blocks": 1}
    return models.Autoencoder(
        nn.ResidualConvNet(IMAGE, grid, **small), decoders.Bernoulli(nn.ResidualConvNet(grid, IMAGE, **small))
    )


KINDS = ["linear", "dense", "dense, binary", "convolutional", "convolutional codes"]


def images(n=30):
    return torch.bernoulli(torch.full((n, *IMAGE), 0.4))


def test_the_linear_autoencoder_spans_the_principal_subspace():
    torch.manual_seed(1)
    scales = torch.tensor([3.0, 2.0, 1.5, 0.6, 0.5, 0.4, 0.3, 0.2])
    axes = torch.linalg.qr(torch.randn(8, 8)).Q
    x = (torch.randn(400, 8) * scales) @ axes.T + torch.randn(8)
    ae = models.Autoencoder(nn.MLP(8, 3), decoders.Normal(nn.MLP(3, 8), scale=1.0))
    for rate, epochs in ((3e-2, 600), (1e-3, 100)):
        fit(ae, x, epochs=epochs, batch_size=400, seed=0, optimizer=lambda p, r=rate: torch.optim.Adam(p, lr=r))
    pca = PCA(3).fit(x.numpy())
    decoded = ae.decoder.net.output.weight.detach().numpy()  # (8, 3): its columns span the reconstructions
    assert np.rad2deg(subspace_angles(decoded, pca.components_.T)).max() < 1.0
    encoded = ae.encoder.output.weight.detach().numpy().T
    assert np.rad2deg(subspace_angles(encoded, pca.components_.T)).max() < 1.0
    expected = pca.inverse_transform(pca.transform(x.numpy()))
    assert np.abs(reconstruct(ae, x).numpy() - expected).max() < 0.1
    error = (x - reconstruct(ae, x)).square().sum(-1).mean()
    assert error == pytest.approx(((x.numpy() - expected) ** 2).sum(-1).mean(), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_reconstructions(kind):
    ae, x = build(kind), images()
    z = ae.encoder(x)
    expected = -ae.decoder(z).log_prob(x).mean()
    for mode in (True, False):
        ae.train(mode)
        assert torch.allclose(elbo()(ae.model, ae.guide, x), expected)
        assert torch.allclose(elbo(num_particles=3)(ae.model, ae.guide, x), expected)
    assert torch.equal(SVI(ae).evaluate(x), expected.detach())
    assert torch.equal(encode(ae, x), z.detach())
    assert torch.allclose(reconstruct(ae, x), ae.decoder(z).mean.detach())
    assert torch.allclose(decode(ae, z.detach()), ae.decoder(z).mean.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_training_reaches_every_parameter_and_lowers_the_loss(kind):
    ae, x = build(kind), images()
    before = copy.deepcopy(dict(ae.named_parameters()))
    history = fit(ae, x, epochs=30, batch_size=10, validation=x, seed=0)
    assert history.validation[-1] < history.validation[0]
    for name, parameter in ae.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    again = build(kind)
    again.load_state_dict(ae.state_dict())
    assert torch.equal(encode(again, x), encode(ae, x))


def test_training_under_pyros_own_svi(global_param_store):
    ae, x = build("dense, binary"), images()
    svi = pyro.infer.SVI(ae.model, ae.guide, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.Trace_ELBO())
    before = copy.deepcopy(dict(ae.named_parameters()))
    assert svi.step(x) > svi.step(x)
    assert not [name for name, p in ae.named_parameters() if torch.equal(p, before[name])]


@pytest.mark.parametrize("evaluate", [log_likelihood, log_weights])
@pytest.mark.parametrize("kind", ["linear", "convolutional codes"])
def test_there_is_no_likelihood_and_the_error_says_why(evaluate, kind):
    ae, x = build(kind), images()
    with pytest.raises(ValueError, match=r"\['z'\] at a point.*An autoencoder has no density of x.*DensityNetwork"):
        evaluate(ae, x, num_samples=2)
    with pytest.raises(ValueError, match="no density of x"):
        fit(ae, x, loss=iwae(3), epochs=1)


def test_there_is_nothing_to_sample_and_the_error_says_why():
    with pytest.raises(NotImplementedError, match=r"no distribution of codes.*ExplicitDensity\(prior\), encode"):
        sample(build("dense"), 3)


def test_a_prior_fitted_to_the_codes_gives_samples_and_a_density():
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((4, *IMAGE), 0.5))[torch.arange(120) % 4]
    ae = build("dense, binary")
    fit(ae, x, epochs=60, batch_size=30, seed=0, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
    codes = encode(ae, x)
    prior = priors.MixtureOfGaussians(4, 2)
    prior.loc.data.copy_(codes[:4])
    fit(models.ExplicitDensity(prior), codes, epochs=30, seed=0, optimizer=lambda p: torch.optim.Adam(p, lr=3e-2))
    pair = models.DensityNetwork(prior, ae.decoder)
    drawn = sample(pair, 50, mean=True, seed=0)
    distance = (drawn.unsqueeze(1) - x[:4]).abs().mean((2, 3, 4)).amin(1)
    assert (distance < 0.1).float().mean() > 0.8
    assert log_likelihood(pair, x[:4], num_samples=2000).mean > -30 * np.log(2)


def test_masks_leave_what_is_missing_out_of_the_code_and_the_loss():
    ae, x = build("dense, binary"), images()
    mask = torch.rand(x.shape) < 0.6
    filled = torch.where(mask, x, 0.0)
    assert torch.equal(encode(ae, torch.where(mask, x, torch.nan), mask=mask), encode(ae, filled))
    elements = ae.decoder(ae.encoder(filled)).base_dist.log_prob(filled)
    expected = -(elements * mask).sum((1, 2, 3)).mean()
    loss = elbo()(lambda x: ae.model(x, mask=mask), lambda x: ae.guide(x, mask=mask), filled)
    assert torch.allclose(loss, expected)
    history = fit(ae, torch.where(mask, x, torch.nan), mask=mask, epochs=30, seed=0)
    assert history.loss[-1] < history.loss[0]


def test_contexts_reach_the_encoder_and_the_decoder():
    ae = models.Autoencoder(
        nn.MLP(IMAGE, 16, 2, context_dim=3), decoders.Bernoulli(nn.MLP(2, 16, IMAGE, context_dim=3))
    )
    x, y = images(), torch.eye(3).repeat(10, 1)
    fit(ae, (x, y), epochs=1, seed=0)
    assert not torch.allclose(encode(ae, x, y), encode(ae, x, y.flip(0)))
    assert torch.allclose(reconstruct(ae, x, y), ae.decoder(ae.encoder(x, y), y).mean.detach())


def test_parts_that_do_not_fit_are_refused():
    decoder = decoders.Normal(nn.MLP(2, 4), scale=1.0)
    with pytest.raises(TypeError, match="encoder must be a network, got str"):
        models.Autoencoder("net", decoder)
    with pytest.raises(TypeError, match="decoder must be a module whose forward"):
        models.Autoencoder(nn.MLP(4, 2), 3)
    with pytest.raises(TypeError, match="a Linear, states no out_shape: give latent_shape"):
        models.Autoencoder(torch.nn.Linear(4, 2), decoder)
    wrong = models.Autoencoder(torch.nn.Linear(4, 3), decoder, latent_shape=2)
    with pytest.raises(ValueError, match=r"events of shape \(2,\).*\(5, 3\)"):
        wrong.guide(torch.zeros(5, 4))
    plain = models.Autoencoder(torch.nn.Linear(4, 2), decoder, latent_shape=2)
    assert encode(plain, torch.zeros(5, 4)).shape == (5, 2)
