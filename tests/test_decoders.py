"""Every decoder, by one table: a new one is tested by one more line."""

import copy
import math

import pyro
import pytest
import torch
from pyro import poutine
from torch.distributions import Normal as TorchNormal

from ppgen import decoders, distributions, nn

WIDTH = 3  # of z
LEVELS, UNIT, BINARY, REAL = "levels", "unit interval", "binary", "real"


def behind(kind, shape, *positional, shaping=None, num_levels=None, **options):
    """A decoder of data of this shape behind a small network."""

    def make(context_dim=WIDTH):
        net = nn.MLP(context_dim, 16, kind.outputs_shape(shape, **(shaping or {})))
        levels = {} if num_levels is None else {"num_levels": num_levels}
        return kind(net, *positional, **(shaping or {}), **levels, **options)

    return make, shape


DECODERS = {
    "bernoulli": (*behind(decoders.Bernoulli, (1, 4, 4)), BINARY),
    "bernoulli, vector": (*behind(decoders.Bernoulli, (16,)), BINARY),
    "continuous bernoulli": (*behind(decoders.ContinuousBernoulli, (1, 4, 4)), UNIT),
    "normal, fixed": (*behind(decoders.Normal, (1, 4, 4), shaping={"scale": 0.5}), REAL),
    "normal, learned": (*behind(decoders.Normal, (1, 4, 4), shaping={"scale": 0.5}, learn_scale=True), REAL),
    "normal, predicted": (*behind(decoders.Normal, (3, 4, 4)), REAL),
    "normal, predicted, vector": (*behind(decoders.Normal, (16,)), REAL),
    "categorical": (*behind(decoders.Categorical, (3, 4, 4)), LEVELS),
    "categorical, vector": (*behind(decoders.Categorical, (5,), shaping={"num_levels": 16}), LEVELS),
    "logistic": (*behind(decoders.DiscretizedLogistic, (3, 4, 4)), LEVELS),
    "logistic, vector": (*behind(decoders.DiscretizedLogistic, (5,), num_levels=16), LEVELS),
    "logistic mixture": (*behind(decoders.LogisticMixture, (3, 4, 4), 3), LEVELS),
    "logistic mixture, grey": (
        *behind(decoders.LogisticMixture, (1, 4, 4), 1, shaping={"num_components": 3}, num_levels=16),
        LEVELS,
    ),
}
table = pytest.mark.parametrize(("make", "shape", "kind"), DECODERS.values(), ids=DECODERS)


def data(decoder, kind, *shape):
    if kind == LEVELS:
        return torch.randint(decoder.num_levels, shape).float()
    return {BINARY: torch.bernoulli(torch.full(shape, 0.5)), UNIT: torch.rand(shape), REAL: torch.randn(shape)}[kind]


@table
@pytest.mark.parametrize("lead", [(), (4,), (2, 4)], ids=str)
def test_the_event_is_one_datum_and_the_batch_zs_leading_axes(make, shape, kind, lead):
    torch.manual_seed(0)
    decoder = make()
    distribution = decoder(torch.randn(*lead, WIDTH))
    assert distribution.batch_shape == lead and distribution.event_shape == shape
    expanded = distribution.expand((5, *lead))
    x = expanded.sample()
    assert x.shape == (5, *lead, *shape) and x.is_floating_point()
    assert expanded.support.check(x).all()
    assert expanded.log_prob(x).shape == (5, *lead) and expanded.log_prob(x).isfinite().all()
    assert distribution.sample((6,)).shape == (6, *lead, *shape)
    assert distribution.mean.shape == (*lead, *shape)
    assert distribution.log_prob(data(decoder, kind, *shape)).shape == lead


@table
def test_a_pyro_plate_with_particles_scores_data_without_them(make, shape, kind):
    decoder = make()
    x = data(decoder, kind, 4, *shape)
    z = torch.randn(5, 4, WIDTH)

    def program():
        with pyro.plate("particles", 5, dim=-2), pyro.plate("data", 4, dim=-1):
            return pyro.sample("x", decoder(z), obs=x)

    trace = poutine.trace(program).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (5, 4)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"][2, 3], decoder(z[2, 3]).log_prob(x[3]))


@table
def test_the_mean_is_the_samples_average(make, shape, kind):
    torch.manual_seed(0)
    decoder = make()
    distribution = decoder(torch.randn(WIDTH))
    draws = distribution.sample((4000,))
    error = draws.std(0) / 4000**0.5
    tolerance = 4.5 * error + 1e-4
    if decoder.__class__ is decoders.LogisticMixture:  # exact for the first channel only
        tolerance[1:] += 6
    assert ((draws.mean(0) - distribution.mean).abs() < tolerance).all()


@table
def test_every_parameter_has_a_gradient_and_all_survive_a_copy_and_a_round_trip(make, shape, kind):
    decoder = make()
    z, x = torch.randn(6, WIDTH), data(decoder, kind, 6, *shape)
    expected = decoder(z).log_prob(x)
    expected.sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
    other = make()
    other.load_state_dict(decoder.state_dict())
    torch.testing.assert_close(other(z).log_prob(x), expected)
    torch.testing.assert_close(copy.deepcopy(decoder)(z).log_prob(x), expected)
    double = decoder.double()(z.double())
    assert double.sample().dtype == torch.float64
    torch.testing.assert_close(double.log_prob(x.double()), expected.double(), rtol=1e-3, atol=1e-3)


@table
def test_decoders_take_a_label_too(make, shape, kind):
    assert make(WIDTH + 2)(torch.randn(5, 4, WIDTH), torch.randn(4, 2)).batch_shape == (5, 4)


LEVEL_DECODERS = {
    "categorical": lambda shape, n: behind(decoders.Categorical, shape, shaping={"num_levels": n}),
    "logistic": lambda shape, n: behind(decoders.DiscretizedLogistic, shape, num_levels=n),
    "logistic mixture": lambda shape, n: behind(decoders.LogisticMixture, shape, shape[0], num_levels=n),
}


@pytest.mark.parametrize("name", LEVEL_DECODERS)
@pytest.mark.parametrize(("shape", "num_levels"), [((1, 1, 1), 256), ((3, 1, 1), 6), ((1, 2, 1), 16)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_probabilities_of_all_data_sum_to_one(name, shape, num_levels, dtype):
    torch.manual_seed(0)
    make, _ = LEVEL_DECODERS[name](shape, num_levels)
    distribution = make().double()(3 * torch.randn(WIDTH, dtype=torch.float64))
    levels = torch.arange(num_levels, dtype=dtype)
    every = torch.cartesian_prod(*[levels] * math.prod(shape)).reshape(-1, *shape)
    torch.testing.assert_close(distribution.log_prob(every).logsumexp(0).item(), 0.0, rtol=0, atol=1e-6)


def logistic(loc, log_scale, num_levels=256):
    return distributions.DiscretizedLogistic(torch.as_tensor(loc), torch.as_tensor(log_scale), num_levels)


@pytest.mark.parametrize("loc", [-8.0, -1.0, 0.0, 0.31, 1.0, 3.0])
@pytest.mark.parametrize("log_scale", [-7.0, -3.0, 0.0, 5.0])
def test_a_discretized_logistic_sums_to_one_and_is_the_difference_of_distribution_functions(loc, log_scale):
    levels = torch.arange(256)
    single = logistic(loc, log_scale).log_prob(levels)
    assert single.isfinite().all()
    assert abs(single.double().exp().sum() - 1) < 1e-4
    precise = logistic(torch.tensor(loc, dtype=torch.float64), torch.tensor(log_scale, dtype=torch.float64))
    exact = precise.log_prob(levels)
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-3)
    assert abs(exact.exp().sum() - 1) < 1e-12
    edge = (2 * levels[:-1].double() + 1) / 255 - 1
    cdf = torch.cat([torch.zeros(1), ((edge - loc) / math.exp(log_scale)).sigmoid(), torch.ones(1)])
    torch.testing.assert_close(exact.exp(), cdf.diff(), rtol=1e-6, atol=1e-12)
    mean = (exact.exp() * levels).sum()
    torch.testing.assert_close(precise.mean, mean)


def test_a_logistic_mixtures_joint_over_three_channels_sums_to_one():
    torch.manual_seed(0)
    k, c, num_levels = 3, 3, 5
    parts = [torch.randn(k, 1, 1), torch.randn(k, c, 1, 1), 0.3 * torch.randn(k, c, 1, 1) - 1, torch.randn(k, 3, 1, 1)]
    mixture = distributions.LogisticMixture(*(p.double() for p in parts), num_levels=num_levels)
    levels = torch.arange(num_levels)
    joint = torch.cartesian_prod(levels, levels, levels).reshape(-1, 3, 1, 1)
    probability = mixture.log_prob(joint).exp()
    torch.testing.assert_close(probability.sum(), torch.ones((), dtype=torch.float64))
    draws = mixture.sample((40_000,)).flatten(1).long()
    index = (draws * torch.tensor([num_levels**2, num_levels, 1])).sum(-1)
    frequency = torch.bincount(index, minlength=num_levels**3) / len(draws)
    error = (frequency - probability).abs() / (probability * (1 - probability) / len(draws)).sqrt().clamp(min=1e-4)
    assert error.max() < 5
    # the channels are dependent: the joint is not the product of its marginals
    cube = probability.reshape(num_levels, num_levels, num_levels)
    product = cube.sum((1, 2))[:, None] * cube.sum((0, 2))[None]
    assert (cube.sum(2) - product).abs().max() > 1e-3


def test_a_logistic_mixture_of_one_component_and_channel_is_a_discretized_logistic():
    loc, log_scale = torch.randn(4, 5), 0.3 * torch.randn(4, 5) - 2
    mixture = distributions.LogisticMixture(
        torch.zeros(1, 4, 5), loc.expand(1, 1, 4, 5), log_scale.expand(1, 1, 4, 5), torch.zeros(1, 0, 4, 5)
    )
    x = torch.randint(256, (7, 1, 4, 5))
    torch.testing.assert_close(mixture.log_prob(x), logistic(loc, log_scale).log_prob(x[:, 0]).sum((1, 2)))


def test_levels_outside_the_range_are_refused():
    for decoder in (DECODERS["logistic"][0](), DECODERS["logistic mixture"][0](), DECODERS["categorical"][0]()):
        with pytest.raises(ValueError):
            decoder(torch.randn(2, WIDTH)).log_prob(torch.full((2, 3, 4, 4), 256.0))
        with pytest.raises(ValueError):
            decoder(torch.randn(2, WIDTH)).log_prob(torch.full((2, 3, 4, 4), 0.5))


def test_grey_values_are_refused_by_a_bernoulli():
    with pytest.raises(ValueError):
        DECODERS["bernoulli"][0]()(torch.randn(2, WIDTH)).log_prob(torch.full((2, 1, 4, 4), 0.3))


@pytest.mark.parametrize("logit", [-60.0, -15.0, -1.0, -0.021, -0.019, 0.0, 1e-3, 0.019, 0.021, 2.0, 15.0, 60.0])
def test_a_continuous_bernoulli_integrates_to_one_for_any_logit_and_draws_what_it_scores(logit):
    torch.manual_seed(0)
    distribution = distributions.ContinuousBernoulli(torch.tensor(logit, requires_grad=True))
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    density = distribution.log_prob(x.float()).double().exp()
    torch.testing.assert_close(torch.trapezoid(density, x).detach(), torch.ones(()).double(), rtol=1e-4, atol=0)
    mean = torch.trapezoid(density * x, x).detach()
    torch.testing.assert_close(distribution.mean.double(), mean, rtol=1e-4, atol=1e-5)
    draws = distribution.rsample((20_000,))
    assert ((draws >= 0) & (draws <= 1)).all()
    assert (draws.mean() - mean).abs() < 4.5 * draws.std() / 20_000**0.5
    (gradient,) = torch.autograd.grad(draws.mean() + distribution.mean, distribution.logits)
    assert gradient.isfinite() and gradient > 0


def test_normal_scales_are_fixed_learned_or_predicted():
    z, x = torch.randn(5, WIDTH), torch.randn(5, 1, 4, 4)
    fixed = DECODERS["normal, fixed"][0]()
    expected = TorchNormal(fixed.net(z), 0.5).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(fixed(z).log_prob(x), expected)
    learned = DECODERS["normal, learned"][0]()
    assert "log_scale" in dict(learned.named_parameters()) and "log_scale" not in dict(fixed.named_parameters())
    net = nn.MLP(WIDTH, (2, 4, 4))
    output = net(z)
    expected = TorchNormal(output[:, :1], output[:, 1:].exp()).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(decoders.Normal(net)(z).log_prob(x), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: decoders.Normal(nn.MLP(3, 5)), r"2 times as many channels.*\(5,\)"),
        (lambda: decoders.Normal(nn.MLP(3, 4), 0.0), "scale must be a positive"),
        (lambda: decoders.Normal(nn.MLP(3, 4), learn_scale=True), "starts somewhere"),
        (lambda: decoders.Normal(torch.nn.Linear(3, 5))(torch.zeros(2, 3)), r"shape \(2, 5\)"),
        (lambda: decoders.Categorical(nn.MLP(3, (255, 4, 4))), r"256.*\(255, 4, 4\)"),
        (lambda: decoders.Categorical(torch.nn.Linear(3, 5))(torch.zeros(2, 3)), r"shape \(2, 5\)"),
        (lambda: decoders.DiscretizedLogistic(nn.MLP(3, (3, 4, 4))), r"\(3, 4, 4\)"),
        (lambda: decoders.LogisticMixture(nn.MLP(3, (99, 4, 4)), 3), r"\(100, height, width\).*\(99, 4, 4\)"),
        (lambda: decoders.LogisticMixture(torch.nn.Linear(3, 5), 3)(torch.zeros(2, 3)), "100 channels"),
        (lambda: decoders.LogisticMixture.outputs_shape(784), r"images \(C, H, W\).*784"),
    ],
)
def test_a_network_or_a_scale_that_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bits_per_dim_of_the_uniform_distribution_is_eight():
    log_prob = (
        distributions.CategoricalLevels(logits=torch.zeros(3, 8, 8, 256)).to_event(3).log_prob(torch.zeros(3, 8, 8))
    )
    assert abs(decoders.bits_per_dim(log_prob, (3, 8, 8)).item() - 8) < 1e-4


def test_relaxed_draws_at_a_low_temperature_have_a_finite_density():
    torch.manual_seed(0)
    relaxed = distributions.RelaxedOneHot(torch.tensor(0.02), logits=3 * torch.randn(50, 10, requires_grad=True))
    z = relaxed.rsample((100,))
    assert (z > 0).all() and relaxed.expand((100, 50)).log_prob(z).isfinite().all()


@pytest.mark.parametrize("kind", ["logistic", "logistic mixture"])
def test_one_level_is_no_variable(kind):
    with pytest.raises(ValueError, match=r"num_levels must be at least 2 \(binary data\), got 1"):
        LEVEL_DECODERS[kind]((1, 2, 2), 1)[0]()


def test_a_learned_scale_is_the_same_frozen_and_starts_where_it_is_said_to():
    decoder = decoders.Normal(nn.MLP(1, 4), 0.01, learn_scale=True)
    decoder.log_scale.data.fill_(-7.0)  # where a step may lead it
    z = torch.zeros(1, 1)
    free = decoder(z).stddev
    assert torch.equal(decoder.requires_grad_(False)(z).stddev, free) and torch.allclose(
        free, torch.tensor(math.exp(-5))
    )
    with pytest.raises(ValueError, match=r"scale=0\.001 has log σ = -6\.91, outside log_scale_range=\(-5\.0, 10\.0\)"):
        decoders.Normal(nn.MLP(1, 4), 1e-3, learn_scale=True)
    wider = decoders.Normal(nn.MLP(1, 4), 1e-3, learn_scale=True, log_scale_range=(-8.0, 1.0))
    assert torch.allclose(wider(z).stddev, torch.tensor(1e-3))
    assert torch.allclose(decoders.Normal(nn.MLP(1, 4), 1e-3)(z).stddev, torch.tensor(1e-3)), "one that is given"
