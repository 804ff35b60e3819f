"""Estimates of log p(x): exact cases, k-hat against ArviZ, independence of how the work is divided, bad input."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppgen.inference import log_likelihood, log_weights
from ppgen.inference.evaluation.likelihood import CELL_SAMPLES
from ppgen.inference.evaluation.psis import TailAccumulator
from ppgen.inference.programs.seeds import derived_seed
from ppgen.models import Custom
from ppgen.pair import data_plate

try:
    from arviz import psislw  # 0.23
except ImportError:  # 1.x
    psislw = None


def model(x):
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(shift=0.0, scale=math.sqrt(0.5)):
    def propose(x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(x / 2 + shift, scale))

    return propose


def exact(x):
    return dist.Normal(0.0, math.sqrt(2)).log_prob(x.double())


@pytest.mark.parametrize("num_samples", [2, 30])
def test_an_exact_guide_is_exact_and_known_to_be(num_samples):
    x = torch.randn(120)
    estimate = log_likelihood(Custom(model, guide()), x, num_samples=num_samples)
    assert (estimate.values - exact(x)).abs().max() < 1e-5
    assert (estimate.k_hat == -math.inf).all() and estimate.reliable.all()
    assert (estimate.mc_standard_error == 0).all()
    assert not estimate.is_lower_bound and str(estimate).startswith("log-likelihood")


def test_the_stated_error_covers_the_truth():
    x = torch.randn(400)
    estimate = log_likelihood(Custom(model, guide(0.2, 0.9)), x, num_samples=1000)
    z = (estimate.values - exact(x)) / estimate.mc_standard_error
    assert estimate.reliable.double().mean() > 0.99
    assert 0.9 < (z.abs() < 2).double().mean() < 0.99
    assert estimate.data_standard_error == pytest.approx(estimate.values.std().item() / 20)
    assert (estimate.elbo <= estimate.values).all()
    assert (estimate.ess <= 1000).all()


def test_a_narrow_guide_is_found_out():
    estimate = log_likelihood(Custom(model, guide(0.0, 0.15)), torch.randn(50), num_samples=1000)
    assert estimate.reliable_fraction < 0.1 and estimate.k_hat.median() > 0.7
    assert str(estimate).startswith("lower bound of the log-likelihood")


def mixture(x):
    with data_plate(x):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(3 * k, 1.0), obs=x)


def of_mixture(x):
    return torch.stack([dist.Normal(0.0, 1.0).log_prob(x), dist.Normal(3.0, 1.0).log_prob(x)]) + math.log(0.5)


def proposed_with(logits):
    def propose(x):
        with data_plate(x):
            pyro.sample("k", dist.Bernoulli(logits=logits(x)))

    return propose


@pytest.mark.parametrize("num_samples", [20, 1000])
def test_a_discrete_guide_that_always_draws_one_value_is_not_taken_for_exact(num_samples):
    x = torch.tensor([3.0, 0.0, 1.5])
    saturated = log_likelihood(Custom(mixture, proposed_with(lambda x: 0 * x - 16)), x, num_samples=num_samples)
    assert (saturated.values - of_mixture(x)[0]).abs().max() < 1e-4  # one term of the two
    assert not saturated.reliable.any() and saturated.is_lower_bound and (saturated.k_hat != -math.inf).all()


@pytest.mark.parametrize("num_samples", [20, 1000])
def test_an_exact_discrete_guide_is_known_to_be_where_some_of_its_draws_differ(num_samples):
    exact_guide = proposed_with(lambda x: of_mixture(x).diff(dim=0)[0])
    x = torch.tensor([-9.0, 1.5, 1.0, 2.0, 12.0])  # the first and the last leave one value only
    estimate = log_likelihood(Custom(mixture, exact_guide), x, num_samples=num_samples)
    assert (estimate.values - of_mixture(x).logsumexp(0)).abs().max() < 1e-5
    assert estimate.reliable.all() and (estimate.k_hat == -math.inf).all()
    assert not log_likelihood(Custom(mixture, exact_guide), x[:1], num_samples=num_samples).reliable.any()


def test_draws_that_do_not_differ_in_a_coordinate_or_within_rounding_show_nothing():
    """A unit that the model ignores varies for nothing; a scale below rounding is a point."""

    def two(x):
        with data_plate(x):
            k = pyro.sample("k", dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(3 * k[..., 0], 1.0), obs=x)

    def saturated(x):
        with data_plate(x):
            pyro.sample("k", dist.Bernoulli(logits=torch.tensor([-16.0, 0.0])).to_event(1).expand(x.shape))

    x = torch.tensor([3.0, 0.5])
    for pair in (Custom(two, saturated), Custom(model, guide(scale=1e-15))):
        estimate = log_likelihood(pair, x, num_samples=1000)
        assert not estimate.reliable.any() and (estimate.k_hat == math.inf).all()


def test_few_samples_are_never_called_reliable():
    estimate = log_likelihood(Custom(model, guide(0.5)), torch.randn(10), num_samples=24)
    assert estimate.k_hat.isnan().all() and not estimate.reliable.any()
    single = log_likelihood(Custom(model, guide()), torch.randn(10), num_samples=1)
    assert not single.reliable.any()  # one draw shows no spread, exact or not


def test_an_explicit_density_is_exact_at_one_sample():
    def density(x):
        with data_plate(x):
            pyro.sample("x", dist.Normal(0.0, math.sqrt(2)), obs=x)

    x = torch.randn(10)
    estimate = log_likelihood(Custom(density, lambda x: None), x, num_samples=1)
    assert torch.allclose(estimate.values, exact(x)) and estimate.reliable.all()


def test_blocks_do_not_depend_on_what_else_is_evaluated():
    x, pair = torch.randn(250), Custom(model, guide(0.3))
    whole, part = (log_likelihood(pair, data, num_samples=300) for data in (x, x[:100]))
    assert torch.equal(whole.values[:100], part.values)
    assert torch.equal(whole.k_hat[:100], part.k_hat)
    again = log_likelihood(pair, x, num_samples=300, seed=1)
    assert not torch.equal(again.values, whole.values)


def test_streaming_equals_the_direct_computation():
    x, pair, num_samples = torch.randn(100), Custom(model, guide(0.4, 1.0)), 600
    cells = []
    for cell, start in enumerate(range(0, num_samples, CELL_SAMPLES)):
        torch.manual_seed(derived_seed(0, 0, cell))
        state = torch.get_rng_state()
        pair_weights = log_weights(pair, x, num_samples=min(CELL_SAMPLES, num_samples - start))
        torch.set_rng_state(state)
        cells.append(pair_weights)
    w = torch.cat(cells).double()
    assert w.shape == (num_samples, 100)
    estimate = log_likelihood(pair, x, num_samples=num_samples)
    assert torch.allclose(estimate.values, w.logsumexp(0) - math.log(num_samples), atol=1e-10)
    assert torch.allclose(estimate.elbo, w.mean(0), atol=1e-10)
    ess = (2 * w.logsumexp(0) - (2 * w).logsumexp(0)).exp()
    assert torch.allclose(estimate.ess, ess, rtol=1e-8)
    relative = (w - w.logsumexp(0) + math.log(num_samples)).exp()
    assert torch.allclose(estimate.mc_standard_error, relative.std(0) / math.sqrt(num_samples), rtol=1e-6)


@pytest.mark.skipif(psislw is None, reason="ArviZ 1.x has no psislw of this form")
@pytest.mark.parametrize("num_samples", [25, 100, 1000, 5000])
def test_k_hat_is_that_of_arviz(num_samples):
    generator = np.random.default_rng(0)
    heavy = np.log(generator.pareto(1.2, (num_samples, 5)) + 1)
    light = generator.normal(0, 0.5, (num_samples, 5))
    extreme = generator.normal(0, 30.0, (num_samples, 5)) - 700
    w = np.concatenate([heavy, light, extreme], 1)
    _, expected = psislw(w.T)
    tail = TailAccumulator(num_samples)
    for piece in torch.as_tensor(w).split(7):
        tail.add(piece)
    k_hat = tail.result().k_hat.numpy()
    finite = np.isfinite(expected) & np.isfinite(k_hat)
    assert finite[:10].all()
    assert np.abs(k_hat - expected)[finite].max() < 1e-8


class WithNoise(nn.Module):
    """A pair whose decoder drops out: train mode would show."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.shift = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.drop(z), 1.0), obs=x)

    def guide(self, x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(x / 2 + self.shift, math.sqrt(0.5)))


def test_the_pair_is_evaluated_in_eval_mode_and_given_back():
    pair, x = WithNoise().train(), torch.randn(20)
    pair.drop.eval()
    state = torch.get_rng_state()
    estimate = log_likelihood(pair, x, num_samples=30)
    assert torch.equal(torch.get_rng_state(), state)
    assert pair.training and not pair.drop.training and pair.shift.requires_grad
    assert not estimate.values.requires_grad
    assert (estimate.values - exact(x)).abs().max() < 1e-5
    pair.train()
    again = log_likelihood(pair, x, num_samples=30)
    assert torch.equal(again.values, estimate.values) and pair.drop.training


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (torch.tensor([0.0, math.nan]), "nan"),
        (torch.tensor([0.0, math.inf]), "inf"),
        (torch.zeros(0), "empty"),
        (np.array(["a", "b"]), "numbers"),
        ("abc", "torch tensor or a numpy array"),
        (torch.tensor(3.0), "single number"),
    ],
)
def test_bad_data_are_named(data, fact):
    with pytest.raises((ValueError, TypeError), match=fact):
        log_likelihood(Custom(model, guide()), data, num_samples=30)


@pytest.mark.parametrize("samples", [0, -1, 1.5, True])
def test_bad_numbers_of_samples_are_named(samples):
    with pytest.raises(ValueError, match=f"num_samples must be a positive whole number, got {samples}"):
        log_likelihood(Custom(model, guide()), torch.zeros(3), num_samples=samples)


def test_what_only_samples_has_no_likelihood():
    class Generator:
        def model(self, x=None):
            return torch.zeros(3)

    with pytest.raises(TypeError, match=r"Generator has no \.guide.*can only be sampled"):
        log_likelihood(Generator(), torch.zeros(3), num_samples=30)


def test_an_infinite_weight_is_named():
    def broken(x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("f", torch.where(x > 1, math.nan, 0.0) + 0 * z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pyro.validation_enabled(False), pytest.raises(ValueError, match="datum 2 are not finite"):
        log_likelihood(Custom(broken, guide()), torch.tensor([0.0, 0.5, 2.0]), num_samples=30)


def chosen(size, subsample_size):
    """A model and its exact guide, whose plate is given sizes and not its members."""

    def of(program):
        def run(x):
            with pyro.plate("data", size or len(x), subsample_size=subsample_size or len(x)) as index:
                program(x if size else x[index])

        return run

    return Custom(
        of(lambda x: pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)),
        of(lambda x: pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))),
    )


def test_a_plate_that_chooses_among_the_data_has_no_likelihood_of_them():
    x = torch.randn(40)
    with pytest.raises(ValueError, match=r"plate 'data' draws 10 of its 40 members.*without subsample_size"):
        log_likelihood(chosen(None, 10), x, num_samples=30)
    sized = log_likelihood(chosen(4000, None), x, num_samples=30)  # which only says how many data there are
    assert (sized.values - exact(x)).abs().max() < 1e-5


def test_a_plate_inside_that_chooses_is_refused_too():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("words", 20, subsample_size=5, dim=-2) as index:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T[index])

    with pytest.raises(ValueError, match=r"plate 'words' draws 5 of its 20 members.*some of them"):
        log_likelihood(Custom(model, guide_of_means), torch.randn(5, 20), num_samples=30)


def guide_of_means(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.mean(1), 0.5))
