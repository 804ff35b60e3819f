"""Traversals and interpolations, with decoders that show the latents themselves; and the course of training."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen import decoders, models, plots, posteriors, priors
from ppgen.inference import History
from ppgen.models import Custom
from ppgen.nn import MLP
from ppgen.pair import data_plate
from ppgen.plots import latents as latent_plots
from ppgen.plots import pictures


@pytest.fixture
def written(monkeypatch):
    """What is about to be drawn: the rows of pictures, and their labels."""
    found = {}
    monkeypatch.setattr(latent_plots, "_write", lambda rows, path, labels, *_: found.update(rows=rows, labels=labels))
    return found


def shown():
    """X is z, which is x, as a picture of 2 x 2."""

    def model(x=None):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z.unflatten(-1, (1, 2, 2)), 0.1).to_event(3), obs=x)

    def guide(x):
        with data_plate(x):
            pyro.sample("z", dist.Normal(x.flatten(1), 0.01).to_event(1))

    return Custom(model, guide)


def test_one_coordinate_moves_and_the_others_stay_at_the_encoding(written):
    x = torch.randn(200, 1, 2, 2) * torch.tensor([1.0, 4.0, 2.0, 3.0]).view(2, 2)
    plots.traversals(shown(), x, "", steps=5)
    assert written["labels"] == ["z[1]", "z[3]", "z[2]", "z[0]"]  # by how much they vary
    for row, i in zip(written["rows"], (1, 3, 2, 0), strict=True):
        expected = x[:1].flatten(1).repeat(5, 1)
        expected[:, i] = torch.linspace(-3, 3, 5)
        assert torch.allclose(row.flatten(1), expected)
    plots.traversals(shown(), x, "", steps=3, span=None, num_coordinates=2)
    assert len(written["rows"]) == 2
    low, high = x[:, 0, 0, 1].quantile(torch.tensor([0.01, 0.99]))
    ends = written["rows"][0].flatten(1)[[0, 2], 1]
    assert torch.allclose(ends, torch.stack([low, high]), atol=0.1)


def test_lines_go_straight_from_one_datum_to_the_other(written):
    a, b = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    plots.interpolations(shown(), a, b, "", steps=3)
    for n, row in enumerate(written["rows"]):
        assert torch.allclose(row, torch.stack([a[n], a[n], (a[n] + b[n]) / 2, b[n], b[n]]))


def layered():
    """z2, then z1 around it, which alone is seen; w is by itself."""

    def model(x=None, y=None):
        with data_plate(x, y):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2, 0.5).to_event(1))
            w = pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            seen = torch.stack([z1, w, y], -1).unsqueeze(-3)
            return pyro.sample("x", dist.Normal(seen, 1.0).to_event(3), obs=x)

    def guide(x, y):
        with data_plate(x, y):
            for name, value in (("z2", 0.3), ("z1", 0.5), ("w", 0.7)):
                pyro.sample(name, dist.Normal(torch.full((len(x), 1), value), 1.0).to_event(1))

    return Custom(model, guide)


def test_what_lies_below_the_moving_latent_is_drawn_again_and_nothing_else(written):
    x, y = torch.randn(6, 1, 1, 3), torch.arange(6.0).unsqueeze(1) + 4
    plots.traversals(layered(), (x, y), "", steps=3)
    rows = dict(zip(written["labels"], written["rows"], strict=True))
    z1, w, seen = rows["z2[0]"].squeeze().T
    assert torch.allclose(z1.diff(), torch.tensor([3.0, 3.0]))  # z1 follows z2, with the same noise
    assert not torch.allclose(z1[1], torch.tensor(0.5))
    assert w.tolist() == pytest.approx([0.7] * 3) and seen.tolist() == [4.0] * 3
    assert torch.allclose(rows["z1[0]"].squeeze().T[0], torch.tensor([-3.0, 0.0, 3.0]))
    assert rows["w[0]"].squeeze()[:, 0].tolist() == pytest.approx([0.5] * 3)


def picture_vae(shape=(1, 8, 8)):
    return models.VAE(priors.StandardNormal(3), decoders.Bernoulli(MLP(3, shape)), posteriors.DiagNormal(MLP(shape, 6)))


def test_library_pairs_are_drawn_to_files(tmp_path):
    vae, x = picture_vae(), torch.rand(12, 1, 8, 8).round()
    state = torch.get_rng_state()
    plots.traversals(vae, x, tmp_path / "t.png", span=None)
    plots.interpolations(vae, x[:2], x[2:4], tmp_path / "i.png")
    assert torch.equal(state, torch.get_rng_state()) and vae.training
    assert (tmp_path / "t.png").stat().st_size > 5000 and (tmp_path / "i.png").stat().st_size > 5000


def test_what_cannot_be_shown_is_refused(tmp_path):
    path = tmp_path / "no.png"
    flat = models.VAE(priors.StandardNormal(2), decoders.Bernoulli(MLP(2, 64)), posteriors.DiagNormal(MLP(64, 4)))
    with pytest.raises(ValueError, match=r"Traversals are pictures.*\(64,\)"):
        plots.traversals(flat, torch.zeros(3, 64), path)
    with pytest.raises(ValueError, match=r"Interpolations are pictures.*\(64,\)"):
        plots.interpolations(flat, torch.zeros(3, 64), torch.zeros(3, 64), path)
    x = torch.zeros(3, 1, 8, 8)
    discrete = models.VAE(
        priors.Categorical(5, 2),
        decoders.Bernoulli(MLP((2, 5), (1, 8, 8))),
        posteriors.Categorical(MLP((1, 8, 8), 10), 5, 2),
    )
    with pytest.raises(ValueError, match=r"real coordinates to move, but the pair's latents are \{'z'"):
        plots.traversals(discrete, x, path)
    vae = picture_vae()
    with pytest.raises(ValueError, match="no latents"):
        plots.traversals(Custom(vae.model, lambda x: None), x, path)
    with pytest.raises(ValueError, match=r"span must be two numbers .* got \(3.0, -3.0\)"):
        plots.traversals(vae, x, path, span=(3.0, -3.0))
    with pytest.raises(ValueError, match="at least 10 data, got 3"):
        plots.traversals(vae, x, path, span=None)
    with pytest.raises(ValueError, match="steps must be at least 2"):
        plots.interpolations(vae, x, x, path, steps=1)
    with pytest.raises(ValueError, match="a has 3 rows and b has 2"):
        plots.interpolations(vae, x, x[:2], path)
    assert not path.exists()


def course(history, monkeypatch):
    """The axes on which the course of training was drawn."""
    drawn = []
    monkeypatch.setattr(pictures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    plots.losses(history, "")
    return drawn[0].axes[0]


@pytest.mark.parametrize(
    "history",
    [
        History(loss=[200.0]),
        History(loss=[200.0, 150.0], validation=[140.0, 130.0]),
        History(loss=[900.0, 150.0, 140.0], validation=[700.0, 141.0, math.inf]),
        History(loss=[-0.0044 + 0.0001 * epoch for epoch in range(35)]),
        History(loss=[1e30, 1e30]),
    ],
    ids=["one epoch", "two", "one that is not finite", "small values", "large values"],
)
def test_every_epoch_but_the_first_is_seen(history, monkeypatch):
    axes = course(history, monkeypatch)
    low, high = axes.get_ylim()
    first = 1 if len(history.loss) > 2 else 0
    seen = [value for value in (*history.loss[first:], *history.validation[first:]) if math.isfinite(value)]
    assert low < min(seen) and max(seen) < high
    assert len(history.loss) < 3 or high - low < 1.2 * (max(seen) - min(seen))  # and none is flattened
    assert all((line.get_marker() == ".") == (len(history.loss) < 21) for line in axes.lines)
    assert axes.get_ylabel() == "loss (nats per datum)"


def test_the_loss_of_a_critic_is_called_that(monkeypatch):
    assert (
        course(History(loss=[0.1], monitors={"critic_loss": [0.1]}), monkeypatch).get_ylabel() == "loss of the critic"
    )


def test_a_history_without_epochs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"history has no epochs.*train for at least one"):
        plots.losses(History(), tmp_path / "losses.png")
    assert not list(tmp_path.iterdir())
