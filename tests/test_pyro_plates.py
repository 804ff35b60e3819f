"""Which plate is the data's, and what is scaled to all of them: wrong guesses would be wrong numbers in silence."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal

from ppgen.inference import ais, elbo, encode, fit, iwae, log_likelihood, log_weights
from ppgen.models import Custom

QUIET = {"progress": False, "seed": 0}


def mean_of(plate):
    """A shared mean with a strong prior; the plate of the data is opened as asked."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 0.05))
        with plate(x):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    return model


def scaled_by_hand(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 0.05))
    with poutine.scale(scale=1000 / len(x)), pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def test_a_batch_that_would_pass_for_all_data_is_refused_and_a_scaled_one_is_right():
    torch.manual_seed(0)
    x = 2.0 + torch.randn(1000)
    exact = (x.sum() / (1000 + 1 / 0.05**2)).item()
    one = mean_of(lambda x: pyro.plate("data", len(x)))
    for guide in (AutoDelta(one), AutoNormal(one)):
        with pytest.raises(ValueError, match=r"\['mu'\] are shared by all data.*100 rows.*subsample_size=len\(x\)"):
            fit(Custom(one, guide), x, epochs=1, **QUIET)
    scaled = mean_of(lambda x: pyro.plate("data", 1000, subsample_size=len(x)))
    for model, batch_size, epochs in ((scaled, 100, 30), (scaled_by_hand, 100, 30), (one, 1000, 300)):
        pair = Custom(model, AutoDelta(model))
        adam = partial(torch.optim.Adam, lr=0.02)
        fit(pair, x, epochs=epochs, batch_size=batch_size, optimizer=adam, **QUIET)
        assert encode(pair, x).item() == pytest.approx(exact, abs=0.05)  # as if a batch were all, it would be 0.41


def test_components_beside_the_data_are_shared_in_mini_batches_too():
    def model(x):
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    pair = Custom(model, AutoDelta(poutine.block(model, expose=["locs"])))
    with pytest.raises(ValueError, match=r"\['locs'\] are shared by all data"):
        fit(pair, torch.randn(60), epochs=1, batch_size=20, **QUIET)


def test_a_latent_in_a_plate_of_another_name_is_each_datums_own():
    def model(x):
        with pyro.plate("latents", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("latents", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))

    pair, x = Custom(model, guide), torch.randn(60)
    fit(pair, x, epochs=1, batch_size=20, **QUIET)
    pair.sites["slope"].data.fill_(0.5)
    values = log_likelihood(pair, x, num_samples=3).values.float()
    assert torch.allclose(values, dist.Normal(0.0, 2**0.5).log_prob(x), atol=1e-5)


@pytest.mark.parametrize("rows", [5, 100, 250])
def test_a_data_plate_left_of_one_as_long_as_the_batch_is_found(rows):
    """As many steps as rows, or as a block of them has: a run of one row less tells the two apart."""
    steps = min(rows, 100)

    def model(x):
        with pyro.plate("time", steps, dim=-1), pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("time", steps, dim=-1), pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(slope * x, 0.7))

    pair, x = Custom(model, guide), torch.randn(rows, steps)
    for ask in (
        lambda: log_likelihood(pair, x, num_samples=3),
        lambda: iwae(3)(pair.model, pair.guide, x[:steps]),
        lambda: elbo()(pair.model, pair.guide, x[:steps]),
    ):
        with pytest.raises(ValueError, match=r"'data' has a member for each row .* left of 'time'"):
            ask()


def test_components_as_many_as_the_data_are_not_the_data():
    def model(x):
        with pyro.plate("components", 3):
            locs = pyro.sample("locs", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(locs.mean(-1, keepdim=True), 1.0), obs=x)

    def guide(x):
        with pyro.plate("components", 3):
            pyro.sample("locs", dist.Normal(0.0, 1.0))

    pair = Custom(model, guide)
    for ask in (
        lambda: log_likelihood(pair, torch.randn(3), num_samples=3),
        lambda: log_weights(pair, torch.randn(3), num_samples=3),
        lambda: iwae(3)(model, guide, torch.randn(3)),
    ):
        with pytest.raises(ValueError, match=r"differ in length.*'locs': 3.*shared by all data"):
            ask()


def local(length):
    def model(x):
        with pyro.plate("data", length(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", length(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.7))

    return Custom(model, guide)


def test_a_plate_of_a_fixed_length_takes_so_many_rows_and_no_others():
    pair = local(lambda x: 100)
    assert log_likelihood(pair, torch.randn(200), num_samples=3).values.shape == (200,)
    for rows in (201, 1):  # whose last block is one row, which would be broadcast
        with pytest.raises(ValueError, match="axis −1 has 100 members, and the batch has 1 rows"):
            log_likelihood(pair, torch.randn(rows), num_samples=3)
    with pytest.raises(ValueError, match="axis −1 has 100 members, and the batch has 1 rows"):
        ais(pair, torch.randn(1), num_chains=3, num_temperatures=3)
    with pytest.raises(ValueError, match=r"The last batch of an epoch has 1 row .*100 members"):
        fit(pair, torch.randn(201), epochs=1, **QUIET)


def test_a_single_row_that_is_squeezed_is_no_batch_of_pixels():
    def model(x):
        x = x.squeeze()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z if x.dim() == 1 else z[..., None].expand(*z.shape, 8)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(x.dim() - 1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x.squeeze())):
            pyro.sample("z", dist.Normal(loc, 1.0))

    pair, x = Custom(model, guide), torch.randn(101, 1, 8)
    with pytest.raises(ValueError, match=r"The last batch of an epoch has 1 row .*8 members"):
        fit(pair, x, epochs=1, **QUIET)
    with pytest.raises(ValueError, match="axis −1 has 8 members, and the batch has 1 rows"):
        log_likelihood(pair, x, num_samples=3)
    assert log_likelihood(pair, x[:100], num_samples=3).values.shape == (100,)


def test_data_that_come_time_first_are_not_taken_for_rows():
    def model(x):
        with pyro.plate("data", x.shape[1]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x.T)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", x.shape[1]):
            pyro.sample("z", dist.Normal(loc, 1.0))

    pair, x = Custom(model, guide), torch.randn(150, 20)
    with pytest.raises(ValueError, match="axis −1 has 20 members, and the batch has 100 rows"):
        log_likelihood(pair, x, num_samples=3)
    with pytest.raises(ValueError, match=r"data cannot be given to this pair: .* 20 members"):
        fit(pair, x, epochs=1, **QUIET)
    loader = torch.utils.data.DataLoader(
        torch.randn(40, 150), batch_size=20, collate_fn=lambda rows: torch.stack(rows, 1)
    )
    assert fit(pair, loader, epochs=1, **QUIET).loss[0] > 0  # which may give what the program takes


def test_a_part_of_a_sequence_that_is_gone_through_in_turn_has_no_weight():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for t in pyro.plate("time", 20, subsample_size=5):
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.2))

    pair, x = Custom(model, guide), torch.randn(6, 20)
    for ask in (
        lambda: iwae(5)(model, guide, x),
        lambda: log_weights(pair, x, num_samples=3),
        lambda: ais(pair, x, num_chains=3, num_temperatures=3),
        lambda: log_likelihood(pair, x, num_samples=3),
    ):
        with pytest.raises(ValueError, match="'time'"):
            ask()
    assert elbo()(model, guide, x).isfinite()  # which scales the part
