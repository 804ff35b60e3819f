"""Where observed data may lie: in memory and from loaders, in every type of number, in training and evaluation."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from parts import small_vae
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn
from torch.utils.data import DataLoader

from ppgen import decoders
from ppgen.inference import SVI, elbo, fit, log_likelihood
from ppgen.models import Custom
from ppgen.pair import data_plate

LEVELS = torch.randint(0, 120, (30, 16), generator=torch.Generator().manual_seed(0))


def levels_vae():
    return small_vae(decoders.DiscretizedLogistic, decoders.DiscretizedLogistic.outputs_shape((16,)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int64])
def test_whole_numbers_of_any_type_are_levels(dtype):
    """256 levels: the bound of 255 would be −1 to int8, and torch compares no uint16."""
    x = LEVELS.to(dtype)
    pair, expected = levels_vae(), fit(levels_vae(), LEVELS, epochs=1, validation=LEVELS, seed=0, progress=False)
    history = fit(pair, x, epochs=1, validation=x, seed=0, progress=False)
    assert history.loss == expected.loss and history.validation == expected.validation
    loader = DataLoader(x, batch_size=100)
    history = fit(levels_vae(), loader, epochs=1, validation=loader, seed=0, progress=False)
    assert history.validation == pytest.approx(expected.validation, rel=1e-4)
    values = log_likelihood(pair, x, num_samples=3).values
    assert values.equal(log_likelihood(pair, LEVELS, num_samples=3).values)
    if torch.iinfo(dtype).min < 0:
        with pytest.raises(ValueError, match=r"datum 0 lies outside .* from -1 to 1"):
            log_likelihood(pair, torch.tensor([[-1, 1] * 8], dtype=dtype), num_samples=3)


BITS = torch.tensor([True, False, True, True, False, True])
COUNTS = torch.tensor([0, 1, 2, 3, 5, 100], dtype=torch.uint8)
DENSITIES = {
    "Geometric": (lambda z: dist.Geometric(logits=z), COUNTS),
    "Binomial": (lambda z: dist.Binomial(200, logits=z), COUNTS),
    "BetaBinomial": (lambda z: dist.BetaBinomial(z.exp(), 1.0, 200), COUNTS),
    "Categorical": (lambda z: dist.Categorical(logits=z.unsqueeze(-1) * torch.linspace(0, 1, 101)), COUNTS),
    "Normal": (lambda z: dist.Normal(z, 1.0), BITS),
    "Bernoulli": (lambda z: dist.Bernoulli(logits=z), BITS),
    "Bernoulli, bytes": (lambda z: dist.Bernoulli(logits=z), BITS.byte()),
    "Bernoulli, masked": (lambda z: dist.Bernoulli(logits=z).mask(BITS), BITS),
    "OneHotCategorical": (
        lambda z: dist.OneHotCategorical(logits=torch.stack([z, -z], -1)),
        torch.stack([BITS, ~BITS], -1),
    ),
}


@pytest.mark.parametrize("enumerated", [False, True])
@pytest.mark.parametrize("name", DENSITIES)
def test_bytes_and_booleans_are_scored_as_the_numbers_that_they_are(name, enumerated):
    """To a byte −1 is 255, and booleans have no arithmetic. The program has them as it was given them."""
    density, x = DENSITIES[name]
    size = nn.Linear(1, 1)
    seen = set()

    def model(x):
        with data_plate(x):
            if enumerated:
                k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
                z = (k - 0.5) * size.weight.exp().squeeze()
            else:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            seen.add(pyro.sample("x", density(z), obs=x).dtype)

    def guide(x):
        with data_plate(x):
            if not enumerated:
                pyro.sample("z", dist.Normal(torch.zeros(len(x)), size.weight.exp().squeeze()))

    def numbers(x):
        pair = Custom(model, guide, size=size)
        found = [log_likelihood(pair, x, num_samples=20).values]
        for loss in (elbo(), TraceEnum_ELBO() if enumerated else Trace_ELBO()):
            torch.manual_seed(0)
            found.append(SVI(pair, loss).loss(pair.model, pair.guide, x))
        return found

    ours = numbers(x)
    assert seen == {x.dtype}
    for a, b in zip(ours, numbers(x.float()), strict=True):
        assert torch.equal(a, b) and a.isfinite().all()


def test_a_pair_in_double_precision_has_it_for_bytes_too():
    vae = small_vae(decoders.Bernoulli, (16,)).double()
    x = LEVELS.byte() % 2
    values = log_likelihood(vae, x, num_samples=3).values
    assert torch.allclose(values, log_likelihood(vae, x.double(), num_samples=3).values, rtol=1e-13)


def test_small_numbers_are_within_a_large_range():
    """A bound of 299 would be 43 to uint8."""
    pair = small_vae(lambda net: decoders.Categorical(net, 300), decoders.Categorical.outputs_shape((16,), 300))
    assert np.isfinite(fit(pair, LEVELS.to(torch.uint8), epochs=1, seed=0, progress=False).loss[0])


def test_each_datum_may_have_a_range_of_its_own():
    """Binomial counts: a bound of the first batch says nothing of the next."""
    total = torch.arange(1.0, 201.0)
    x = (0.7 * total).floor()

    def model(x, total):
        with pyro.plate("data", len(total)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Binomial(total, logits=z), obs=x)

    def guide(x, total):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(total)):
            pyro.sample("z", dist.Normal(loc, 1.0).expand((len(total),)))

    pair = Custom(model, guide)
    fit(pair, (x, total), batch_size=50, epochs=1, seed=0, progress=False)
    assert log_likelihood(pair, x, total, num_samples=30).values.isfinite().all()
    x[3] = 5.0  # of 4
    with pytest.raises(ValueError, match="a value lies outside the support of the observed site 'x', Binomial on"):
        log_likelihood(pair, x, total, num_samples=30)


@pytest.mark.parametrize("validation", [True, False])
def test_no_datum_is_scored_where_its_density_is_none(validation):
    """Found before the work, and not only among the first data."""
    x = torch.ones(300, 16)
    x[250, 2] = 0.5
    pair = small_vae()
    with pyro.validation_enabled(validation), pytest.raises(ValueError, match=r"datum 250 lies outside .* Bernoulli"):
        log_likelihood(pair, x, num_samples=10)


def test_bounds_that_differ_by_coordinate_are_those_of_every_row():
    high = torch.tensor([1.0, 2.0, 3.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Uniform(0 * z.unsqueeze(-1), high).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).expand((len(x),)))

    pair, x = Custom(model, guide), torch.rand(200, 3) * high
    fit(pair, x, epochs=1, batch_size=50, seed=0, progress=False)
    x[150, 1] = 2.5
    for use in (lambda: fit(pair, x, epochs=1, batch_size=50), lambda: log_likelihood(pair, x, num_samples=30)):
        with pytest.raises(ValueError, match="datum 150 lies outside"):
            use()


@pytest.mark.parametrize("counts", [True, False])
def test_of_masked_sites_what_counts_lies_in_the_support(counts):
    """Padding does not; grey values do."""

    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=torch.tensor([True, counts])):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=torch.tensor([True, counts])):
            pyro.sample("z", dist.Normal(loc, 1.0).expand((len(x),)))

    pair, x = Custom(model, guide), torch.tensor([1.0, 0.5])
    for use in (lambda: fit(pair, x, epochs=1, progress=False), lambda: log_likelihood(pair, x, num_samples=30)):
        with pyro.validation_enabled(False):
            if counts:
                with pytest.raises(ValueError, match="a value lies outside the support of the observed site 'x'"):
                    use()
            else:
                use()
