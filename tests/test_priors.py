"""What is particular to the VampPrior, flow priors, categorical latents and grids of codes."""

import math

import numpy as np
import pytest
import torch
from parts import PRIORS, WIDTH, amortised, behind, vamp_given_y

from ppgen import models, nn, posteriors, priors
from ppgen.data import DynamicBinarization
from ppgen.inference import fit
from ppgen.pair import adapt


def test_a_binary_start_leaves_no_pixel_of_a_pseudo_input_without_a_gradient():
    torch.manual_seed(0)
    prior = priors.VampPrior(amortised(posteriors.DiagNormal)(2, 64), torch.bernoulli(torch.full((5, 64), 0.5)))
    prior().log_prob(torch.randn(100, 2)).mean().backward()
    assert (prior.pseudo_inputs.grad != 0).all()


def test_free_pseudo_inputs_start_as_published_and_stay_in_the_range():
    torch.manual_seed(0)
    prior = priors.VampPrior(amortised(posteriors.DiagNormal)(2, 784), num_components=500)
    assert abs(prior.pseudo_inputs.mean() - 0.05) < 1e-3 and abs(prior.pseudo_inputs.std() - 0.01) < 1e-3
    levels = priors.VampPrior(amortised(posteriors.DiagNormal)(2, 784), num_components=500, high=255.0)
    assert abs(levels.pseudo_inputs.mean() - 0.05 * 255) < 0.3
    with torch.no_grad():
        prior.pseudo_inputs.add_(10)
        outside = prior().log_prob(torch.zeros(2))
        prior.pseudo_inputs.fill_(1.0)
        torch.testing.assert_close(outside, prior().log_prob(torch.zeros(2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither"),
        ({"pseudo_inputs": torch.rand(5, WIDTH), "num_components": 5}, "both"),
        ({"num_components": 0}, "num_components must be a positive whole number, got 0"),
        ({"pseudo_inputs": torch.rand(5)}, r"shape is \(5,\)"),
        ({"pseudo_inputs": torch.full((5, WIDTH), float("nan"))}, "NaN"),
        ({"pseudo_inputs": torch.full((5, WIDTH), 255.0)}, "run from 255 to 255"),
        ({"num_components": 5, "low": 1.0}, r"\(low, high\), must be two numbers .* got \(1.0, 1.0\)"),
    ],
)
def test_vamp_prior_refuses_bad_pseudo_inputs(arguments, message):
    with pytest.raises(ValueError, match=message):
        priors.VampPrior(amortised(posteriors.DiagNormal)(2), **arguments)


@pytest.mark.parametrize("given", [DynamicBinarization(torch.rand(5, WIDTH)), np.zeros((5, WIDTH))])
def test_pseudo_inputs_that_are_no_tensor_are_named_with_what_makes_them_one(given):
    with pytest.raises(
        TypeError, match=rf"pseudo_inputs must be a tensor.*got {type(given).__name__}.*x_train\[:500\]"
    ):
        priors.VampPrior(amortised(posteriors.DiagNormal)(2), given)


def test_vamp_prior_asks_for_a_shape_where_the_network_states_none():
    silent = posteriors.DiagNormal(torch.nn.Linear(WIDTH, 4))
    with pytest.raises(ValueError, match="give shape"):
        priors.VampPrior(silent, num_components=4)
    assert priors.VampPrior(silent, num_components=4, shape=WIDTH)().event_shape == (2,)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_a_conditional_vamp_prior_is_the_mixture_over_pseudo_inputs_for_each_label(kind):
    torch.manual_seed(0)
    prior = vamp_given_y(2, kind)
    labels = torch.eye(WIDTH)[torch.tensor([0, 2, 0, 1])]
    z = torch.randn(6, 4, 2)
    with pytest.raises(ValueError, match="without y"):
        prior()
    for n in range(4):
        pairs = torch.cat([prior.pseudo_inputs, labels[n].expand(5, -1)], -1)
        components = [prior.posterior(pair) for pair in pairs]
        expected = torch.stack([c.log_prob(z[:, n]) for c in components]).logsumexp(0) - torch.tensor(5.0).log()
        torch.testing.assert_close(prior(labels).log_prob(z)[:, n], expected)


def test_unconditional_priors_ignore_y():
    for name, make in PRIORS.items():
        assert adapt(make(2)(torch.zeros(5, 7))).batch_shape == (), name


@pytest.mark.parametrize("num_latents", [None, 4])
def test_categorical_latents_are_relaxed_in_training_and_scored_exactly_in_evaluation(num_latents):
    torch.manual_seed(0)
    net = behind(posteriors.Categorical.num_outputs(3, num_latents))
    posterior = posteriors.Categorical(net, 3, num_latents)
    prior = priors.Categorical(3, num_latents, learn=True)
    x = torch.randn(5, WIDTH)
    event = (3,) if num_latents is None else (num_latents, 3)

    q, p = posterior(x).expand((7, 5)), prior().expand((7, 5))
    z = q.rsample()
    assert q.has_rsample and z.shape == (7, 5, *event)
    assert ((z > 0) & (z < 1)).all()
    (q.log_prob(z) - p.log_prob(z)).mean().backward()
    for part in (posterior, prior):
        assert all(w.grad.abs().sum() > 0 for w in part.parameters())

    q, p = posterior.eval()(x), prior.eval()()
    z = q.sample((7,))
    assert not q.has_rsample and ((z == 0) | (z == 1)).all()
    logits = net(x).reshape(5, *event)
    expected = (logits.log_softmax(-1) * z).sum(-1)
    torch.testing.assert_close(q.log_prob(z), expected if num_latents is None else expected.sum(-1))
    assert p.log_prob(z).exp().allclose(torch.tensor((1 / 3.0) ** (num_latents or 1)))
    if num_latents is None:
        assert q.enumerate_support().shape == (3, 5, 3)


def test_a_relaxed_category_integrates_to_one():
    """Two categories: the density along the segment between them, with respect to the first coordinate."""
    relaxed = posteriors.Categorical(torch.nn.Identity(), 2)(torch.tensor([0.4, -0.3], dtype=torch.float64))
    logit = torch.linspace(-40, 40, 40_001, dtype=torch.float64)
    first = logit.sigmoid()
    density = relaxed.log_prob(torch.stack([first, (-logit).sigmoid()], -1)).exp()
    total = torch.trapezoid(density * first * (-logit).sigmoid(), logit)
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


def test_categorical_parts_refuse_bad_sizes_and_temperatures():
    with pytest.raises(ValueError, match="12 outputs"):
        posteriors.Categorical(behind(11), 3, 4)
    with pytest.raises(ValueError, match=r"temperature.*0\.0"):
        priors.Categorical(3, temperature=0.0)
    assert priors.Categorical(3, 4, behind(12))(torch.zeros(5, WIDTH)).batch_shape == (5,)
    discrete = posteriors.Categorical(behind(3), 3, temperature=None)
    assert discrete.training and not discrete(torch.zeros(5, WIDTH)).has_rsample


def test_flow_takes_any_flow_of_zukos_and_nothing_else():
    import zuko

    for flow in (zuko.flows.NAF(2, hidden_features=(8,)), zuko.flows.SOSPF(2), zuko.mixtures.GMM(2, components=3)):
        prior = priors.Flow(flow)
        assert adapt(prior()).expand((3, 4)).log_prob(torch.randn(3, 4, 2)).shape == (3, 4)
    conditional = priors.Flow.realnvp(2, context_dim=3)
    assert conditional(torch.randn(5, 3)).batch_shape == (5,)
    with pytest.raises(TypeError, match=r"zuko.flows.MAF"):
        priors.Flow("maf")


def test_pseudo_inputs_given_a_layer_below_can_be_trained():
    """A conditional that is a VampPrior: its y is a latent, with a gradient."""
    q = posteriors.DiagNormal(nn.GatedBranches([4, 2], 8, 6))
    prior = priors.VampPrior(q, num_components=3, shape=4, conditional=True)
    y, z = torch.randn(5, 2), torch.randn(5, 3)
    expected = prior(y).log_prob(z)
    y.requires_grad_()
    found = prior(y).log_prob(z)
    assert torch.allclose(found, expected, atol=1e-5)
    (slope,) = torch.autograd.grad(found.sum(), y)
    assert (slope.abs().sum(-1) > 0).all()


def test_the_grid_prior_is_uniform_until_it_learns():
    prior = priors.CategoricalGrid(5, (2, 3))
    assert not list(prior.parameters())
    z = prior().sample((7,))
    assert z.shape == (7, 2, 3) and z.max() < 5
    assert torch.allclose(prior().log_prob(z), torch.tensor(-6 * math.log(5)))
    learned = priors.CategoricalGrid(5, (2, 3), learn=True)
    z = torch.randint(3, (50, 2, 3))
    fit(
        models.ExplicitDensity(learned),
        z,
        epochs=300,
        batch_size=50,
        seed=0,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.1),
    )
    frequencies = torch.nn.functional.one_hot(z, 5).float().mean(0)
    assert torch.allclose(learned.logits.softmax(-1), frequencies, atol=0.02)
