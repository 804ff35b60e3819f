"""The published protocol in its facts, and a row of its table from training to the README, on few data."""

import copy
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from ppgen import data, posteriors
from ppgen.catalogue import MODELS, settings_of
from ppgen.catalogue.training import variational
from ppgen.cli.options import HELP
from ppgen.inference import SVI, fit, normalize_gradients, train


def command(scripts, monkeypatch, *options):
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--quick", *map(str, options)])
    scripts[1].main()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimiser_sees_gradients_of_unit_length_tensor_by_tensor(fused):
    small, large = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    alone = torch.nn.Parameter(torch.ones(3))
    gradient = torch.tensor([3.0, 0.0, 4.0])
    ours = normalize_gradients(torch.optim.Adam([small, large], lr=0.1, fused=fused))
    theirs = torch.optim.Adam([alone], lr=0.1, fused=fused)
    for size in (1.0, 1e3, 1e-3):  # which Adam by itself would not forget
        small.grad, large.grad, alone.grad = size * gradient, 1e4 * gradient, gradient / 5
        ours.step()
        theirs.step()
    torch.testing.assert_close(small, alone)
    torch.testing.assert_close(large, alone)
    torch.testing.assert_close(large.grad.norm(), torch.tensor(1.0))


def test_a_gradient_of_zero_stays_zero():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = normalize_gradients(torch.optim.SGD([weight], lr=1.0))
    weight.grad = torch.zeros(2)
    optimizer.step()
    assert weight.tolist() == [1.0, 1.0]
    weight.grad = None
    optimizer.step()
    assert weight.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "error", "fact"),
    [((torch.nn.Linear(2, 2),), TypeError, "Linear"), ((torch.optim.SGD([torch.ones(1)]), 0.0), ValueError, "0.0")],
)
def test_what_cannot_be_normalised_is_named(arguments, error, fact):
    with pytest.raises(error, match=fact):
        normalize_gradients(*arguments)


def test_the_protocols_numbers(scripts):
    protocol, reproduce, _ = scripts
    s = protocol.Settings()
    assert (s.latent_dim, s.hidden, s.num_components, s.num_samples) == (40, 300, 500, 5000)
    assert (s.batch_size, s.lr, s.warmup, s.patience, s.epochs) == (100, 5e-4, 100, 50, 2000)
    rows = reproduce.ROWS
    assert {rows["vae-standard"].published[:2], rows["vae-vamp"].published[:2]} == {(84.45, 0.12), (82.43, 0.06)}
    assert rows["vae-standard"].band == rows["vae-vamp"].band == 0.35


PUBLISHED = {
    "vae-standard": 84.45, "vae-vamp": 82.43, "hvae-standard": 82.39, "hvae-vamp": 81.56, "convhvae-standard": 80.52,
    "convhvae-vamp": 79.67, "pixelcnn": 81.50,
}  # fmt: skip
PRIORS = {"standard": "StandardNormal", "mixture": "MixtureOfGaussians", "vamp": "VampPrior", "flow": "Flow"}


def test_every_row_is_what_it_is_called(scripts):
    """Each is built at full size, by the names that the table shows."""
    protocol, reproduce, _ = scripts
    rows = reproduce.ROWS
    one_layer = {"standard", "mixture", "vamp", "flow", "full", "householder", "planar", "sylvester", "iaf", "spline"}
    assert {f"vae-{name}" for name in one_layer} < set(rows)
    assert {"iwae-5", "iwae-50", "pixelvae", "frey-standard", "frey-vamp", *PUBLISHED} < set(rows)
    assert {name: row.published[0] for name, row in rows.items() if row.published} == PUBLISHED
    s, x = protocol.Settings(), SimpleNamespace(event_shape=(1, 28, 28), num_levels=2)
    sizes = {}
    for name, row in rows.items():
        if row.data != "mnist":
            continue
        pair = row.build(x, s)
        sizes[name] = sum(p.numel() for p in pair.parameters())
        if name == "pixelcnn":
            continue
        assert type(pair.prior).__name__ == PRIORS[row.prior], name
        posterior = pair.posterior if hasattr(pair, "posterior") else pair.posteriors[-1]
        kind = {"diagonal": "DiagNormal", "full": "FullNormal", "iaf": "IAF"}.get(row.posterior, row.posterior.title())
        assert type(posterior).__name__ == kind, name
        if row.prior in ("mixture", "vamp"):
            prior = pair.prior
            assert (len(prior.pseudo_inputs) if row.prior == "vamp" else len(prior.logits)) == 500, name
        loss = row.loss(s)
        k = int(row.objective.partition("k = ")[2] or 1)
        assert type(loss).__name__ == row.objective.partition(",")[0] and loss.num_particles == k, name
        # Every Gaussian has its log-variance in [−6, 2].
        clamped = [m for m in pair.modules() if isinstance(m, posteriors.DiagNormal)]
        assert all(m.log_scale_range == (-3.0, 1.0) for m in clamped), name
        one = row.posterior == "diagonal" or row.prior == "vamp"  # whose components are diagonal
        assert len(clamped) == (3 if "two layers" in row.model else one), name
    assert rows["vae-householder"].build(x, s).posterior.num_reflections == 10
    # Gated layers 784-300-300 and 40-300-300, heads of 40, 40 and 784; and so on, by hand from the published code.
    gated = lambda i, o: 2 * (i * o + o)  # noqa: E731
    head = lambda i, o: i * o + o  # noqa: E731
    encoder = gated(784, 300) + gated(300, 300) + 2 * head(300, 40)
    assert sizes["vae-standard"] == encoder + gated(40, 300) + gated(300, 300) + head(300, 784)
    assert sizes["vae-vamp"] == sizes["vae-standard"] + 500 * 784
    between = gated(40, 300) + gated(300, 300) + 2 * head(300, 40)
    two = gated(784, 300) + gated(40, 300) + gated(600, 300) + 2 * head(300, 40)  # q(z1 | x, z2)
    pixels = 2 * gated(40, 300) + gated(600, 300) + head(300, 784)
    assert sizes["hvae-standard"] == encoder + between + two + pixels
    assert sizes["hvae-vamp"] == sizes["hvae-standard"] + 500 * 784

    def convolutions(first, third):
        layers = ((1, 32, first), (32, 32, 3), (32, 64, third), (64, 64, 3), (64, 6, 3))
        return sum(gated(i * k * k, o) for i, o, k in layers)

    upper = convolutions(7, 5) + 2 * head(294, 40)
    lower = convolutions(3, 3) + gated(40, 294) + gated(588, 300) + 2 * head(300, 40)
    images = 2 * gated(40, 300) + gated(600, 784) + gated(9, 64) + 3 * gated(64 * 9, 64) + head(64, 1)
    assert sizes["convhvae-standard"] == upper + lower + between + images


def test_the_networks_of_the_one_layer_vae(scripts):
    protocol, reproduce, _ = scripts
    x = data.load("digits")
    torch.manual_seed(0)
    vae = reproduce.ROWS["vae-vamp"].build(x, protocol.Settings())
    sizes = {name: tuple(p.shape) for name, p in vae.named_parameters()}
    gated = {(300, 64): 2, (300, 300): 4, (300, 40): 2}  # linear and gate: of the pixels, of both joints, of z
    for shape, count in gated.items():
        assert sum(size == shape for size in sizes.values()) == count
    assert sum(size == (40, 300) for size in sizes.values()) == 2, "means and log-variances have a layer each"
    assert sizes["prior.pseudo_inputs"] == (500, 1, 8, 8) and vae.prior.posterior is vae.posterior
    u = vae.prior.pseudo_inputs
    assert abs(u.mean() - 0.05) < 0.001 and abs(u.std() - 0.01) < 0.001 and u.min() > 0
    weights = vae.posterior.net.body.joint.linear.weight
    assert abs(weights.std() / (2 / 300) ** 0.5 - 1) < 0.02, "He's rule"


def test_the_log_variance_is_clamped_to_the_published_range(scripts):
    protocol, reproduce, _ = scripts
    x = data.load("digits")
    vae = reproduce.ROWS["vae-standard"].build(x, protocol.Settings())
    with torch.no_grad():
        for bias, log_variance in ((-100.0, -6.0), (100.0, 2.0), (1.0, 1.0)):
            vae.posterior.net.log_variance.weight.zero_()
            vae.posterior.net.log_variance.bias.fill_(bias)
            scale = vae.posterior(x.test[:5]).base_dist.scale
            torch.testing.assert_close(2 * scale.log(), torch.full_like(scale, log_variance))


def published_step(vae, moments, x, beta, lr, t):
    """A step of the authors' code, written out: the loss of VAE.calculate_loss, the update of AdamNormGrad.

    But for two constants that guard their float32: probabilities are not clamped at 1e-5, and Adam's epsilon is added
    behind its correction, as in torch.
    """
    named, parameters = dict(vae.named_parameters(remove_duplicate=False)), list(vae.parameters())

    def linear(name, h):
        return h @ named[f"{name}.weight"].T + named[f"{name}.bias"]

    def gated(name, h):
        return linear(f"{name}.linear", h) * linear(f"{name}.gate", h).sigmoid()

    def encode(h):
        h = gated("posterior.net.body.joint", gated("posterior.net.body.first.0", h.flatten(1)))
        return linear("posterior.net.loc", h), linear("posterior.net.log_variance", h).clamp(-6, 2)

    def log_normal(z, mean, log_variance):
        return -0.5 * (log_variance + (z - mean) ** 2 / log_variance.exp()).sum(-1)

    mean, log_variance = encode(x)
    z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    logits = linear("decoder.net.loc", gated("decoder.net.body.joint", gated("decoder.net.body.first.0", z)))
    x = x.flatten(1)
    reconstruction = (x * logsigmoid(logits) + (1 - x) * logsigmoid(-logits)).sum(-1)
    pseudo = torch.nn.functional.hardtanh(named["prior.pseudo_inputs"], 0, 1)
    components = log_normal(z.unsqueeze(1), *(part.unsqueeze(0) for part in encode(pseudo)))
    log_prior = components.logsumexp(1) - np.log(len(pseudo))
    loss = (-reconstruction + beta * (log_normal(z, mean, log_variance) - log_prior)).mean()
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        g = g / (g.norm() + 1e-7)
        first, second = moments.setdefault(p, (torch.zeros_like(p), torch.zeros_like(p)))
        first.mul_(0.9).add_(g, alpha=0.1)
        second.mul_(0.999).addcmul_(g, g, value=0.001)
        p.data.addcdiv_(first, (second / (1 - 0.999**t)).sqrt() + 1e-8, value=-lr / (1 - 0.9**t))
    return loss.detach()


def test_steps_are_those_of_the_published_code(scripts):
    protocol, reproduce, _ = scripts
    s = protocol.QUICK._replace(warmup=1)
    x = data.load("digits")
    torch.manual_seed(0)
    ours = reproduce.ROWS["vae-vamp"].build(x, s)
    theirs = copy.deepcopy(ours)
    step, moments = SVI(ours, protocol.objective(s), protocol.optimizer(s)), {}
    step.schedules[0].bind(10)
    step.prepare(x.train[:20])
    for t in range(1, 9):
        batch = x.train[:20]
        torch.manual_seed(t)
        loss = step.step(batch)
        torch.manual_seed(t)
        wanted = published_step(theirs, moments, batch, (t - 1) / 10, s.lr, t)
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-4)
    for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_the_trainer_by_name_normalises_where_it_is_asked_to(scripts):
    protocol, reproduce, _ = scripts
    x = data.load("digits")
    images, trained = x.train[:100], []
    for choice in (False, True):
        torch.manual_seed(0)
        vae = reproduce.ROWS["vae-standard"].build(x, protocol.QUICK)
        variational(vae, (images,), (x.validation,), epochs=1, lr=protocol.QUICK.lr, normalize_gradients=choice)
        trained.append(vae)
    plain, normalised = (pair.decoder.net.loc.weight for pair in trained)
    assert not torch.equal(plain, normalised)
    torch.manual_seed(0)
    wanted = reproduce.ROWS["vae-standard"].build(x, protocol.QUICK)
    fit(wanted, images, epochs=1, optimizer=protocol.optimizer(protocol.QUICK), seed=0)
    assert torch.equal(wanted.decoder.net.loc.weight, normalised)
    option = settings_of(MODELS["vae"].train)["normalize_gradients"]
    assert option.default is False and "normalize_gradients" in HELP


@pytest.mark.slow
def test_compiled_steps_are_the_same(scripts):
    protocol, reproduce, _ = scripts
    x = data.load("digits")
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        vae = reproduce.ROWS["vae-vamp"].build(x, protocol.QUICK)
        adam = protocol.optimizer(protocol.QUICK)
        history = fit(vae, x.train[:200], epochs=4, optimizer=adam, validation=x.validation, seed=0, compile=compile)
        assert history.compiled == compile
        losses.append(history.validation)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_warm_up_is_linear_and_patience_waits_for_its_end(scripts):
    protocol, reproduce, _ = scripts
    s = protocol.QUICK._replace(warmup=4, patience=1)
    x = data.load("digits")
    torch.manual_seed(0)
    vae = reproduce.ROWS["vae-standard"].build(x, s)
    seen = []

    class Watched(SVI):
        def step(self, *batch):
            seen.append(self.loss.beta.value.item())
            return super().step(*batch)

    step = Watched(vae, protocol.objective(s), protocol.optimizer(s._replace(lr=0.0)))
    history = train(step, x.train[:200], epochs=9, batch_size=100, validation=x.validation, patience=1, seed=0)
    assert seen[:8] == pytest.approx([i / 8 for i in range(8)]) and set(seen[8:]) == {1.0}
    # Nothing is learned, so no epoch is better than the first that counts: the one at whose end the warm-up is over.
    assert history.stopped_early and history.best_epoch == 3 and len(history.validation) == 5


def test_the_binarised_images_are_those_of_the_protocol(scripts):
    protocol, *_ = scripts
    try:
        levels = data.load("mnist", binarize="none")
    except (OSError, RuntimeError) as error:
        pytest.skip(f"MNIST is not here: {error}")
    x = protocol.load("mnist")
    stream = np.random.RandomState(777)
    for drawn, grey in ((x.validation, levels.validation), (x.test, levels.test)):  # in this order
        probs = grey.flatten(1).numpy().astype(np.float32) / 255
        assert (drawn.flatten(1).numpy() == stream.binomial(1, probs)).all()
    assert (len(x.train), len(x.validation), len(x.test)) == (50_000, 10_000, 10_000)
    assert not (x.train[:10] == x.train[:10]).all(), "training images are drawn anew at every use"


@pytest.mark.parametrize("row", ["vae-vamp", "frey-standard"])
def test_a_row_from_training_to_the_table(row, scripts, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    command(scripts, monkeypatch, "--rows", row, "--out", out)
    printed = capsys.readouterr().out
    result = json.loads((out / "results" / f"{row}-0.json").read_text())
    assert result["epochs"] == 3 and result["converged"] and result["num_samples"] == 50
    stated = (
        "mc_standard_error data_standard_error reliable_fraction elbo kl active_units seconds seed versions machine"
    )
    assert set(stated.split()) <= set(result) and "split after a shuffle with seed 0" in result["data"]
    assert result["log_likelihood"] > result["elbo"]
    values = np.load(out / "results" / "values" / f"{row}-0.npy")
    assert values.shape == (300,) and values.mean() == pytest.approx(result["log_likelihood"], abs=1e-3)
    number = f"{result['bits_per_dim']:.3f}" if "frey" in row else f"{-result['log_likelihood']:.2f}"
    assert number in printed and printed.count("not run") >= len(scripts[1].ROWS) - 1
    # Evaluated from its checkpoint, it is the same to the last bit.
    command(scripts, monkeypatch, "--rows", row, "--out", out, "--evaluate")
    again = json.loads((out / "results" / f"{row}-0.json").read_text())
    for fact in ("log_likelihood", "best_epoch", "validation", "compiled"):
        assert again[fact] == result[fact], fact


@pytest.mark.slow
@pytest.mark.parametrize("row", ["hvae-vamp", "convhvae-vamp", "pixelcnn", "pixelvae", "iwae-5", "vae-flow-iaf-dreg"])
def test_every_kind_of_row_can_be_run(row, scripts, tmp_path, monkeypatch, capsys):
    command(scripts, monkeypatch, "--rows", row, "--out", tmp_path)
    result = json.loads((tmp_path / "results" / f"{row}-0.json").read_text())
    assert result["num_samples"] == (1 if row == "pixelcnn" else 50) and result["converged"]
    sites = {"hvae-vamp": {"z1", "z2"}, "convhvae-vamp": {"z1", "z2"}, "pixelcnn": set()}
    assert set(result["kl"] or ()) == sites.get(row, {"z"})
    # An image of 64 pixels at random costs 44 nats.
    assert -44 < result["elbo"] <= result["log_likelihood"] < -15
    assert f"{-result['log_likelihood']:.2f}" in capsys.readouterr().out


def test_a_run_that_was_cut_is_called_that_and_goes_on(scripts, tmp_path, monkeypatch, capsys):
    command(scripts, monkeypatch, "--rows", "vae-standard", "--out", tmp_path, "--epochs", 2)
    assert "not converged: 2 epochs" in capsys.readouterr().out
    command(scripts, monkeypatch, "--rows", "vae-standard", "--out", tmp_path)
    assert "not converged" not in capsys.readouterr().out
    whole = json.loads((tmp_path / "results" / "vae-standard-0.json").read_text())
    command(scripts, monkeypatch, "--rows", "vae-standard", "--out", tmp_path / "at-once")
    at_once = json.loads((tmp_path / "at-once" / "results" / "vae-standard-0.json").read_text())
    assert whole["log_likelihood"] == at_once["log_likelihood"]


def test_a_run_that_stopped_early_is_converged_from_its_checkpoint_too(scripts, tmp_path):
    protocol, reproduce, _ = scripts
    place = reproduce.Place(tmp_path / "out", tmp_path / "results", "vae-standard", 0)
    s = protocol.QUICK._replace(lr=0.0, epochs=9, patience=1, num_samples=2)
    row = reproduce.ROWS[place.name]
    place.results.mkdir()
    at_end = reproduce.run(row, place, s, quick=True)
    so_far = reproduce.run_so_far(row, place, s, quick=True)
    assert at_end["converged"] and so_far["converged"] and so_far["epochs"] < 9
    assert so_far["log_likelihood"] == at_end["log_likelihood"]


@pytest.mark.slow
def test_a_run_of_compiled_steps_is_called_that_from_its_checkpoint_too(scripts, tmp_path, monkeypatch):
    protocol, reproduce, _ = scripts
    place = reproduce.Place(tmp_path / "out", tmp_path / "results", "vae-standard", 0)
    monkeypatch.setattr(reproduce, "fit", lambda *given, **rest: fit(*given, **rest | {"compile": True}))
    row, s = reproduce.ROWS[place.name], protocol.QUICK._replace(epochs=1, num_samples=2)
    assert reproduce.run(row, place, s, quick=True)["compiled"]
    assert reproduce.run_so_far(row, place, s, quick=True)["compiled"]


def test_an_unknown_row_is_named(scripts, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        command(scripts, monkeypatch, "--rows", "vae-vampire")
    assert "vae-vampire" in capsys.readouterr().err
