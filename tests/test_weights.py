"""Per-datum weights against exact answers, and every refusal."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal

from ppgen.inference import ais, dreg, elbo, iwae, log_likelihood, log_weights, renyi, sticking_the_landing
from ppgen.models import Custom
from ppgen.pair import data_plate

X = torch.tensor([-1.0, 0.3, 2.0, 0.7])


def gaussian(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def exact_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))


def poor_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 3, 0.9))


LOG_PX = dist.Normal(0.0, math.sqrt(2)).log_prob(X)


def test_with_the_exact_posterior_every_weight_is_the_likelihood():
    w = log_weights(Custom(gaussian, exact_guide), X, num_samples=7)
    assert w.shape == (7, 4)
    assert torch.allclose(w, LOG_PX.expand(7, 4), atol=1e-5)


def test_elbo_below_iwae_below_the_likelihood():
    w = log_weights(Custom(gaussian, poor_guide), X, num_samples=40_000).double()
    bounds = {k: (w.reshape(k, -1, 4).logsumexp(0) - math.log(k)) for k in (1, 5, 50)}
    means = {k: b.mean(0) for k, b in bounds.items()}
    errors = {k: b.std(0) / math.sqrt(len(b)) for k, b in bounds.items()}
    for low, high in ((1, 5), (5, 50)):
        assert (means[low] < means[high] + 4 * (errors[low] + errors[high])).all()
    assert (means[50] < LOG_PX + 4 * errors[50]).all()
    assert (means[1] < LOG_PX - 4 * errors[1]).all()
    posterior = dist.Normal(X / 2, math.sqrt(0.5))
    gap = torch.distributions.kl_divergence(dist.Normal(X / 3, 0.9), posterior)
    assert ((means[1] - (LOG_PX - gap)).abs() < 4 * errors[1]).all()


def test_masks_count_and_subsampling_does_not():
    def model(x):
        with pyro.plate("data", 4000, subsample=torch.arange(4)), pyro.poutine.mask(mask=x > 0):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 4000, subsample=torch.arange(4)), pyro.poutine.mask(mask=x > 0):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    w = log_weights(Custom(model, guide), X, num_samples=3)
    assert torch.allclose(w, torch.where(X > 0, LOG_PX, 0.0).expand(3, 4), atol=1e-5)


def test_discrete_sites_are_summed_out_inside_their_plate():
    probs = torch.tensor([0.2, 0.5, 0.3])
    locs = torch.tensor([-1.0, 0.0, 3.0])
    words = torch.randn(6, 2)  # a plate of two inside the data

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("words", 2, dim=-2):
                k = pyro.sample("k", dist.Categorical(probs), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(z + locs[k], 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean(-1), 1.0))

    pair = Custom(model, guide)
    torch.manual_seed(1)
    w = log_weights(pair, words, num_samples=5)
    torch.manual_seed(1)
    with pyro.plate("particles", 5, dim=-2):
        trace = pyro.poutine.trace(guide).get_trace(words)
    z = trace.nodes["z"]["value"]
    each = (probs.log() + dist.Normal(z[..., None, None] + locs, 1.0).log_prob(words[None, :, :, None])).logsumexp(-1)
    byhand = each.sum(-1) + dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(words.mean(-1), 1.0).log_prob(z)
    assert torch.allclose(w, byhand, atol=1e-5)


def test_latents_may_be_left_to_the_prior():
    pair = Custom(gaussian, lambda x: None)
    w = log_weights(pair, X, num_samples=50_000, from_prior=["z"])
    estimate = w.double().logsumexp(0) - math.log(50_000)
    assert (estimate - LOG_PX).abs().max() < 0.03


def two_latents(x):
    with data_plate(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def best_guess(x):
    with data_plate(x):
        pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        pyro.sample("z", dist.Delta(x / 2))


def of_another_latent(x):
    with data_plate(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        pyro.sample("z", dist.Delta(scale))


def autoguides():
    guide = AutoGuideList(two_latents)
    guide.append(AutoNormal(poutine.block(two_latents, hide=["z"])))
    guide.append(AutoDelta(poutine.block(two_latents, expose=["z"])))
    return guide


@pytest.mark.parametrize("guide", [best_guess, of_another_latent, autoguides()])
def test_a_point_beside_other_draws_may_be_fitted_and_has_no_weight(guide):
    """The joint density at a point is no probability: it can be above p(x), and is no estimate of it."""
    pair = Custom(two_latents, guide)
    for refused in (log_likelihood, log_weights):
        with pytest.raises(ValueError, match=r"continuous \['z'\] at a point.*infer={'is_auxiliary': True}"):
            refused(pair, X, num_samples=30)
    with pytest.raises(ValueError, match="at a point"):
        iwae(3)(pair.model, pair.guide, X)
    assert elbo()(pair.model, pair.guide, X).isfinite()  # a best guess of z may be fitted


def test_a_point_that_hands_on_an_auxiliary_draw_is_that_draw():
    def direct(x):
        with data_plate(x):
            pyro.sample("scale", dist.LogNormal(0.0, 0.1))
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    def handed_on(x):
        with data_plate(x):
            pyro.sample("scale", dist.LogNormal(0.0, 0.1))
            e = pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(x / 2 + e))

    found = []
    for guide in (direct, handed_on):
        torch.manual_seed(0)
        found.append(log_weights(Custom(two_latents, guide), X, num_samples=5))
    assert torch.allclose(*found, atol=1e-5)
    assert log_weights(Custom(two_latents, AutoNormal(two_latents)), X, num_samples=5).shape == (5, 4)


def test_an_explicit_density_needs_no_sample():
    def model(x):
        with data_plate(x):
            pyro.sample("x", dist.Normal(0.0, math.sqrt(2)), obs=x)

    w = log_weights(Custom(model, lambda x: None), X, num_samples=3)
    assert torch.equal(w, LOG_PX.expand(3, 4))


def no_plate(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def no_plate_guide(x):
    pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def shared_latent(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with data_plate(x):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def shared_guide(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))


def unobserved(x):
    with data_plate(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def wrong_axis(x):
    with pyro.plate("data", 4, dim=-2), pyro.plate("pixels", 3, dim=-1):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x.unsqueeze(-1).expand(4, 3))


def other_name(x):
    with data_plate(x):
        pyro.sample("latent", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "guide", "facts"),
    [
        (gaussian, lambda x: None, ["['z']", "infer={'enumerate': 'parallel'}", "from_prior=['z']"]),
        (unobserved, unobserved, ["observes nothing", "obs="]),
        (no_plate, no_plate_guide, ["'z'", "no per-datum axis", "pyro.plate"]),
        (shared_latent, shared_guide, ["'w'", "shared by all data"]),
    ],
)
def test_refusals_name_the_site_and_the_mend(model, guide, facts):
    with pytest.raises(ValueError) as error:
        log_weights(Custom(model, guide), X, num_samples=3)
    for fact in facts:
        assert fact in str(error.value)


def test_a_foreign_site_of_the_guide_is_named():
    def both(x):
        exact_guide(x)
        other_name(x)

    def two_plates(x):
        with pyro.plate("one", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))
        with pyro.plate("two", len(x)):
            pyro.sample("latent", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"guide draws \['latent'\].*is_auxiliary"):
        log_weights(Custom(gaussian, two_plates), X, num_samples=3)


def test_plates_of_other_lengths_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("halves", 2):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[:2])

    with pytest.raises(ValueError, match=r"differ in length: .*'z': 4.*"):
        log_weights(Custom(model, exact_guide), X, num_samples=1)


@pytest.mark.parametrize("samples", [0, -1, 1.5, True, "3"])
def test_a_bad_number_of_samples_is_named(samples):
    with pytest.raises(ValueError, match="num_samples must be a positive whole number"):
        log_weights(Custom(gaussian, exact_guide), X, num_samples=samples)


def test_the_score_function_gradient_is_unbiased():
    """A Bernoulli latent: the gradient of the bound of two samples, by enumeration of all their values."""
    logit = torch.nn.Parameter(torch.tensor(0.4))
    owner = torch.nn.Module()
    owner.logit = logit

    def model(x):
        with data_plate(x):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            pyro.sample("k", dist.Bernoulli(logits=owner.logit))

    x = torch.tensor([0.8])
    pair, loss = Custom(model, guide, owner=owner), iwae(2)
    draws = []
    for _ in range(3000):
        logit.grad = None
        loss(pair.model, pair.guide, x).backward()
        draws.append(logit.grad.clone())
    draws = torch.stack(draws)

    free = torch.tensor(0.4, requires_grad=True)
    log_q = torch.stack([torch.nn.functional.logsigmoid(-free), torch.nn.functional.logsigmoid(free)])
    log_w = math.log(0.5) + dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(x) - log_q
    pairs = torch.stack([log_w.repeat_interleave(2), log_w.repeat(2)]).logsumexp(0) - math.log(2)
    bound = ((log_q.repeat_interleave(2) + log_q.repeat(2)).exp() * pairs).sum()
    (-bound).backward()
    assert (draws.mean() - free.grad).abs() < 4 * draws.std() / math.sqrt(3000)


@pytest.mark.parametrize("rows", [False, True], ids=["a plate of particles", "particles as rows"])
def test_a_scale_of_the_programs_own_weighs_an_objective_and_no_density(rows):
    """N(x; z, 1) to the power of a half is N(x; z, √2) times a constant: with its posterior every weight is the same.

    The data are half of what their plate says, whose scale does not count.
    """

    def model(x):
        with pyro.plate("data", 2 * len(x), subsample_size=len(x)) if not rows else data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.scale(scale=torch.full((len(x),), 0.5) if rows else 0.5):
                pyro.sample("x", dist.Normal(z.view(len(x)) if rows else z, 1.0), obs=x)

    def guide(x):
        third = pyro.param("third", torch.tensor(1 / 3))
        with pyro.plate("data", 2 * len(x), subsample_size=len(x)) if not rows else data_plate(x):
            pyro.sample("z", dist.Normal(third * x, math.sqrt(2 / 3)))

    pair, x = Custom(model, guide), torch.tensor([-1.0, 0.5, 2.0])
    constant = math.log(2) / 2 + math.log(2 * math.pi) / 4
    exact = -(dist.Normal(0.0, math.sqrt(3)).log_prob(x) + constant).mean().item()
    losses = [elbo(num_particles=4), iwae(4)] + ([] if rows else [renyi(0.5, 4), dreg(4), sticking_the_landing(4)])
    for loss in losses:
        assert loss(pair.model, pair.guide, x).item() == pytest.approx(exact, rel=1e-5)
    values = log_weights(pair, x, num_samples=20_000).logsumexp(0) - math.log(20_000)
    assert torch.allclose(values, dist.Normal(0.0, math.sqrt(2)).log_prob(x), atol=0.05)


def test_a_scale_of_what_is_summed_out_is_refused_inside_the_bound():
    def model(x):
        with data_plate(x), pyro.poutine.scale(scale=0.5):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    pair = Custom(model, lambda x: None)
    with pytest.raises(ValueError, match=r"\['k', 'x'\] are summed out .* poutine.scale .* elbo\(\)"):
        iwae(2)(pair.model, pair.guide, torch.randn(4))
    assert torch.isfinite(log_weights(pair, torch.randn(4), num_samples=1)).all()


def pixels(x):
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("pixels", x.shape[1], subsample_size=2, dim=-2) as i:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T[i])


def shifted(x):
    with data_plate(x):
        pyro.sample("z", dist.Normal(pyro.param("shift", torch.zeros(())), 1.0))


def test_a_part_of_each_datum_has_no_likelihood():
    pair, x = Custom(pixels, shifted), torch.randn(3, 6)
    assert elbo()(pair.model, pair.guide, x).isfinite()
    for refused in (lambda: iwae(3)(pair.model, pair.guide, x), lambda: ais(pair, x)):
        with pytest.raises(ValueError, match=r"plate 'pixels', inside the data plate, has a subsample.*or elbo\(\)"):
            refused()
