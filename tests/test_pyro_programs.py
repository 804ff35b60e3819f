"""Programs with the structure of Pyro's published examples go in as they are, and each is held to an oracle."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro_examples import NAMES, SSVAE, VAE, Z, cases, enumerated, images, our_mean, pair_of, pyros_mean

from ppgen.inference import elbo, encode, fit, iwae, latent_report, log_likelihood, log_weights
from ppgen.models import Custom


@pytest.mark.parametrize("name", NAMES)
def test_all_of_inference_takes_the_program_as_it_is(name):
    torch.manual_seed(0)
    pair, batch = cases()[name]
    n = len(batch[0])
    before = [p.clone() for p in pair.parameters()]
    assert log_weights(pair, *batch, num_samples=4).shape == (4, n)
    estimate = log_likelihood(pair, *batch, num_samples=30)
    assert estimate.values.shape == (n,) and estimate.values.isfinite().all()
    report = latent_report(pair, *batch)
    assert sum(report.kl.values()) > 0
    z = encode(pair, *batch)
    for value in z.values() if isinstance(z, dict) else [z]:
        assert len(value) == n and value.isfinite().all()
    for loss in (elbo(), iwae(3)):
        history = fit(pair, batch, epochs=1, batch_size=3, loss=loss, progress=False)
        assert 0 < history.loss[0] < 40  # nats of a dozen binary pixels: a plate without a size once changed the sign
    assert any(not torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))


def test_two_instances_are_trained_without_custom_too(global_param_store):
    x = images()
    for _ in range(2):
        vae = VAE()
        before = [p.clone() for p in vae.parameters()]
        fit(vae, x, epochs=1, progress=False)
        assert not any(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
        assert log_likelihood(vae, x, num_samples=30).values.isfinite().all()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("cvae", "ss-vae enumerated")])
def test_the_mean_weight_is_pyros_elbo_draw_by_draw(name):
    torch.manual_seed(0)
    pair, batch = cases()[name]
    assert our_mean(pair, *batch) == pytest.approx(pyros_mean(pair, *batch), rel=1e-5)


@pytest.mark.parametrize("name", ["vae", "ss-vae with labels", "dmm"])
def test_the_training_loss_is_pyros_per_datum(name):
    torch.manual_seed(0)
    pair, batch = cases()[name]
    torch.manual_seed(3)
    loss = elbo()(pair.model, pair.guide, *batch)
    assert loss.item() == pytest.approx(-pyros_mean(pair, *batch, num_particles=1) / len(batch[0]), rel=1e-5)


@pytest.mark.parametrize("how", ["parallel", "sequential"])
def test_the_enumerated_training_loss_is_pyros(how):
    torch.manual_seed(0)
    m2, x = SSVAE(), images()
    pair = Custom(m2.model, config_enumerate(m2.guide, how, expand=True))
    torch.manual_seed(3)
    loss = elbo()(pair.model, pair.guide, x)
    exact = -pyros_mean(pair, x, num_particles=1, objective=TraceEnum_ELBO) / len(x)
    assert loss.item() == pytest.approx(exact, rel=1e-5)


def test_the_mean_of_an_analytic_kl_is_that_of_mean_field():
    torch.manual_seed(0)
    pair, batch = cases()["vae"]
    torch.manual_seed(3)
    loss = elbo(analytic_kl=True)(pair.model, pair.guide, *batch)
    exact = -pyros_mean(pair, *batch, num_particles=1, objective=TraceMeanField_ELBO) / len(batch[0])
    assert loss.item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("enumerate_guide", [False, True])
def test_the_likelihood_of_m2_is_its_sum_over_classes(enumerate_guide):
    """The decoder without z: log p(x) is a sum of three Bernoulli products, and every class is weighed rightly."""
    torch.manual_seed(0)
    m2, x = SSVAE(), images(40)
    with torch.no_grad():
        m2.decoder[0][0].weight[:, :Z] = 0.0
        m2.encoder_z[-1].weight.zero_()
        m2.encoder_z[-1].bias.zero_()  # then q(z | x, y) is the prior
        loc = m2.decoder(torch.cat([torch.zeros(3, Z), torch.eye(3)], -1))
    exact = (dist.Bernoulli(loc).to_event(1).log_prob(x[:, None]) - math.log(3)).logsumexp(-1)
    estimate = log_likelihood(enumerated(m2) if enumerate_guide else pair_of(m2), x, num_samples=2000)
    assert (estimate.values - exact).abs().max() < 0.1
    assert estimate.mean == pytest.approx(exact.mean().item(), abs=0.02)
