"""What the latent does, against pairs of Gaussians in which every figure has a closed form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from parts import POSTERIORS, PRIORS

from ppgen import decoders, models, nn, posteriors, priors
from ppgen.inference import energy_distance, latent_report, mutual_information, sample
from ppgen.models import Custom
from ppgen.pair import data_plate

VARIANCE = 6.0  # of the data: twice the prior's is then the aggregate posterior's, 6 / 4 + 1 / 2
GENERATOR = torch.Generator().manual_seed(1234)


def gaussian(*, to_event=True, shift=0.0):
    """Z ~ N(shift, I), x = z + ε, and the posterior that is exact for shift 0: N(x / 2, 1 / 2)."""

    def model(x=None, *y):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(shift * torch.ones(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x, *y):
        with data_plate(x):
            scale = torch.full_like(x, math.sqrt(0.5))
            normal = dist.Normal(x / 2, scale).to_event(1)
            pyro.sample("z", normal if to_event else dist.MultivariateNormal(x / 2, scale_tril=scale.diag_embed()))

    return Custom(model, guide)


def data(n, variance=VARIANCE):
    """Drawn apart from the seeds of the reports, whose noise would otherwise be the data's."""
    return math.sqrt(variance) * torch.randn(n, 2, generator=GENERATOR)


def far(variance, shift=0.0):
    """E‖d‖ in two dimensions for d ~ N(0, variance · I)."""
    return math.sqrt(math.pi * variance / 2)


def test_kl_per_dimension_has_its_closed_form_and_sums_to_the_whole():
    x = data(500) * torch.tensor([1.0, 0.1])
    report = latent_report(gaussian(), x, num_samples=200)
    exact = (0.5 * (0.5 + (x / 2) ** 2 - 1 - math.log(0.5))).mean(0)
    assert torch.allclose(report.kl_per_dimension["z"].float(), exact, atol=0.02)
    assert report.kl_per_dimension["z"].sum().item() == pytest.approx(report.kl["z"], abs=1e-5)
    assert report.mutual_information is report.aggregate_kl is report.energy_distance is None  # not asked for


def test_the_aggregate_posterior_of_gaussians():
    x = data(2000)
    report = latent_report(gaussian(), x, num_aggregate=2000)
    assert report.mutual_information == pytest.approx(math.log(4), abs=0.08)  # ½ log(2 / ½), twice
    assert report.aggregate_kl == pytest.approx(2 - 1 - math.log(2), abs=0.08)
    assert report.mutual_information + report.aggregate_kl == pytest.approx(report.kl["z"], abs=0.08)
    assert report.energy_distance["z"] == pytest.approx(2 * far(3.0) - far(4.0) - far(2.0), abs=0.025)


def test_an_aggregate_that_is_the_prior_is_at_no_distance():
    report = latent_report(gaussian(), data(2000, 2.0), num_aggregate=2000)
    assert report.aggregate_kl == pytest.approx(0, abs=0.05)
    assert report.energy_distance["z"] == pytest.approx(0, abs=0.01)
    away = latent_report(gaussian(shift=3.0), data(300, 2.0), num_aggregate=300)
    assert away.aggregate_kl == pytest.approx(9, rel=0.1)  # ½ · 3², twice
    assert away.energy_distance["z"] > 4


def test_the_energy_distance_has_no_bias():
    """Of ten data: with i = j among its pairs it would be near 0.35 on average."""
    found = torch.tensor([energy_distance(gaussian(), data(10, 2.0), seed=i)["z"] for i in range(300)])
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(300) < 0.1
    assert found.min() < 0


def test_more_data_than_asked_for_are_only_the_first():
    x = data(60)
    report = latent_report(gaussian(), x, num_aggregate=40)
    assert report.mutual_information == mutual_information(gaussian(), x[:40])
    assert report.energy_distance == energy_distance(gaussian(), x[:40])


def test_the_bias_of_few_data_is_the_stated_one():
    """I and the distance of the prior are of these data: one too small for all that could be, the other too large."""
    few = [latent_report(gaussian(), data(8), num_aggregate=8, seed=i, num_samples=2) for i in range(100)]
    assert max(r.mutual_information for r in few) <= math.log(8)
    assert sum(r.mutual_information for r in few) / 100 < math.log(4) - 0.2
    assert sum(r.aggregate_kl for r in few) / 100 > 1 - math.log(2) + 0.2


def test_what_does_not_factorise_has_no_kl_per_dimension():
    full = latent_report(gaussian(to_event=False), data(20), num_aggregate=20)
    assert full.kl_per_dimension == {"z": None} and full.kl["z"] > 0 and full.aggregate_kl is not None
    x = torch.rand(6, 3).round()
    for name, prior in PRIORS.items():
        pair = models.VAE(prior(3), decoders.Bernoulli(nn.MLP(3, 3)), POSTERIORS["diagonal"](3))
        found = latent_report(pair, x, num_samples=2, num_aggregate=6)
        assert (found.kl_per_dimension["z"] is None) == (name not in ("standard", "diagonal")), name
        assert math.isfinite(found.aggregate_kl) and math.isfinite(found.energy_distance["z"])


def test_several_sites_and_inner_plates():
    """z2 above z1, each with a closed form; w in a plate of three inside the data's."""

    def model(x=None):
        with data_plate(x):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2, torch.tensor([1.0, 2.0])).to_event(1))
            return pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)

    def guide(x):
        with data_plate(x):
            z2 = pyro.sample("z2", dist.Normal(torch.tensor([0.0, 2.0]), 1.0).to_event(1).expand([len(x)]))
            pyro.sample("z1", dist.Normal(z2 + torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0])).to_event(1))

    report = latent_report(Custom(model, guide), data(400), num_samples=100, num_aggregate=400)
    assert torch.allclose(report.kl_per_dimension["z2"].float(), torch.tensor([0.0, 2.0]), atol=0.05)
    assert torch.allclose(report.kl_per_dimension["z1"].float(), torch.tensor([0.5, 0.0]), atol=0.05)
    assert report.mutual_information == pytest.approx(0, abs=1e-5)  # the guide does not look
    assert report.aggregate_kl == pytest.approx(2.5, abs=0.3)
    assert report.energy_distance["z2"] > 0.5 and set(report.energy_distance) == {"z1", "z2"}

    def inner(x=None):
        with data_plate(x):
            with pyro.plate("inner", 3, dim=-2):
                pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    def inner_guide(x):
        with data_plate(x), pyro.plate("inner", 3, dim=-2):
            pyro.sample("w", dist.Normal(torch.tensor([[0.0], [1.0], [2.0]]), 1.0))

    pair = Custom(inner, inner_guide)
    found = latent_report(pair, data(50), num_samples=200).kl_per_dimension["w"]
    assert found.tolist() == pytest.approx([0.0, 0.5, 2.0], abs=0.1)
    with pytest.raises(ValueError, match="one event a datum"):
        latent_report(pair, data(50), num_aggregate=50)


@pytest.mark.parametrize("event", [(), (2,)])
def test_active_units_are_counted_over_the_data_in_whatever_plates_they_stand(event):
    """One latent a datum, three in a plate and twelve in two: those that follow the datum, and no others."""

    def latents(one, two, three):
        def draw(name, loc):
            loc = loc.reshape(*loc.shape, *[1] * len(event)).expand(*loc.shape, *event)
            pyro.sample(name, dist.Normal(loc, 0.1).to_event(len(event)))

        draw("one", one)
        with pyro.plate("a", 3, dim=-2):
            draw("two", two)
            with pyro.plate("b", 4, dim=-3):
                draw("three", three)

    def model(x):
        with data_plate(x):
            latents(torch.zeros(1), torch.zeros(3, 1), torch.zeros(4, 3, 1))
            pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x)

    def guide(x):
        two = torch.tensor([[0.0], [1.0], [1.0]]) * x.T
        apart = torch.arange(4.0)[:, None, None]  # from each other, and alike for all data
        with data_plate(x):
            latents(x[:, 0], two, two + apart)

    units = math.prod(event)
    for n in (3, 150):  # as many data as a plate has places, and more than are run at once
        x = torch.linspace(-3, 3, n).unsqueeze(1).expand(n, 3)
        active = latent_report(Custom(model, guide), x, num_samples=10).active_units
        assert active == {"one": units, "two": 2 * units, "three": 8 * units}
        assert set(latent_report(Custom(model, guide), x[:1].expand(n, 3)).active_units.values()) == {0}


def test_a_prior_of_the_datums_own_has_no_aggregate_kl():
    x, y = torch.rand(30, 4).round(), torch.randn(30, 3)
    q = posteriors.DiagNormal(nn.MLP(7, 4))
    for prior, defined in ((priors.DiagNormal(2, nn.MLP(3, 4)), False), (priors.StandardNormal(2), True)):
        pair = models.VAE(prior, decoders.Bernoulli(nn.MLP(5, 4)), q)
        report = latent_report(pair, x, y, num_aggregate=30)
        assert (report.aggregate_kl is not None) == defined
        assert report.mutual_information >= 0 and math.isfinite(report.energy_distance["z"])


def test_too_few_data_are_refused():
    with pytest.raises(ValueError, match="num_aggregate must be 0, or at least 2"):
        latent_report(gaussian(), data(5), num_aggregate=1)
    with pytest.raises(ValueError, match="at least two data, got 1"):
        energy_distance(gaussian(), data(1))


def test_data_drawn_with_a_seed_are_not_measured_with_their_own_noise():
    """The evaluation's noise of seed 0 is not that with which anybody else's seed 0 made the data."""

    def model(x=None):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    pair = Custom(model, guide)
    torch.manual_seed(0)
    for x in (torch.randn(300), sample(pair, 300, seed=0)):
        found = torch.tensor([mutual_information(pair, x, seed=seed) for seed in range(6)])
        assert (found[0] - found[1:].mean()).abs() < 4 * found[1:].std()
        found = torch.tensor([energy_distance(pair, x, seed=seed)["z"] for seed in range(6)])
        assert (found[0] - found[1:].mean()).abs() < 4 * found[1:].std()


def test_draws_that_are_handed_on_have_no_density_under_another_datum():
    def model(x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(x / 2 + 0.8 * u, log_density=-math.log(0.8)))

    with pytest.raises(ValueError, match=r"\['z'\] take their value from auxiliary ones"):
        mutual_information(Custom(model, guide), torch.randn(20))
