"""Programs that run under a plate of particles and take one axis for another: found, and run otherwise or refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppgen.inference import elbo, iwae, latent_report, log_likelihood
from ppgen.inference.programs.structure import measure
from ppgen.models import Custom


def softmax_over_rows(start):
    """A model that takes what would be the data's axis for another, behind weights that begin so; and its guide."""

    def model(x):
        weight = pyro.param("weight", start)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(weight * torch.softmax(z, 1), 0.3).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, 1.0).to_event(1))

    return model, guide


W, LOCS = torch.tensor([[1.0, -1.0, 0.5], [2.0, 0.0, -1.0]]), torch.tensor([-3.0, 0.0, 3.0])


def topics(look, length=len, rows=False):
    """A mixture whose weights are a function of a latent, looked at in some way; summed out, or in the density."""

    def plate(x):
        return pyro.plate("data", length(x))

    def summed(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            k = pyro.sample("k", dist.Categorical(look(z, x)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(LOCS[k], 1.0), obs=x)

    def whole(x):
        with plate(x):
            probs = look(pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)), x)
            components = dist.Normal(LOCS.expand(probs.shape), 1.0)
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(probs), components), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.ones(6, 1)) if rows else torch.ones(())
        with plate(x):
            pyro.sample("z", dist.Normal(torch.zeros(2), scale).to_event(1))

    return Custom(summed, guide), Custom(whole, guide)


LOOKS = {
    "right": lambda z, x: torch.softmax(z @ W, -1),
    "the wrong axis": lambda z, x: torch.softmax(z @ W, 1),
    "a view": lambda z, x: torch.softmax(z.view(len(x), -1) @ W, -1),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_site_that_is_summed_out_stands_in_rows_too(look):
    """However the program takes particles, its estimate is the integral over z by a grid."""
    x = 3 * torch.randn(6)
    axis = torch.linspace(-6, 6, 121)
    z = torch.cartesian_prod(axis, axis)
    log_q = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + 2 * (axis[1] - axis[0]).log()
    log_p = torch.log_softmax(z @ W, -1)[:, None] + dist.Normal(LOCS, 1.0).log_prob(x[:, None])
    exact = (log_p.logsumexp(-1) + log_q[:, None]).logsumexp(0)
    for pair in topics(look):
        estimate = log_likelihood(pair, x, num_samples=2000)
        assert ((estimate.values - exact).abs() < 5 * estimate.mc_standard_error + 1e-3).all()
    torch.manual_seed(1)
    with torch.no_grad():
        for pair, right in zip(topics(look), topics(LOOKS["right"]), strict=True):
            found, expected = (elbo(num_particles=400)(p.model, p.guide, x).item() for p in (pair, right))
            assert found == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("fixed", [{"length": lambda x: 6}, {"rows": True}], ids=["a plate", "a parameter"])
def test_programs_that_take_one_draw_at_a_time_only_are_refused_more(fixed):
    """Where neither a plate of particles nor further rows will do, which no comparison with rows would show."""
    x = torch.randn(6)
    for wrong, right in zip(topics(LOOKS["the wrong axis"], **fixed), topics(LOOKS["right"], **fixed), strict=True):
        for ask in (lambda p: log_likelihood(p, x), lambda p: iwae(5)(p.model, p.guide, x)):
            with pytest.raises(ValueError, match=r"Several draws at once .* softmax\(z, -1\)"):
                ask(wrong)
        assert log_likelihood(right, x, num_samples=10).values.isfinite().all()
        torch.manual_seed(0)
        with torch.no_grad():
            losses = [elbo(num_particles=400)(p.model, p.guide, x).item() for p in (wrong, right)]
        assert losses[0] == pytest.approx(losses[1], abs=0.2)


def test_a_difference_that_is_small_at_the_start_is_found():
    """It may grow as training goes on, and the pair is looked at once."""
    assert not any(
        measure(p.model, p.guide, torch.randn(6)).vectorized
        for p in topics(lambda z, x: torch.softmax(0.03 * (z @ W), 1))
    )


@pytest.mark.parametrize("rows", [15, 16])
def test_a_fresh_batch_normalisation_does_not_hide_its_axis(rows):
    """With as many rows as it has features it takes either axis; in eval mode at its start it changes nothing."""

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(16, affine=False)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(16), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.norm(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(16), 1.0).to_event(1))

    pair = Normalised()
    assert not measure(pair.model, pair.guide, torch.randn(rows, 16)).vectorized
    assert not pair.norm.running_mean.any() and (pair.norm.running_var == 1).all()


def test_a_data_plate_left_of_another_is_refused():
    def model(x):
        with pyro.plate("time", 3, dim=-1), pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("time", 3, dim=-1), pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    pair, x = Custom(model, guide), torch.randn(7, 3)
    words = r"'data' has a member for each row of the batch, and is on axis -2, left of 'time' of length 3"
    for ask in (
        lambda: log_likelihood(pair, x),
        lambda: elbo()(pair.model, pair.guide, x),
        lambda: iwae(3)(pair.model, pair.guide, x),
        lambda: latent_report(pair, x),
    ):
        with pytest.raises(ValueError, match=words):
            ask()


def test_an_axis_that_does_not_show_at_the_start_is_found():
    x, pair = torch.randn(6, 3), Custom(*softmax_over_rows(torch.zeros(3)))
    pair.model(x)
    before = pair.sites["weight"]
    assert not measure(pair.model, pair.guide, x).vectorized
    assert pair.sites["weight"] is before and not before.any()


@pytest.mark.parametrize("start", [torch.zeros(3), 1e-4 * torch.ones(3), torch.tensor([0.0, 1e-5, 0.0])])
def test_weights_of_nobody_that_begin_small_hide_no_axis(start, global_param_store):
    """In Pyro's global store, of two plain functions."""
    assert not measure(*softmax_over_rows(start), torch.randn(6, 3)).vectorized
    assert torch.equal(global_param_store["weight"], start)


def test_positive_numbers_stay_positive_while_axes_are_looked_for():
    class Positive(nn.Module):
        def __init__(self):
            super().__init__()
            self.sigma = nn.Parameter(torch.tensor(0.01))  # used as it is
            self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
            self.norms = nn.ModuleList(nn.LayerNorm(3) for _ in range(3))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.weight * torch.softmax(z, 1), self.sigma).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0 * x, 1.0).to_event(1))

    pairs = [Positive() for _ in range(8)]
    assert not any(measure(pair.model, pair.guide, torch.randn(6, 3)).vectorized for pair in pairs)
