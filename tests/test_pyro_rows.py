"""Programs that index or reshape by their batch: no plate of particles survives that, so their draws are rows."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_examples import CVAE, PIXELS, SSVAE, VAE, Z, enumerated, images, incomplete, mlp, pair_of, pyros_mean
from torch import nn

from ppgen.inference import (
    ais,
    elbo,
    encode,
    fit,
    iwae,
    latent_report,
    log_likelihood,
    log_weights,
    repaired_log_likelihood,
)
from ppgen.inference.programs.structure import measure
from ppgen.models import Custom


def test_particles_as_rows_are_what_a_loop_over_draws_gives():
    """The conditional example cannot run under a plate of particles: its weights against those of single runs."""
    torch.manual_seed(0)
    cvae, xs, ys = CVAE(), incomplete(x := images()), x
    pair = pair_of(cvae)
    with pytest.raises(IndexError):
        pyros_mean(pair, xs, ys)
    torch.manual_seed(5)
    with torch.no_grad():
        found = log_weights(pair, xs, ys, num_samples=3)
        torch.manual_seed(5)
        loc, scale = cvae.recognition_net(cvae.together(xs, ys))
        z = dist.Normal(loc.repeat(3, 1), scale.repeat(3, 1)).sample().unflatten(0, (3, -1))
        prior = cvae.prior_net(cvae.together(xs, cvae.baseline_net(xs)))
        hidden = (xs == -1)[0]
        log_p = dist.Bernoulli(cvae.generation_net(z)[..., hidden]).log_prob(ys[:, hidden]).sum(-1)
        expected = log_p + dist.Normal(*prior).log_prob(z).sum(-1) - dist.Normal(loc, scale).log_prob(z).sum(-1)
    assert torch.allclose(found, expected, atol=1e-5)


class ByRows(VAE):
    """The variational autoencoder, with a decoder that takes a matrix and nothing else."""

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], Z), 1.0).to_event(1))
            n, _ = z.shape
            loc_img = self.decoder(z).view(n, PIXELS)
            pyro.sample("obs", dist.Bernoulli(loc_img, validate_args=False).to_event(1), obs=x)


def both_ways():
    """One program, under a plate of particles and by rows."""
    torch.manual_seed(0)
    vae, by_rows = VAE(), ByRows()
    by_rows.load_state_dict(vae.state_dict())
    x = images(150)
    pairs = pair_of(vae), pair_of(by_rows)
    assert [measure(pair.model, pair.guide, x).vectorized for pair in pairs] == [True, False]
    return *pairs, x


def test_likelihoods_repair_and_annealing_are_those_under_a_plate():
    """In slices of the samples too: the plate of so many rows is not replayed on fewer."""
    one, other, x = both_ways()
    for memory in (None, 1):
        values = [log_likelihood(pair, x, num_samples=300, memory=memory).values for pair in (one, other)]
        assert torch.allclose(*values, atol=1e-4)
    for settings in ({}, {"num_steps": 10, "scales": (1.0,)}):
        found = [repaired_log_likelihood(pair, x, num_samples=50, num_pilot=20, **settings) for pair in (one, other)]
        assert torch.allclose(found[0].values, found[1].values, atol=1e-3)
        assert torch.equal(found[0].scales, found[1].scales)
    for start in ("guide", "prior"):
        values = [ais(p, x[:20], start=start, num_chains=5, num_temperatures=8).values for p in (one, other)]
        assert torch.allclose(*values, atol=0.02)  # rounding, which may accept another proposal


def test_several_particles_of_a_loss_are_runs_one_after_the_other():
    one, other, x = both_ways()
    torch.manual_seed(3)
    single = [elbo()(other.model, other.guide, x) for _ in range(4)]
    torch.manual_seed(3)
    assert torch.allclose(elbo(num_particles=4)(other.model, other.guide, x), torch.stack(single).mean())
    many = [elbo(num_particles=400)(pair.model, pair.guide, x).item() for pair in (one, other)]
    assert many[0] == pytest.approx(many[1], abs=0.02)


def test_the_aggregate_posterior_of_m2_scores_every_class_for_every_datum():
    """Rows and an enumerable plate agree; each draw of class and style is scored under all data's posteriors."""
    torch.manual_seed(0)
    m2, x = SSVAE(), images(30)
    by_rows = latent_report(Custom(*reshaping(m2)), x, num_aggregate=30)
    report = latent_report(pair_of(m2), x, num_aggregate=30)
    assert by_rows.mutual_information == pytest.approx(report.mutual_information, abs=1e-4)
    assert by_rows.aggregate_kl == pytest.approx(report.aggregate_kl, abs=1e-4)
    assert report.kl["y"] + report.kl["z"] == pytest.approx(by_rows.kl["y"] + by_rows.kl["z"], abs=0.1)
    few = latent_report(enumerated(m2), x, num_aggregate=8)
    assert few.energy_distance.keys() == {"y", "z"}


def reshaping(m2):
    """As in the example without parallel enumeration: networks that only take matrices."""

    def guide(xs):
        with pyro.plate("data"):
            ys = pyro.sample("y", dist.OneHotCategorical(m2.encoder_y(xs)))
            loc, log_scale = m2.encoder_z(torch.cat([xs, ys], 1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return m2.model, guide


def test_batch_normalisation_of_topics_goes_in_as_the_tutorial_has_it():
    """Of documents: batch normalisation, softmax over axis 1, and counts whose number differs; a sized plate."""

    class ProdLDA(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(mlp(20, 8, 6), nn.BatchNorm1d(6, affine=False))
            self.beta, self.bn, self.drop = nn.Linear(3, 20, bias=False), nn.BatchNorm1d(20), nn.Dropout(0.2)

        def model(self, docs):
            pyro.module("decoder", self)
            with pyro.plate("documents", docs.shape[0]):
                logtheta = pyro.sample("logtheta", dist.Normal(docs.new_zeros(len(docs), 3), 1.0).to_event(1))
                probs = torch.softmax(self.bn(self.beta(self.drop(torch.softmax(logtheta, -1)))), dim=1)
                pyro.sample("obs", dist.Multinomial(int(docs.sum(-1).max()), probs), obs=docs)

        def guide(self, docs):
            with pyro.plate("documents", docs.shape[0]):
                loc, log_scale = self.encoder(docs).chunk(2, -1)
                pyro.sample("logtheta", dist.Normal(loc, log_scale.exp()).to_event(1))

    torch.manual_seed(0)
    docs = dist.Multinomial(30, torch.ones(20)).sample((120,))
    lda = ProdLDA()
    pair = pair_of(lda)
    fit(pair, docs, epochs=5, batch_size=40, progress=False)
    lda.eval()
    with torch.no_grad():
        theta = torch.softmax(torch.randn(50_000, 3), -1)
        log_p = torch.log_softmax(lda.bn(lda.beta(theta)), -1) @ docs.T
    exact = log_p.double().logsumexp(0) - math.log(50_000)
    exact += torch.lgamma(torch.tensor(31.0)) - torch.lgamma(docs + 1).sum(-1)
    # As many documents as words: under a plate of particles it would run too, with documents in the place of words.
    for n in (20, 120):
        estimate = log_likelihood(pair, docs[:n], num_samples=2000)
        assert (estimate.values - exact[:n])[estimate.reliable].abs().mean() < 0.1
        assert estimate.reliable_fraction > 0.5
    annealed = ais(pair, docs[:20], start="prior", num_chains=32, num_temperatures=30)
    assert abs(annealed.mean - exact[:20].mean().item()) < 0.1
    assert encode(pair, docs).shape == (120, 3)


def words(dim):
    """Documents of four words, their topics by a softmax over an axis of z @ topics."""
    topics = torch.tensor([[2.0, -1.0, 0.5], [-1.5, 0.0, 1.0]])

    def model(docs):
        with pyro.plate("documents", len(docs), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            probs = torch.softmax(z @ topics, dim)
            with pyro.plate("words", docs.shape[1], dim=-2):
                pyro.sample("w", dist.Categorical(probs), obs=docs.T)

    def guide(docs):
        with pyro.plate("documents", len(docs), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(docs), 2), 1.0).to_event(1))

    return Custom(model, guide, trained=nn.Linear(1, 1))


def test_another_axis_for_the_datas_is_found_inside_a_plate_of_words_too():
    """Under a plate of particles axis 1 is of length 1, and every word would have probability one."""
    docs = torch.randint(0, 3, (6, 4), generator=torch.Generator().manual_seed(0))
    either, of_matrices = words(-1), words(1)
    assert measure(either.model, either.guide, docs).vectorized
    assert not measure(of_matrices.model, of_matrices.guide, docs).vectorized
    one, other = (log_likelihood(pair, docs, num_samples=500).values for pair in (either, of_matrices))
    assert torch.allclose(one, other, atol=1e-4) and (one < -math.log(3)).all()


def test_bounds_that_differ_from_datum_to_datum_are_refused_by_rows():
    vae = VAE()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Uniform(-x.mean(1) - 2, x.mean(1) + 2))
            (n,) = z.shape
            pyro.sample("obs", dist.Normal(z.view(n, 1), 1.0).to_event(1), obs=x[:, :1])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("latent", dist.Uniform(-x.mean(1) - 2, x.mean(1) + 2))

    with pytest.raises(ValueError, match=r"support of the latent 'latent'.*another latent or a datum.*are numbers"):
        ais(Custom(model, guide, vae=vae), images(), num_chains=2, num_temperatures=3)


def test_more_rows_than_a_subsampled_plate_has_members_are_weighed():
    x = torch.randn(20, 2)

    def plate(x):
        return pyro.plate("data", 20, subsample_size=len(x), dim=-1)

    def model(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.stack([z[:, 0], z[:, 1]], 1), 1.0).to_event(1), obs=x)

    def guide(x):
        with plate(x):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)).to_event(1))

    pair, exact = Custom(model, guide), dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum(1)
    assert not measure(pair.model, pair.guide, x[:10]).vectorized
    for num in (10, 20):
        assert torch.allclose(log_weights(pair, x[:num], num_samples=5), exact[:num], atol=1e-4)
    assert iwae(10)(pair.model, pair.guide, x[:10]).item() == pytest.approx(-exact[:10].mean().item(), rel=1e-4)


@pytest.mark.parametrize("n, m", [(5, 2), (2, 2), (2, 3), (5, 3)])
def test_loops_over_axes_that_two_particles_would_fit_are_found(n, m):
    x = torch.randn(n, m)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            r = pyro.sample("r", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("inner", m, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(torch.stack([z[i] + 0 * r[:, 0] for i in range(m)]), 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("r", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("inner", m, dim=-2):
                pyro.sample("z", dist.Normal(x.T / 2, math.sqrt(0.5)))

    pair = Custom(model, guide)
    assert not measure(pair.model, pair.guide, x).vectorized
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum(1)
    assert torch.allclose(log_weights(pair, x, num_samples=4), exact, atol=1e-4)
