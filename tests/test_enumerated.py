"""Latents of the model that are summed out, against sums by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate

from ppgen.inference import elbo, iwae, latent_report, log_likelihood, log_weights, repaired_log_likelihood
from ppgen.models import Custom, GaussianMixture
from ppgen.pair import data_plate

SUMMED = {"enumerate": "parallel"}
INITIAL, TRANSITION = torch.tensor([0.3, 0.7]), torch.tensor([[0.9, 0.1], [0.4, 0.6]])
LOC = torch.tensor([-1.0, 2.0])


def nothing(*batch):
    """The guide of a model whose latents are all summed out."""


def hidden_markov(x, lengths):
    with data_plate(x):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths):
                probs = INITIAL if z is None else TRANSITION[z]
                z = pyro.sample(f"z{t}", dist.Categorical(probs), infer=SUMMED)
                pyro.sample(f"x{t}", dist.Normal(LOC[z], 1.0), obs=x[:, t])


def forward_algorithm(x):
    alpha = INITIAL.log() + dist.Normal(LOC, 1.0).log_prob(x[0])
    for value in x[1:]:
        alpha = (alpha[:, None] + TRANSITION.log()).logsumexp(0) + dist.Normal(LOC, 1.0).log_prob(value)
    return alpha.logsumexp(0)


def test_sequences_of_several_lengths_have_the_likelihood_of_what_their_masks_leave():
    torch.manual_seed(0)
    pair, x, lengths = Custom(hidden_markov, nothing), torch.randn(4, 3), torch.tensor([3, 2, 1, 1])
    exact = torch.stack([forward_algorithm(row[:n]) for row, n in zip(x, lengths.tolist(), strict=True)])
    assert torch.allclose(log_likelihood(pair, x, lengths, num_samples=1).values.float(), exact, atol=1e-5)
    pyros = TraceEnum_ELBO(max_plate_nesting=1).loss(pair.model, pair.guide, x, lengths) / len(x)
    assert pyros == pytest.approx(-exact.mean().item(), rel=1e-5)
    assert iwae(2)(pair.model, pair.guide, x, lengths).item() == pytest.approx(pyros, rel=1e-5)


def ragged_topics(x, lengths):
    with data_plate(x), pyro.plate("words", x.shape[1], dim=-2), poutine.mask(mask=torch.arange(3)[:, None] < lengths):
        k = pyro.sample("k", dist.Categorical(INITIAL), infer=SUMMED)
        pyro.sample("x", dist.Categorical(TRANSITION[k]), obs=x.T)


def test_words_that_are_masked_have_no_likelihood():
    x, lengths = torch.tensor([[0, 1, 1], [1, 0, 0]]), torch.tensor([2, 0])
    word = (INITIAL[:, None] * TRANSITION).sum(0).log()
    found = log_likelihood(Custom(ragged_topics, nothing), x, lengths, num_samples=1).values
    assert torch.allclose(found.float(), torch.stack([word[0] + word[1], torch.zeros(())]), atol=1e-6)


def mixture_prior(x):
    with data_plate(x):
        k = pyro.sample("k", dist.Categorical(INITIAL), infer=SUMMED)
        z = pyro.sample("z", dist.Normal(5 * LOC[k], 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def mixture_guide(x):
    with data_plate(x):
        middle = pyro.deterministic("middle", x)  # which has no axis of particles
        pyro.sample("noise", dist.Normal(x, 1.0), obs=x, infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(middle, 1.0))


def test_a_proposed_latent_may_depend_on_what_is_summed_out():
    pair, x = Custom(mixture_prior, mixture_guide), torch.tensor([-5.0, 10.0, -4.0])
    each = dist.Normal(5 * LOC, math.sqrt(2)).log_prob(x[:, None])
    noise = dist.Normal(0.0, 1.0).log_prob(torch.zeros(()))  # what the guide observes counts as its density
    exact = (INITIAL.log() + each).logsumexp(-1) - noise
    for estimate in (log_likelihood, repaired_log_likelihood):
        found = estimate(pair, x, num_samples=4000)
        assert (found.values - exact).abs().max() < 0.05, estimate
    torch.manual_seed(0)
    assert iwae(4000)(pair.model, pair.guide, x).item() == pytest.approx(-exact.mean().item(), abs=0.05)
    # Of the two components' own data: KL(N(μ_k, 1) ‖ the mixture), as far apart as they are, is that of the choice.
    report = latent_report(pair, 5 * LOC)
    assert report.kl["z"] == pytest.approx(-INITIAL.log().mean().item(), abs=1e-4)
    assert report.kl_per_dimension["z"] is None


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (1, 1)])
def test_a_choice_of_one_is_no_choice(sizes):
    def model(x):
        with data_plate(x):
            i = pyro.sample("i", dist.Categorical(torch.ones(sizes[0])), infer=SUMMED)
            k = pyro.sample("k", dist.Categorical(torch.ones(sizes[1])), infer=SUMMED)
            pyro.sample("x", dist.Normal(LOC[i + k], 1.0), obs=x)

    x = torch.randn(4, generator=torch.Generator().manual_seed(0))
    exact = dist.Normal(LOC[: max(sizes)], 1.0).log_prob(x[:, None]).logsumexp(-1) - math.log(max(sizes))
    assert torch.allclose(log_weights(Custom(model, nothing), x, num_samples=2), exact.expand(2, 4), atol=1e-6)


def test_a_mixture_of_one_component():
    torch.manual_seed(0)
    gmm, x = GaussianMixture(1, 2), torch.randn(5, 2)
    assert torch.allclose(log_likelihood(gmm, x, num_samples=1).values.float(), gmm.log_prob(x).float(), atol=1e-5)


def test_draws_are_not_summed_as_if_they_were_all_values():
    def model(x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0), infer={"enumerate": "parallel", "num_samples": 5})
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"marks \['z'\] .*num_samples.* sample any other in the guide"):
        log_likelihood(Custom(model, nothing), torch.randn(4), num_samples=1)


def test_batches_of_two_forms_have_a_structure_each():
    """With labels the class is observed, without it is summed out: in either order, and with one loss."""

    @config_enumerate
    def model(x, y=None):
        loc = pyro.param("loc", torch.tensor([-0.5, 0.5]))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(2) / 2), obs=y)
            pyro.sample("x", dist.Normal(loc[c], 1.0), obs=x)

    def guide(x, y=None):
        pass

    x = torch.tensor([-1.0, 0.2, 3.0])
    y = (x > 0).long()
    components = dist.Normal(torch.tensor([-0.5, 0.5]), 1.0).log_prob(x[:, None]) + math.log(0.5)
    known, unknown = components.gather(1, y[:, None]).mean(), components.logsumexp(1).mean()
    for order in ((y, None), (None, y)):
        pair, loss = Custom(model, guide), elbo()
        for labels in order:
            batch = (x,) if labels is None else (x, labels)
            expected = unknown if labels is None else known
            assert -loss(pair.model, pair.guide, *batch).item() == pytest.approx(expected.item(), abs=1e-5)
