"""Mixtures and flows against torch's own, closed forms and quadrature."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent, MixtureSameFamily, MultivariateNormal, Normal

from ppgen import distributions
from ppgen.distributions import AffineFlow, ContinuousBernoulli, FullNormal, LowRankNormal, Mixture, NormalizingFlow


def gaussians(*batch, d, dtype=torch.float32, requires_grad=False):
    loc = torch.randn(*batch, d, dtype=dtype).requires_grad_(requires_grad)
    log_scale = (0.3 * torch.randn(*batch, d, dtype=dtype)).requires_grad_(requires_grad)
    return loc, log_scale


def direct(logits, components, value):
    """The textbook formula, through a tensor of values x components x dimensions."""
    log_prob = components.log_prob(value.unsqueeze(-2))
    return (logits.log_softmax(-1) + log_prob).logsumexp(-1)


@pytest.mark.parametrize("own", [(), (4,), (3, 1)], ids=str)
@pytest.mark.parametrize("lead", [(), (4,), (3, 4), (5, 3, 4)], ids=str)
@pytest.mark.parametrize("full", [False, True])
def test_mixture_scores_like_the_textbook_formula(own, lead, full, monkeypatch):
    torch.manual_seed(0)
    loc, log_scale = gaussians(*own, 7, d=3)
    logits = torch.randn(7)
    if full:
        components = MultivariateNormal(
            loc, scale_tril=torch.diag_embed(log_scale.exp()) + 0.1 * torch.ones(3, 3).tril(-1)
        )
    else:
        components = Independent(Normal(loc, log_scale.exp()), 1)
    value = torch.randn(*lead, 3)
    expected = direct(logits, components, value)
    mixture = Mixture(logits, components)
    assert mixture.batch_shape == own
    torch.testing.assert_close(mixture.log_prob(value), expected)
    monkeypatch.setattr(distributions.mixture, "BLOCK", 40)  # several blocks
    torch.testing.assert_close(mixture.log_prob(value), expected)
    target = torch.broadcast_shapes(own, lead)
    torch.testing.assert_close(mixture.expand(target).log_prob(value), expected)


def test_mixture_of_far_and_narrow_gaussians_is_precise_in_float32():
    """At log-variance -6 the expanded squares reach 10^5: in float32 they would cancel to nothing."""
    torch.manual_seed(0)
    loc = 3 * torch.randn(50, 40, dtype=torch.float64)
    scale = torch.full_like(loc, math.exp(-3))
    value = loc[torch.arange(200) % 50] + scale[0] * torch.randn(200, 40, dtype=torch.float64)
    loc, scale, value = loc.float(), scale.float(), value.float()
    got = Mixture(torch.zeros(50), Independent(Normal(loc, scale), 1)).log_prob(value)
    exact = direct(torch.zeros(50).double(), Independent(Normal(loc.double(), scale.double()), 1), value.double())
    assert got.dtype == torch.float32
    assert (got.double() - exact).abs().max() < 1e-3


def test_mixture_needs_no_tensor_of_values_by_components_by_dimensions(monkeypatch):
    """25,000 x 500 x 40 would be 2 GB: the components' own log_prob, which forms it, is not called."""

    def refuse(*_):
        raise AssertionError("the large tensor was formed")

    monkeypatch.setattr(Normal, "log_prob", refuse)
    mixture = Mixture(torch.zeros(500), Independent(Normal(torch.randn(500, 40), 1.0), 1))
    with torch.no_grad():
        assert mixture.expand((50, 500)).log_prob(torch.randn(50, 500, 40)).isfinite().all()


@pytest.mark.parametrize("own", [(), (4,)], ids=str)
def test_mixture_gradients_are_those_of_the_textbook_formula(own):
    torch.manual_seed(0)
    loc, log_scale = gaussians(*own, 5, d=3, requires_grad=True)
    logits = torch.randn(5, requires_grad=True)
    value = torch.randn(6, 4, 3, requires_grad=True)
    inputs = (logits, loc, log_scale, value)

    def components():
        return Independent(Normal(loc, log_scale.exp()), 1)

    got = torch.autograd.grad(Mixture(logits, components()).log_prob(value).sum(), inputs)
    expected = torch.autograd.grad(direct(logits, components(), value).sum(), inputs)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("own", [(), (3,)], ids=str)
def test_mixture_samples_have_its_moments(full, own):
    torch.manual_seed(0)
    loc, log_scale = gaussians(*own, 3, d=2, dtype=torch.float64)
    logits = torch.randn(*own, 3, dtype=torch.float64)
    scale = log_scale.exp()
    components = (
        MultivariateNormal(loc, scale_tril=torch.diag_embed(scale)) if full else Independent(Normal(loc, scale), 1)
    )
    mixture = Mixture(logits, components).expand((2, 3))
    assert mixture.has_rsample is not full
    draws = mixture.sample((20_000,))
    assert draws.shape == (20_000, 2, 3, 2) and draws.dtype == torch.float64
    oracle = MixtureSameFamily(torch.distributions.Categorical(logits=logits), components)
    torch.testing.assert_close(mixture.mean, oracle.mean.expand(2, 3, 2))
    error = (draws.mean(0) - oracle.mean).abs() / (oracle.variance / 20_000).sqrt()
    assert error.max() < 4.5
    assert (draws.var(0) / oracle.variance - 1).abs().max() < 0.1
    assert not torch.allclose(draws[:, 0], draws[:, 1])


@pytest.mark.parametrize("d", [1, 2])
def test_mixture_draws_carry_the_exact_gradient_of_every_parameter(d):
    """The gradient of E[f(z)] by draws, against the same by quadrature."""
    torch.manual_seed(0)
    loc, log_scale = gaussians(3, d=d, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(3, dtype=torch.float64, requires_grad=True)
    parameters = (logits, loc, log_scale)

    def mixture():
        return Mixture(logits, Independent(Normal(loc, log_scale.exp()), 1))

    def f(z):
        return (z.sum(-1) + 0.3).sin() + (z.prod(-1)).tanh()

    axis = torch.linspace(-9, 9, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
    cell = (axis[1] - axis[0]) ** d
    exact = torch.autograd.grad((mixture().log_prob(grid).exp() * f(grid)).sum() * cell, parameters)
    batches = []
    for _ in range(20):
        z = mixture().rsample((5000,))
        batches.append(torch.cat([g.flatten() for g in torch.autograd.grad(f(z).mean(), parameters)]))
    estimates = torch.stack(batches)
    exact = torch.cat([g.flatten() for g in exact])
    error = (estimates.mean(0) - exact) / (estimates.std(0) / math.sqrt(20) + 1e-9)
    assert exact.abs().max() > 0.05
    assert error.abs().max() < 4.5


def test_mixture_refuses_unequal_numbers_of_components():
    with pytest.raises(ValueError, match=r"\(4,\).*\(3,\)"):
        Mixture(torch.zeros(4), Independent(Normal(torch.zeros(3, 2), 1.0), 1))


def flow(d=3, n=4, **k):
    base = dist.Normal(torch.zeros(n, d, **k), torch.ones(n, d, **k)).to_event(1)
    return NormalizingFlow(base, torch.distributions.ExpTransform())


def test_flow_is_the_log_normal_for_the_exponential():
    value = flow().sample()
    expected = torch.distributions.LogNormal(0.0, 1.0).log_prob(value).sum(-1)
    torch.testing.assert_close(flow().log_prob(value), expected)
    assert flow().support.event_dim == 1 and flow().expand((2, 4)).batch_shape == (2, 4)


def test_flow_scores_its_own_draw_without_the_inverse():
    class OneWay(torch.distributions.ExpTransform):
        def _inverse(self, y):
            raise AssertionError("inverted")

    base = dist.Normal(torch.zeros(4, 3), torch.ones(4, 3)).to_event(1)
    one_way = NormalizingFlow(base, OneWay()).expand((2, 4))
    z = one_way.rsample()
    assert one_way.log_prob(z).shape == (2, 4)
    assert one_way.expand((2, 4)).log_prob(z).shape == (2, 4)  # copies share what is remembered
    with pytest.raises(AssertionError, match="inverted"):
        one_way.log_prob(z.clone())


def test_flow_draws_made_without_gradients_are_constants_whose_density_has_one():
    loc = torch.zeros(3, requires_grad=True)
    distribution = NormalizingFlow(dist.Normal(loc, 1.0).to_event(1), torch.distributions.ExpTransform())
    z = distribution.sample()
    (got,) = torch.autograd.grad(distribution.log_prob(z), loc)
    torch.testing.assert_close(got, z.log())  # of log N(log z; loc, 1)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", ["flow", "full"])
def test_a_draw_that_is_edited_in_place_is_scored_as_it_is_then(kind, grad):
    scale_tril = torch.tensor([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [0.1, -1.0, 0.5]])
    own = flow() if kind == "flow" else FullNormal(torch.ones(3), scale_tril)
    with torch.set_grad_enabled(grad):
        z = own.rsample()
        z[..., 0] += 2.0
        torch.testing.assert_close(own.log_prob(z), own.log_prob(z.clone()))
        z = own.rsample()
        torch.testing.assert_close(own.log_prob(z), own.log_prob(z.clone()), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():  # where a tensor does not count its edits
        z = own.rsample()
        z += 2.0
        torch.testing.assert_close(own.log_prob(z), own.log_prob(z.clone()))


def test_affine_flow_has_the_transformed_mean():
    base = dist.Normal(torch.tensor([1.0, 2.0]), 1.0).to_event(1)
    mean = AffineFlow(base, torch.distributions.AffineTransform(1.0, 3.0)).expand((5,)).mean
    torch.testing.assert_close(mean, torch.tensor([4.0, 7.0]).expand(5, 2))
    with pytest.raises(NotImplementedError, match="average samples"):
        _ = flow().mean


@pytest.mark.parametrize("lead", [(), (4,), (2, 1)], ids=str)
def test_a_covariance_of_low_rank_scores_like_the_dense_one(lead):
    loc, factor, variance = torch.randn(*lead, 6).double(), torch.randn(*lead, 6, 2).double(), torch.rand(6).double()
    dense = dist.MultivariateNormal(loc, factor @ factor.mT + variance.diag())
    low = LowRankNormal(loc, factor, variance)
    for shape in ((), (5,)):
        value = torch.randn(*shape, *lead, 6).double()
        torch.testing.assert_close(low.log_prob(value), dense.log_prob(value))
    with pytest.raises(ValueError, match="within the support"):
        LowRankNormal(loc, factor, variance, validate_args=True).log_prob(torch.full((6,), torch.nan).double())


@pytest.mark.parametrize("log_scale", [-1.0, -4.0, -7.0, -9.0])
def test_a_covariance_of_low_rank_is_precise_in_float32(log_scale):
    """A difference of squares would be wrong by thousands of nats at the smallest scale."""
    parameters = torch.randn(40), torch.randn(40, 4), torch.full((40,), 2 * log_scale).exp()
    single, double = LowRankNormal(*parameters), dist.LowRankMultivariateNormal(*(p.double() for p in parameters))
    value = single.sample((100,))
    torch.testing.assert_close(single.log_prob(value).double(), double.log_prob(value.double()), rtol=0, atol=0.05)


def test_a_mixture_of_scalars_without_a_batch_has_a_mean():
    mixture = Mixture(torch.zeros(3), Normal(torch.tensor([0.0, 1.0, 5.0]), 1.0))
    assert mixture.mean.item() == pytest.approx(2.0)


def test_the_mean_of_a_continuous_bernoulli_has_its_gradient_at_any_logit():
    """By symmetry μ(−l) = 1 − μ(l), and far out μ(l) = 1 − 1 / l."""
    logits = torch.tensor([-1000.0, -100.0, -89.0, -3.0, 3.0, 89.0, 100.0, 1000.0], requires_grad=True)
    mean = ContinuousBernoulli(logits).mean
    (slope,) = torch.autograd.grad(mean.sum(), logits)
    torch.testing.assert_close(mean, 1 - mean.flip(0))
    torch.testing.assert_close(slope, slope.flip(0))
    torch.testing.assert_close(slope[:3], logits[:3].detach() ** -2)
    expected = 1 / 9 - torch.tensor(-3.0).exp() / (1 - torch.tensor(-3.0).exp()) ** 2
    torch.testing.assert_close(slope[3], expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float64])
def test_a_mixture_scores_numbers_of_any_type(dtype):
    """Whole ones must not make the log-densities whole, nor bytes of them."""
    components = Independent(Normal(torch.randn(3, 2), torch.rand(3, 2) + 0.5), 1)
    mixture = Mixture(torch.zeros(3), components)
    x = torch.randint(0, 5, (50, 2))
    found, expected = mixture.log_prob(x.to(dtype)), mixture.log_prob(x.float())
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(found.float(), expected, atol=1e-5)


def test_a_draw_is_scored_under_every_row_of_a_wider_copy():
    q = FullNormal(torch.randn(4, 3), torch.eye(3).expand(4, 3, 3))
    z = q.rsample()
    wide = q.expand((2, 4))
    assert wide.log_prob(z).shape == (2, 4)
    assert torch.allclose(wide.log_prob(z), wide.log_prob(z.clone()), atol=1e-5)


def test_levels_have_the_moments_of_numbers():
    d = distributions.CategoricalLevels(logits=torch.randn(5, 7))
    levels, p = torch.arange(7.0), d.probs
    variance = (p * levels**2).sum(-1) - (p @ levels) ** 2
    assert torch.allclose(d.variance, variance, atol=1e-5) and torch.allclose(d.stddev, variance.sqrt(), atol=1e-5)
