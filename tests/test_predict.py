"""Samples, codes and reconstructions of programs of a user's own: means where there are any, and the layout of data."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.distributions import marginal
from ppgen.inference import bdmc, decode, denoise, encode, impute, reconstruct, sample
from ppgen.models import Custom
from ppgen.pair import data_plate

LOCS = torch.tensor([-5.0, 0.0, 5.0])


def pair_of(decoder, guide=lambda x: dist.Normal(x, 1.0), prior=dist.Normal(0.0, 1.0)):
    """A latent, and what is observed of it."""

    def model(x=None):
        with data_plate(x):
            return pyro.sample("x", decoder(pyro.sample("z", prior)), obs=x)

    def propose(x):
        with data_plate(x):
            pyro.sample("z", guide(x.float()))

    return Custom(model, propose)


def classes(z):
    """The class 2, all but surely."""
    return dist.Categorical(logits=torch.tensor([0.0, 0.0, 30.0]).expand(*z.shape, 3))


def nearest(x):
    return dist.Categorical(logits=-10 * (x.unsqueeze(-1) - LOCS).square())


def test_what_has_no_mean_is_drawn():
    x = torch.tensor([2, 2, 2])
    for pair in (pair_of(classes), pair_of(lambda z: dist.Independent(classes(z), 0))):
        for found in (decode(pair, torch.zeros(3)), sample(pair, 3, mean=True), reconstruct(pair, x)):
            assert torch.equal(found, x)
    pair = pair_of(lambda z: dist.Normal(LOCS[z], 0.1), nearest, dist.Categorical(torch.ones(3)))
    assert torch.equal(encode(pair, LOCS), torch.tensor([0, 1, 2]))
    assert torch.equal(reconstruct(pair, LOCS), LOCS)  # with the mean of x, which there is
    for heavy in (dist.Cauchy, lambda loc, scale: dist.StudentT(0.5, loc, scale)):
        assert decode(pair_of(lambda z, heavy=heavy: heavy(z, 1.0)), torch.zeros(50)).isfinite().all()


def test_the_mean_of_a_network_that_has_diverged_stays_nan():
    for decoder in (
        lambda z: dist.Normal(z + math.nan, 1.0),
        lambda z: dist.Normal(torch.where(z > 0, math.nan, z), 1.0),
        lambda z: dist.Cauchy(z * math.nan, 1.0),
    ):
        with pyro.validation_enabled(False):
            assert decode(pair_of(decoder), torch.ones(3)).isnan().all()


def test_no_average_is_made_of_what_has_no_mean():
    def model(x, mask=None):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", marginal(classes(z), mask), obs=x)

    def guide(x, mask=None):
        with data_plate(x):
            pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))

    pair, x, mask = Custom(model, guide), torch.tensor([0, 1, 1]), torch.tensor([True, False, True])
    with pytest.raises(ValueError, match=r"Categorical.*no mean in closed form.*mean=False"):
        impute(pair, x, mask=mask, num_samples=5)
    with pytest.raises(ValueError, match="no mean in closed form"):
        denoise(pair, x, num_samples=5)
    assert torch.equal(impute(pair, x, mask=mask, mean=False, num_samples=5), torch.tensor([0, 2, 1]))


def in_plates(x=None):
    """A latent a datum, seen in two plates inside the data's, each time as a pair of numbers."""
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("few", 3, dim=-2), pyro.plate("more", 4, dim=-3):
            place = torch.arange(24.0).reshape(4, 3, 1, 2)
            loc = z[..., None, None, :, None] + place
            return pyro.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=None if x is None else x.movedim(0, 2))


def test_rows_come_first_whatever_plates_stand_inside_the_datas():
    pair = Custom(in_plates, lambda x: None)
    z = torch.tensor([0.0, 100.0, 200.0, 300.0, 400.0])
    expected = z[:, None, None, None] + torch.arange(24.0).reshape(4, 3, 2)
    assert torch.allclose(decode(pair, z), expected)
    assert torch.allclose(decode(pair, z, mean=False), expected, atol=1)
    for found in (sample(pair, 5), sample(pair, 5, mean=True)):
        assert found.shape == (5, 4, 3, 2)
        assert ((found - expected[0]).flatten(1).std(1) < 0.5).all()  # each row has one latent


def latent_by_latent(event, shifted):
    """Three latents in a plate inside the data's, scalars or vectors, and perhaps one latent of the whole datum."""

    def model(x=None):
        with data_plate(x):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0)) if shifted else 0.0
            with pyro.plate("inner", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(event), 1.0).to_event(len(event)))
                loc = z.sum(-1) if event else z
                return pyro.sample("x", dist.Normal(loc + shift, 0.1), obs=None if x is None else x.T)

    def guide(x):
        with data_plate(x):
            if shifted:
                pyro.sample("shift", dist.Normal(0.0, 1.0))
            with pyro.plate("inner", 3, dim=-2):
                loc = x.T[..., None].expand(3, len(x), *event) / 2 if event else x.T
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(len(event)))

    return Custom(model, guide)


@pytest.mark.parametrize("event", [(), (2,)], ids=["scalars", "vectors"])
@pytest.mark.parametrize("shifted", [False, True], ids=["a tensor", "a dictionary"])
@pytest.mark.parametrize("n", [5, 3, 1])
def test_what_encode_gives_is_decoded_where_plates_stand_inside_the_datas(shifted, event, n):
    pair, x = latent_by_latent(event, shifted), torch.randn(n, 3)
    z = encode(pair, x)
    assert (z["z"] if shifted else z).shape == (3, n, *event)
    assert torch.allclose(decode(pair, z), x) and torch.allclose(reconstruct(pair, x), x)
    assert torch.equal(decode(pair, z, mean=False, seed=0), decode(pair, z, mean=False, seed=0))
    if shifted:
        assert torch.allclose(decode(pair, dict(reversed(z.items()))), x)  # in whatever order


def test_latents_with_axes_that_the_model_does_not_have_are_refused():
    pair = pair_of(lambda z: dist.Normal(z, 0.1))
    for name in ("z", ""):
        z = torch.zeros(4, 3)
        with pytest.raises(ValueError, match=r"latent z was given with shape \(4, 3\), and has 0 axes in a datum"):
            decode(pair, {name: z} if name else z)


def state_space(late=False):
    """A pair that calls its latent x and its data y, of the form y = 100 + x; a latent of no use may come last."""

    def model(y=None):
        with data_plate(y):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(100 + x, 0.1), obs=y)
            if late:
                pyro.sample("late", dist.Normal(0.0, 1.0))

    def guide(y):
        with data_plate(y):
            pyro.sample("x", dist.Normal(y - 100, 0.1))
            if late:
                pyro.sample("late", dist.Normal(0.0, 1.0))

    return Custom(model, guide)


@pytest.mark.parametrize("late", [False, True])
def test_the_observation_is_what_the_model_observes_whatever_its_name(late):
    pair, y = state_space(late), torch.tensor([99.0, 100.0, 101.0])
    assert (sample(pair, 50, seed=0) - 100).abs().max() < 5
    assert torch.allclose(reconstruct(pair, y), y)
    latents = encode(pair, y)
    assert torch.allclose(decode(pair, latents), y)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    sample(pair, 5, seed=3)
    assert torch.equal(torch.rand(3), expected), "which is found out without a draw that counts"
    if not late:
        gap = bdmc(pair, 20, num_chains=8, num_temperatures=20)
        assert abs(gap.lower.mean() - dist.Normal(100.0, 1.01**0.5).entropy().neg()) < 1


def test_one_tensor_is_no_value_of_several_latents():
    """Whatever they are called."""

    def model(y=None):
        with data_plate(y):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(x + w.sum(-1), 0.1), obs=y)

    pair = Custom(model, lambda y: None)
    for z in (torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 2, 2)):
        with pytest.raises(ValueError, match=r"latents \['x', 'w'\]: give decode a dictionary"):
            decode(pair, z)
    assert decode(pair, {"x": torch.ones(3), "w": torch.ones(3, 2)}).tolist() == [3.0] * 3


def test_several_observations_are_refused():
    def model(x=None):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for i in range(3):
                pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=None if x is None else x[:, i])

    def one_by_one(x=None):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for i in range(3):
                pyro.sample(f"x{i}", dist.Normal(z + i, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"observes its data at 3 sites, \['x0', 'x1', 'x2'\]"):
        sample(Custom(one_by_one, lambda x: None), 5)
    with pytest.raises(ValueError, match=r"takes no draw of one of its sites for its data, \['z', 'x0', 'x1', 'x2'\]"):
        sample(Custom(model, lambda x: None), 5)


def test_draws_without_a_seed_are_others_at_each_call():
    pair = pair_of(lambda z: dist.Normal(z, 1.0))
    x = torch.randn(5)
    calls = [
        lambda **seed: sample(pair, 5, **seed),
        lambda **seed: encode(pair, x, mean=False, **seed),
        lambda **seed: decode(pair, x, mean=False, **seed),
        lambda **seed: reconstruct(pair, x, mean=False, **seed),
    ]
    for call in calls:
        torch.manual_seed(0)
        first, second = call(), call()
        assert not torch.equal(first, second)
        torch.manual_seed(0)
        assert torch.equal(call(), first)
        state = torch.get_rng_state()
        assert torch.equal(call(seed=3), call(seed=3)) and torch.equal(torch.get_rng_state(), state)


def test_a_reconstruction_draws_the_latent_and_the_observation_apart():
    """Of one seed: noise in common would add up."""

    def model(x=None):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    pair = Custom(model, guide)
    drawn = reconstruct(pair, torch.zeros(20_000), mean=False, seed=0)
    assert drawn.var().item() == pytest.approx(1.5, rel=0.05)
    x = sample(pair, 20_000, seed=0)
    error = reconstruct(pair, x, mean=False, seed=0) - x / 2
    assert torch.corrcoef(torch.stack([error, x]))[0, 1].abs() < 0.05


@pytest.mark.parametrize("last", [True, False])
def test_a_factor_is_neither_observation_nor_latent(last):
    def model(x=None):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if not last:
                pyro.factor("f", -0.1 * z**2)
            pyro.sample("seen", dist.Normal(z, 1.0), obs=x)
            if last:
                pyro.factor("f", -0.1 * z**2)

    def guide(x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    pair, x = Custom(model, guide), torch.tensor([1.0, 4.0])
    assert sample(pair, 4).shape == (4,)
    assert torch.allclose(reconstruct(pair, x), x / 2)
