"""Every prior and every posterior, by the tables of ``parts.py``: a new part is tested by one more line there."""

import copy
import math

import pyro
import pytest
import torch
from parts import CONDITIONAL_PRIORS, POSTERIORS, PRIORS, WIDTH
from pyro import poutine

from ppgen import decoders, distributions, models, nn, posteriors, priors
from ppgen.distributions import NormalizingFlow
from ppgen.pair import adapt

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


@members
def test_the_density_integrates_to_one_in_three_dimensions(make, takes_context):
    """By importance sampling from a Gaussian somewhat wider than the part itself."""
    part, context = build(make, takes_context, 3, dtype=torch.float64)
    with torch.no_grad():
        distribution = adapt(part(*context))
        draws = distribution.expand((2000,)).sample()
        proposal = torch.distributions.MultivariateNormal(draws.mean(0), 2 * draws.T.cov())
        z = proposal.sample((20_000,))
        ratio = (distribution.log_prob(z) - proposal.log_prob(z)).exp()
    error = ratio.std() / 20_000**0.5
    assert error < 0.03
    assert (ratio.mean() - 1).abs() < 4.5 * error


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


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("name", ["diagonal", "full", "householder", "lowrank"])
def test_a_gaussians_own_draws_are_half_a_chi_square_below_its_mode_at_real_size_in_single_precision(name, scale):
    """Also where a covariance is too ill-conditioned for float32 to solve for the noise, or to subtract squares."""
    d = 40
    part = POSTERIORS[name](d)
    torch.manual_seed(1)
    outputs = scale * torch.randn(3, *part.net.out_shape)
    part.net = torch.nn.Identity()
    distribution = part(outputs)
    depths = distribution.log_prob(distribution.mean) - distribution.log_prob(distribution.rsample((2000,)))
    assert (depths.mean(0) - d / 2).abs().max() < 5 * math.sqrt(d / 2 / 2000)
    assert (depths.var(0) / (d / 2) - 1).abs().max() < 0.25


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


OWN = ("Custom", "ExplicitDensity")  # pairs that hold what a user gives them: no paper


@pytest.mark.parametrize("family", [priors, posteriors, decoders, nn, distributions, models], ids=lambda m: m.__name__)
def test_every_part_says_what_it_is_and_shows_an_example(family):
    for name in family.__all__:
        part = getattr(family, name)
        if isinstance(part, type) and issubclass(part, torch.nn.Module | torch.distributions.Distribution):
            first = part.__doc__.splitlines()[0]
            assert first.endswith(".") and len(first) < 100, name
            assert "Example:" in part.__doc__ and ">>>" in part.__doc__, name
            if family in (priors, posteriors, decoders) or (family is models and name not in OWN):
                assert "References:" in part.__doc__ and "https://" in part.__doc__, name
                assert ".. math::" in part.__doc__, name


def test_a_range_of_scales_is_that_of_the_scale_alone():
    """A Spline's noise is standardised, whatever its σ is clamped to."""
    outputs = torch.zeros(5, 68)
    outputs[:, 2:4] = -2.0
    drawn = []
    for bounds in ((-10.0, 10.0), (-6.0, -1.0)):
        torch.manual_seed(0)
        q = posteriors.Spline(torch.nn.Identity(), 2, log_scale_range=bounds)
        drawn.append(q(outputs).sample())
    assert torch.equal(*drawn)
