"""Every prior and every posterior, by one table each: a new part is tested by one more line."""

import copy

import pyro
import pytest
import torch
from pyro import poutine

from ppgen import nn, posteriors, priors
from ppgen.distributions import NormalizingFlow
from ppgen.pair import adapt

WIDTH = 3  # of the context that posteriors take


def amortised(kind, shaping=None, **options):
    """A posterior behind a small network; ``shaping`` are the options that decide how many outputs it needs."""

    def make(latent_dim, context_dim=WIDTH):
        shape = shaping or {}
        net = nn.MLP(context_dim, 16, kind.num_outputs(latent_dim, **shape))
        return kind(net, latent_dim, **shape, **options)

    return make


POSTERIORS = {
    "diagonal": amortised(posteriors.DiagNormal),
    "full": amortised(posteriors.FullNormal),
    "householder": amortised(posteriors.Householder, {"num_reflections": 3}),
    "iaf": amortised(posteriors.IAF, {"context_dim": 4}, hidden=(16,)),
    "lowrank": amortised(posteriors.LowRankNormal, {"rank": 2}),
    "mog": amortised(posteriors.MixtureOfGaussians, {"num_components": 3}),
    "planar": amortised(posteriors.Planar, {"num_transforms": 3}),
    "radial": amortised(posteriors.Radial, {"num_transforms": 3}),
    "sylvester": amortised(posteriors.Sylvester, {"num_transforms": 2}),
    "sylvester, householder": amortised(posteriors.Sylvester, {"num_transforms": 2, "num_reflections": 2}),
    "sylvester, orthogonal": amortised(posteriors.Sylvester, {"num_transforms": 2, "num_columns": 1}),
    "spline": amortised(posteriors.Spline, {"context_dim": 4}, hidden=(16,)),
    "spline, autoregressive": amortised(posteriors.Spline, {"context_dim": 4}, hidden=(16,), autoregressive=True),
}


def vamp(latent_dim, **options):
    encoder = amortised(posteriors.DiagNormal)(latent_dim)
    return priors.VampPrior(encoder, torch.rand(5, WIDTH), **options)


PRIORS = {
    "standard": priors.StandardNormal,
    "diagonal": priors.DiagNormal,
    "mog": lambda d: priors.MixtureOfGaussians(4, d),
    "vamp": vamp,
    "vamp, learned weights": lambda d: vamp(d, learn_weights=True),
    "vamp, full covariance": lambda d: priors.VampPrior(amortised(posteriors.FullNormal)(d), num_components=5),
    "vamp, householder": lambda d: priors.VampPrior(POSTERIORS["householder"](d), num_components=5),
    "realnvp": lambda d: priors.Flow.realnvp(d, hidden=(16,)),
    "maf": lambda d: priors.Flow.maf(d, hidden=(16,)),
    "nsf": lambda d: priors.Flow.nsf(d, hidden=(16,)),
    "nsf, coupling": lambda d: priors.Flow.nsf(d, hidden=(16,), coupling=True),
    "autoregressive": lambda d: priors.Autoregressive(d, hidden=(16,)),
}


def vamp_given_y(latent_dim, kind="diagonal"):
    encoder = POSTERIORS[kind](latent_dim, context_dim=2 + WIDTH)
    return priors.VampPrior(encoder, torch.rand(5, 2), conditional=True)


def behind(num_outputs):
    return nn.MLP(WIDTH, 16, num_outputs)


CONDITIONAL_PRIORS = {
    "diagonal": lambda d: priors.DiagNormal(d, behind(2 * d)),
    "mog": lambda d: priors.MixtureOfGaussians(3, d, behind(3 * (2 * d + 1))),
    "vamp": vamp_given_y,
    "vamp, full covariance": lambda d: vamp_given_y(d, "full"),
    "realnvp": lambda d: priors.Flow.realnvp(d, context_dim=WIDTH, hidden=(16,)),
    "nsf": lambda d: priors.Flow.nsf(d, context_dim=WIDTH, hidden=(16,), coupling=True),
    "autoregressive": lambda d: priors.Autoregressive(d, context_dim=WIDTH, hidden=(16,)),
}

# A member of either family as a function of the number of latent coordinates, with the context that it takes.
MEMBERS = {f"posterior {name}": (make, True) for name, make in POSTERIORS.items()}
MEMBERS |= {f"prior {name}": (make, False) for name, make in PRIORS.items()}
MEMBERS |= {f"prior {name} | y": (make, True) for name, make in CONDITIONAL_PRIORS.items()}
members = pytest.mark.parametrize(("make", "takes_context"), MEMBERS.values(), ids=MEMBERS)


def build(make, takes_context, latent_dim, *lead, dtype=torch.float32):
    """The part, in float64 if asked for, and its context of shape (*lead, WIDTH)."""
    torch.manual_seed(1)
    part = make(latent_dim).to(dtype)
    return part, (torch.randn(*lead, WIDTH, dtype=dtype),) if takes_context else ()


def draw(distribution, *shape):
    return distribution.rsample(shape) if distribution.has_rsample else distribution.sample(shape)


@members
@pytest.mark.parametrize("lead", [(), (4,), (2, 4)], ids=str)
def test_batch_is_the_contexts_leading_axes_and_the_event_one_latent(make, takes_context, lead):
    part, context = build(make, takes_context, 3, *lead)
    distribution = adapt(part(*context))
    assert distribution.batch_shape == (lead if takes_context else ())
    assert distribution.event_shape == (3,)
    expanded = distribution.expand((5, *distribution.batch_shape))
    value = draw(expanded)
    assert value.shape == (5, *distribution.batch_shape, 3)
    assert expanded.log_prob(value).shape == value.shape[:-1]
    assert distribution.log_prob(draw(distribution, 7, 2)).shape == (7, 2, *distribution.batch_shape)
    assert expanded.log_prob(value).isfinite().all()


@members
def test_foreign_values_broadcast_against_the_batch(make, takes_context):
    part, context = build(make, takes_context, 3, 4)
    distribution = part(*context)
    for lead in [(6, 4), (1,), (6, 1), ()]:
        scores = distribution.log_prob(torch.randn(*lead, 3))
        assert scores.shape == torch.broadcast_shapes(lead, distribution.batch_shape)


@members
@pytest.mark.parametrize("latent_dim", [1, 3])
def test_a_drawn_value_is_scored_as_the_same_value_drawn_elsewhere(make, takes_context, latent_dim):
    part, context = build(make, takes_context, latent_dim, 4, dtype=torch.float64)
    distribution = adapt(part(*context)).expand((50, 4))
    value = draw(distribution)
    own = distribution.log_prob(value)
    torch.testing.assert_close(own, distribution.log_prob(value.clone()), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own, part(*context).log_prob(value.clone()), rtol=1e-6, atol=1e-6)


@members
def test_a_pyro_plate_draws_and_a_replay_scores_the_same(make, takes_context):
    part, context = build(make, takes_context, 3, 4)

    def program():
        with pyro.plate("particles", 5, dim=-2), pyro.plate("data", 4, dim=-1):
            return pyro.sample("z", adapt(part(*context)))

    trace = poutine.trace(program).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["value"].shape == (5, 4, 3) and site["log_prob"].shape == (5, 4)
    replayed = poutine.trace(poutine.replay(program, trace=trace)).get_trace()
    replayed.compute_log_prob()
    torch.testing.assert_close(replayed.nodes["z"]["log_prob"], site["log_prob"], rtol=1e-3, atol=1e-3)


def grid(latent_dim):
    axis = torch.linspace(-12, 12, {1: 4001, 2: 401}[latent_dim], dtype=torch.float64)
    cell = float(axis[1] - axis[0]) ** latent_dim
    return torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, latent_dim), cell


@members
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_the_density_integrates_to_one_and_its_moments_are_those_of_the_samples(make, takes_context, latent_dim):
    part, context = build(make, takes_context, latent_dim, dtype=torch.float64)
    points, cell = grid(latent_dim)
    with torch.no_grad():
        distribution = part(*context)
        density = distribution.log_prob(points).exp() * cell
        torch.testing.assert_close(density.sum(), torch.ones((), dtype=torch.float64), rtol=0, atol=2e-3)
        draws = adapt(distribution).expand((20_000,)).sample()
        for test_function in (lambda z: z[..., 0], lambda z: z.square().sum(-1), lambda z: (z.sum(-1) + 1).cos()):
            exact = (density * test_function(points)).sum()
            values = test_function(draws)
            assert (values.mean() - exact).abs() < 4.5 * values.std() / 20_000**0.5 + 1e-3


FLOWS = [name for name, make in POSTERIORS.items() if isinstance(make(2)(torch.zeros(WIDTH)), NormalizingFlow)]


@pytest.mark.parametrize("name", FLOWS)
def test_the_log_determinant_is_that_of_autograds_jacobian(name):
    part, context = build(POSTERIORS[name], True, 3, dtype=torch.float64)
    distribution = part(*context)
    noise = torch.randn(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(distribution.transform, noise)
    value, log_det = distribution.transform.call_and_ladj(noise)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet)
    torch.testing.assert_close(distribution.transform.inv(value.clone()), noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", POSTERIORS.values(), ids=POSTERIORS)
def test_densities_have_the_gradients_that_finite_differences_give(make):
    """Of values drawn elsewhere, in the values and in the network's outputs; so inverses are differentiated right."""
    part, context = build(make, True, 2, 2, dtype=torch.float64)
    outputs = part.net(*context).detach().requires_grad_()
    value = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    part.net = torch.nn.Identity()
    assert torch.autograd.gradcheck(lambda v, o: part(o).log_prob(v), (value, outputs), atol=1e-5, rtol=1e-3)


@members
def test_every_parameter_has_a_gradient(make, takes_context):
    part, context = build(make, takes_context, 3, 4)
    distribution = part(*context)
    value = draw(distribution, 6)
    loss = distribution.log_prob(value).mean() + value.square().mean() + distribution.log_prob(torch.randn(3)).mean()
    names, parameters = zip(*part.named_parameters(), strict=True) if any(True for _ in part.parameters()) else ((), ())
    gradients = torch.autograd.grad(loss, parameters) if parameters else ()
    for name, gradient in zip(names, gradients, strict=True):
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name


@members
def test_state_is_restored_and_copies_are_independent(make, takes_context):
    part, context = build(make, takes_context, 3, 4)
    torch.manual_seed(2)
    other = make(3)
    value = torch.randn(4, 3)
    expected = part(*context).log_prob(value)
    other.load_state_dict(part.state_dict())
    torch.testing.assert_close(other(*context).log_prob(value), expected)
    clone = copy.deepcopy(part)
    torch.testing.assert_close(clone(*context).log_prob(value), expected)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.add_(0.3)
    torch.testing.assert_close(part(*context).log_prob(value), expected)


@members
def test_double_precision_goes_all_the_way_through(make, takes_context):
    part, context = build(make, takes_context, 3, 4)
    value = torch.randn(4, 3)
    single = part(*context).log_prob(value)
    part, context = part.double(), tuple(c.double() for c in context)
    distribution = part(*context)
    assert draw(distribution).dtype == torch.float64
    double = distribution.log_prob(value.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@members
def test_parts_move_to_another_device(make, takes_context):
    part, context = build(make, takes_context, 3, 4)
    value = torch.randn(4, 3)
    expected = part(*context).log_prob(value)
    part, context = part.cuda(), tuple(c.cuda() for c in context)
    distribution = part(*context)
    assert distribution.log_prob(draw(distribution)).device.type == "cuda"
    torch.testing.assert_close(distribution.log_prob(value.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", POSTERIORS.values(), ids=POSTERIORS)
def test_posteriors_take_several_contexts(make):
    part = make(3, context_dim=WIDTH + 2)
    x, y = torch.randn(4, WIDTH), torch.randn(6, 1, 2)
    assert adapt(part(x, y)).batch_shape == (6, 4)


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_network_of_another_width_is_refused_with_the_right_one(name):
    kind = type(POSTERIORS[name](3))
    with pytest.raises(ValueError, match=r"outputs") as error:
        kind(nn.MLP(WIDTH, 7), 3)
    assert str(kind.num_outputs(3)) in str(error.value)
    silent = torch.nn.Linear(WIDTH, 7)  # states no shape: found out when it is used
    with pytest.raises(ValueError, match=r"outputs"):
        kind(silent, 3)(torch.zeros(5, WIDTH))


@pytest.mark.parametrize("name", POSTERIORS)
def test_what_the_network_needs_is_in_nats_reach_of_the_standard_normal_at_first(name):
    part, context = build(POSTERIORS[name], True, 8, 100)
    distribution = part(*context)
    value = draw(distribution, 50)
    kl = distribution.log_prob(value) - priors.StandardNormal(8)().log_prob(value)
    assert kl.mean() < 8


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_vamp_prior_takes_a_posterior_exactly_if_it_scores_foreign_values_cheaply(name):
    encoder = POSTERIORS[name](2)
    if encoder.scores_foreign_values:
        prior = priors.VampPrior(encoder, num_components=4)
        assert prior.posterior is encoder
        components = [encoder(u) for u in prior.pseudo_inputs]
        value = torch.randn(6, 2)
        expected = torch.stack([c.log_prob(value) for c in components]).logsumexp(0) - torch.tensor(4.0).log()
        torch.testing.assert_close(prior().log_prob(value), expected)
        with torch.no_grad():
            assert prior().expand((3, 2)).sample().shape == (3, 2, 2)
    else:
        with pytest.raises(ValueError, match=r"encoder of its own: VampPrior\(DiagNormal"):
            priors.VampPrior(encoder, num_components=4)


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
        ({"num_components": 5, "low": 1.0}, "low = 1.0 must be less than high"),
    ],
)
def test_vamp_prior_refuses_bad_pseudo_inputs(arguments, message):
    with pytest.raises(ValueError, match=message):
        priors.VampPrior(amortised(posteriors.DiagNormal)(2), **arguments)


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
