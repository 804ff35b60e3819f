"""Adversarial models: they draw, they have no density, each side's gradients are its own, and they learn."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from torch import nn as tnn

from ppgen import distributions, models, nn, posteriors, priors
from ppgen.inference import (
    Adversarial,
    adversarial,
    ais,
    decode,
    elbo,
    encode,
    fit,
    log_likelihood,
    reconstruct,
    sample,
    train,
)


class Scored(tnn.Module):
    """A discriminator of vectors with its last hidden layer in view."""

    def __init__(self, dim):
        super().__init__()
        self.body, self.output = nn.MLP(dim, 8, 6), tnn.Linear(6, 1)

    def features(self, x, *y):
        return self.body(torch.cat([x, *y], -1)).relu()

    def forward(self, x, *y):
        return self.output(self.features(x, *y))


def posterior(dim=2):
    return posteriors.DiagNormal(nn.MLP(dim, 8, 4))


MODELS = {
    "gan": lambda: models.GAN(priors.StandardNormal(2), nn.MLP(2, 8, 2), nn.MLP(2, 8, 1)),
    "learned prior": lambda: models.GAN(priors.MixtureOfGaussians(3, 2), nn.MLP(2, 8, 2), nn.MLP(2, 8, 1)),
    "bigan": lambda: models.BiGAN(priors.StandardNormal(2), nn.MLP(2, 8, 2), posterior(), nn.MLP(4, 8, 1)),
    "vaegan": lambda: models.VAEGAN(priors.StandardNormal(2), nn.MLP(2, 8, 2), posterior(), Scored(2)),
    "spectral": lambda: models.GAN(
        priors.StandardNormal(2), nn.MLP(2, 8, 2), nn.spectrally_normalized(nn.MLP(2, 8, 1))
    ),
}
CONDITIONAL = {
    "gan": lambda: models.GAN(priors.StandardNormal(2), nn.MLP(2 + 3, 8, 2), nn.MLP(2 + 3, 8, 1)),
    "conditional prior": lambda: models.GAN(
        priors.DiagNormal(2, nn.MLP(3, 4)), nn.MLP(2 + 3, 8, 2), nn.MLP(2 + 3, 8, 1)
    ),
    "bigan": lambda: models.BiGAN(
        priors.StandardNormal(2), nn.MLP(2 + 3, 8, 2), posterior(2 + 3), nn.MLP(4 + 3, 8, 1)
    ),
    "vaegan": lambda: models.VAEGAN(
        priors.StandardNormal(2), nn.MLP(2 + 3, 8, 2), posterior(2 + 3), Scored(2 + 3)
    ),
}  # fmt: skip
LOSSES = [
    adversarial.minimax(),
    adversarial.nonsaturating(),
    adversarial.hinge(),
    adversarial.wasserstein(),
    adversarial.wasserstein_gp(),
]


def acgan():
    return models.ACGAN(priors.StandardNormal(2), nn.MLP(2 + 3, 8, 2), nn.MLP(2, 8, 1 + 3), num_classes=3)


def classes(n):
    return torch.eye(3)[torch.arange(n) % 3]


BATCHES = (
    [pytest.param(make, lambda n: (), id=name) for name, make in MODELS.items()]
    + [pytest.param(make, lambda n: (classes(n),), id=f"{name}, conditional") for name, make in CONDITIONAL.items()]
    + [pytest.param(acgan, lambda n: (torch.arange(n) % 3,), id="acgan")]
)
every_model = pytest.mark.parametrize(("make", "context"), BATCHES)


@every_model
def test_draws_have_the_data_s_shape_and_a_seed(make, context):
    gan = make()
    first, second, other = (sample(gan, 6, *context(6), seed=seed) for seed in (1, 1, 2))
    assert first.shape == (6, 2) and torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(sample(gan, 6, *context(6), mean=True, seed=1), first)  # given z, x is a point
    assert not first.requires_grad


@every_model
def test_there_is_no_density(make, context):
    gan, batch = make(), (torch.zeros(4, 2), *context(4))
    before = copy.deepcopy(gan.state_dict())
    for ask in (
        lambda: log_likelihood(gan, *batch, num_samples=5),
        lambda: fit(gan, batch, epochs=1, progress=False),
        lambda: elbo()(gan.model, gan.guide, *batch),
    ):
        with pytest.raises((TypeError, AttributeError), match=r"density|likelihood|guide"):
            ask()
    assert all(torch.equal(value, before[name]) for name, value in gan.state_dict().items())


def test_the_errors_say_why():
    for ask in (log_likelihood, ais, functools.partial(fit, epochs=1)):
        with pytest.raises(TypeError, match=r"GAN has no \.guide.*only be sampled.*no likelihood.*train\(Adversarial"):
            ask(MODELS["gan"](), torch.zeros(4, 2))
    for name in ("bigan", "vaegan"):
        with pytest.raises(TypeError, match=r"no log p\(x \| z\).*can be drawn and has no density.*ppgen\.judge"):
            log_likelihood(MODELS[name](), torch.zeros(4, 2))


@pytest.mark.parametrize("loss", LOSSES, ids=["minimax", "nonsaturating", "hinge", "wasserstein", "wasserstein_gp"])
@every_model
def test_every_parameter_moves_under_every_loss(make, context, loss):
    gan = make()
    before = {name: p.detach().clone() for name, p in gan.named_parameters()}
    step = Adversarial(gan, loss, critic_steps=1)
    for _ in range(3):
        step.step(torch.randn(32, 2), *context(32))
    still = [name for name, p in gan.named_parameters() if torch.equal(p, before[name])]
    # What a difference of scores does not depend on: the last bias, and one behind a rectifier that never opened.
    assert all("discriminator" in name and name.endswith("bias") for name in still), still


@every_model
def test_models_are_saved_copied_and_put_back_into_their_mode(make, context, tmp_path):
    gan = make()
    train(Adversarial(gan), (torch.randn(40, 2), *context(40)), epochs=1, batch_size=20, seed=0)
    twin = copy.deepcopy(gan)
    torch.save(gan.state_dict(), tmp_path / "gan.pt")
    fresh = make()
    fresh.load_state_dict(torch.load(tmp_path / "gan.pt", weights_only=True))
    expected = sample(gan, 5, *context(5), seed=3)
    assert torch.equal(sample(twin, 5, *context(5), seed=3), expected)
    assert torch.equal(sample(fresh, 5, *context(5), seed=3), expected)
    gan.eval()
    Adversarial(gan).step(torch.randn(8, 2), *context(8))
    assert not gan.training


# -- levels ----------------------------------------------------------------------------------------


class Seen(tnn.Module):
    """A discriminator that notes what it sees."""

    def __init__(self):
        super().__init__()
        self.net, self.values = nn.MLP(1, 4, 1), []

    def forward(self, x):
        self.values.append(x.detach())
        return self.net(x)


@pytest.mark.parametrize(("levels", "dtype"), [(256, torch.uint8), (17, torch.int64), (2, torch.float32)])
def test_networks_see_levels_between_minus_one_and_one_and_draws_are_levels(levels, dtype):
    seen = Seen()
    generator = tnn.Sequential(nn.MLP(2, 8, 1), tnn.Tanh())
    gan = models.GAN(priors.StandardNormal(2), generator, seen, levels=levels)
    x = torch.tensor([[0], [levels - 1]]).to(dtype).repeat(8, 1)
    Adversarial(gan).step(x)
    assert seen.values[0].unique().tolist() == [-1, 1] and seen.values[0].dtype == torch.float32
    assert seen.values[1].abs().max() < 1
    gan.generator[0].output.weight.data *= 20
    drawn = sample(gan, 500)
    assert torch.equal(drawn, drawn.round()) and drawn.min() == 0 and drawn.max() == levels - 1
    for wrong, said in ((1, "at least 2"), (0, "a positive whole number"), (2.5, "a positive whole number")):
        with pytest.raises(ValueError, match=rf"levels \(None: real data\) must be {said}.*got {wrong}"):
            models.GAN(priors.StandardNormal(2), generator, seen, levels=wrong)


def of_levels(name, levels):
    """A model of pairs of levels."""
    generator, prior = nn.MLP(2, 8, 2), priors.StandardNormal(2)
    if name == "acgan":
        return models.ACGAN(prior, nn.MLP(2 + 3, 8, 2), nn.MLP(2, 8, 1 + 3), num_classes=3, levels=levels)
    if name == "bigan":
        return models.BiGAN(prior, generator, posterior(), nn.MLP(4, 8, 1), levels=levels)
    if name == "vaegan":
        return models.VAEGAN(prior, generator, posterior(), Scored(2), levels=levels)
    return models.GAN(prior, generator, nn.MLP(2, 8, 1), levels=levels)


LAST = [torch.zeros(39, 2), torch.ones(1, 2)]  # all data are looked at, not the first batch alone


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("name", ["gan", "acgan", "bigan", "vaegan"])
@pytest.mark.parametrize(
    ("levels", "x", "found"),
    [
        (256, 0.5 * torch.cat(LAST), "0 to 0.5"),
        (2, (255 * torch.cat(LAST)).byte(), "0 to 255"),
        (17, -torch.cat(LAST).long(), "-1 to 0"),
        (17, (17 * torch.cat(LAST)).int(), "0 to 17"),
    ],
)
def test_data_that_are_no_levels_are_refused_before_a_step(levels, x, found, name, loaded):
    gan, batch = of_levels(name, levels), (x, *([torch.zeros(len(x), dtype=torch.long)] if name == "acgan" else []))
    before = copy.deepcopy(gan.state_dict())
    # A loader's rows are looked at as they come: here the last in the first batch.
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch), 40) if loaded else batch
    with pytest.raises(
        ValueError, match=rf"datum 39 .*IntegerInterval\(lower_bound=0, upper_bound={levels - 1}\) .*{found}"
    ):
        train(Adversarial(gan), data, epochs=1, batch_size=10, progress=False)
    assert all(torch.equal(value, before[key]) for key, value in gan.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int64, torch.float64])
def test_levels_of_any_type_are_taken(dtype):
    x = torch.tensor([[0, 1], [1, 0]] * 10).to(dtype)
    for levels in (2, 2**16 + 1):
        gan = of_levels("gan", levels)
        for data in (x, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), 10)):
            train(Adversarial(gan), data, epochs=1, batch_size=10, progress=False)
        assert all(p.isfinite().all() for p in gan.parameters())


# -- classes ---------------------------------------------------------------------------------------


def test_an_auxiliary_classifier_s_losses_by_their_formulas():
    gan, x, y = acgan(), torch.randn(9, 2), torch.arange(9) % 3
    loss = adversarial.nonsaturating()
    torch.manual_seed(3)
    found, watched = gan.critic_loss(loss, x, y)
    torch.manual_seed(3)
    fake = gan.generator(torch.cat([torch.randn(9, 2), torch.eye(3)[y]], 1))
    real_out, fake_out = gan.discriminator(x), gan.discriminator(fake)
    log_c = [out[:, 1:].log_softmax(-1)[torch.arange(9), y].mean() for out in (real_out, fake_out)]
    torch.testing.assert_close(found, loss.critic(real_out[:, 0], fake_out[:, 0]) - log_c[0] - log_c[1])
    assert watched["class_accuracy"] == (real_out[:, 1:].argmax(1) == y).float().mean()
    torch.manual_seed(3)
    found, _ = gan.generator_loss(loss, x, y)
    torch.testing.assert_close(found, loss.generator(fake_out[:, 0]) - log_c[1])


def test_classes_are_drawn_where_none_are_given_and_checked_where_they_are():
    gan = acgan()
    gan.generator = nn.MLP(2 + 3, 2)
    gan.generator.output.weight.data = torch.tensor([[0.0, 0, 0, 1, 2], [0.0, 0, 0, 0, 0]])
    gan.generator.output.bias.data.zero_()
    assert sample(gan, 3, torch.arange(3))[:, 0].tolist() == [0, 1, 2]
    drawn = sample(gan, 3000, seed=0)[:, 0].long().bincount(minlength=3) / 3000
    assert (drawn - 1 / 3).abs().max() < 0.03
    with pytest.raises(ValueError, match=r"classes 0, \.\.\., 2, got values from 0 to 3"):
        sample(gan, 4, torch.arange(4))
    with pytest.raises(ValueError, match="one class a datum"):
        sample(gan, 3, torch.eye(3))
    with pytest.raises(TypeError, match=r"y\[0\] is list: a torch tensor or a numpy array"):
        sample(gan, 3, [0, 1, 2])
    gan.discriminator = nn.MLP(2, 3)
    with pytest.raises(ValueError, match="a discriminator with 4 outputs"):
        Adversarial(gan).step(torch.zeros(3, 2), torch.arange(3))


def test_contexts_are_taken_as_arrays_of_any_whole_type():
    gan, x, y = acgan(), torch.randn(6, 2), torch.arange(6) % 3
    for kind in (np.int64, np.int16, np.uint16, np.uint64):
        labels = y.numpy().astype(kind)
        expected = sample(gan, 6, y, seed=0)
        assert torch.equal(sample(gan, 6, labels, seed=0), expected)
        assert torch.equal(sample(gan, 6, torch.as_tensor(labels), seed=0), expected)
        history = train(Adversarial(gan), (x.numpy(), labels), epochs=1, progress=False)
        _, watched = gan.critic_loss(adversarial.minimax(), x, torch.as_tensor(labels))
        assert 0 <= history.monitors["class_accuracy"][0] <= 1 and 0 <= watched["class_accuracy"] <= 1
    with pytest.raises(ValueError, match=r"y\[0\] is of torch\.uint64 and holds 9223372036854775808"):
        sample(gan, 1, np.array([2**63], np.uint64))
    pair = CONDITIONAL["bigan"]()
    z = encode(pair, x.numpy(), classes(6).numpy())
    assert torch.equal(decode(pair, z, classes(6).numpy()), decode(pair, z, classes(6)))
    assert torch.equal(reconstruct(pair, x.numpy(), classes(6).numpy()), reconstruct(pair, x, classes(6)))


# -- whose gradient is whose -----------------------------------------------------------------------


def test_each_network_of_a_vaegan_gets_its_own_gradient():
    gan = models.VAEGAN(priors.StandardNormal(2), nn.MLP(2, 8, 2), posterior(), Scored(2), weight=0.01)
    x, loss = torch.randn(7, 2), adversarial.nonsaturating()
    torch.manual_seed(5)
    value, watched = gan.generator_loss(loss, x)
    encoder, generator = list(gan.posterior.parameters()), list(gan.generator.parameters())
    found = torch.autograd.grad(value, [*encoder, *generator])

    torch.manual_seed(5)
    q = gan.posterior(x)
    z = q.rsample()
    kl = (q.log_prob(z) - gan.prior().log_prob(z)).mean()
    likelihood = (gan.discriminator.features(x) - gan.discriminator.features(gan.generator(z))).square().sum(
        1
    ).mean() / 2
    from_prior = torch.randn(7, 2)
    mixed = torch.where(torch.rand(7, 1) < 0.5, from_prior, z.detach())
    taken = loss.generator(gan.discriminator(gan.generator(mixed))[:, 0])
    expected = torch.autograd.grad(kl + likelihood, encoder, retain_graph=True)
    expected += torch.autograd.grad(0.01 * likelihood + taken, generator)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(value, kl + 0.01 * likelihood + taken)
    torch.testing.assert_close(watched["kl"], kl.detach())


def test_a_bigan_s_sides_want_the_opposite():
    gan, x = MODELS["bigan"](), torch.randn(7, 2)
    torch.manual_seed(1)
    critic, _ = gan.critic_loss(adversarial.minimax(), x)
    torch.manual_seed(1)
    both, _ = gan.generator_loss(adversarial.minimax(), x)
    torch.testing.assert_close(both, -critic)


def test_what_has_a_guide_encodes_decodes_and_reconstructs():
    for name in ("bigan", "vaegan"):
        gan, x = MODELS[name](), torch.randn(5, 2)
        z = encode(gan, x)
        assert torch.equal(z, gan.posterior(x).mean)
        assert torch.equal(decode(gan, z), gan.generator(z))
        assert torch.equal(reconstruct(gan, x), gan.generator(z))


def test_what_is_no_part_is_refused():
    with pytest.raises(TypeError, match="GAN: generator must be a network, got function"):
        models.GAN(priors.StandardNormal(2), lambda z: z, nn.MLP(2, 1))
    with pytest.raises(TypeError, match=r"must have a method features.*MLP has none"):
        models.VAEGAN(priors.StandardNormal(2), nn.MLP(2, 2), posterior(), nn.MLP(2, 1))
    with pytest.raises(ValueError, match="weight must be a positive finite number, got 0"):
        models.VAEGAN(priors.StandardNormal(2), nn.MLP(2, 2), posterior(), Scored(2), weight=0)
    with pytest.raises(ValueError, match=r"output has shape \(4, 2\): one score a datum"):
        Adversarial(models.GAN(priors.StandardNormal(2), nn.MLP(2, 2), nn.MLP(2, 2))).step(torch.zeros(4, 2))


def test_an_implicit_distribution_draws_its_value_and_has_no_density():
    value = torch.randn(5, 2, 3)
    d = distributions.Implicit(value, event_dim=2)
    assert d.batch_shape == (5,) and d.event_shape == (2, 3)
    assert torch.equal(d.sample(), value) and torch.equal(d.mean, value)
    assert d.expand((4, 5)).sample((6,)).shape == (6, 4, 5, 2, 3)
    with pytest.raises(TypeError, match="has no density"):
        d.log_prob(value)


# -- they learn ------------------------------------------------------------------------------------


def test_a_gan_learns_a_gaussian():
    torch.manual_seed(0)
    x = torch.tensor([1.0, -1.0]) + torch.randn(2000, 2) @ torch.tensor([[1.0, 0.6], [0.0, 0.5]])
    gan = models.GAN(priors.StandardNormal(2), tnn.Linear(2, 2), nn.MLP(2, 32, 1))
    step = Adversarial(
        gan,
        adversarial.wasserstein_gp(),
        critic_steps=3,
        critic_optimizer=lambda p: torch.optim.Adam(p, lr=5e-3, betas=(0.5, 0.9)),
        generator_optimizer=lambda p: torch.optim.Adam(p, lr=5e-3, betas=(0.5, 0.9)),
    )
    train(step, x, epochs=60, batch_size=100, seed=0)
    drawn = sample(gan, 5000, seed=0)
    assert (drawn.mean(0) - x.mean(0)).abs().max() < 0.2
    assert (torch.cov(drawn.T) - torch.cov(x.T)).abs().max() < 0.3


@pytest.mark.slow
def test_an_acgan_draws_the_class_that_is_asked_for():
    torch.manual_seed(0)
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    y = torch.arange(3000) % 3
    x = centres[y] + 0.3 * torch.randn(3000, 2)
    gan = models.ACGAN(priors.StandardNormal(2), nn.MLP(2 + 3, 32, 32, 2), nn.MLP(2, 32, 32, 1 + 3), num_classes=3)
    history = train(Adversarial(gan), (x, y), epochs=40, batch_size=100, seed=0)
    drawn = sample(gan, 600, torch.arange(600) % 3, seed=0)
    assert (torch.cdist(drawn, centres).argmin(1) == torch.arange(600) % 3).double().mean() > 0.95
    assert history.monitors["class_accuracy"][-1] > 0.95


@pytest.mark.slow
def test_a_bigan_s_posterior_inverts_its_generator():
    torch.manual_seed(0)
    angle = torch.rand(4000) * math.pi
    x = torch.stack([angle.cos(), angle.sin()], 1) + 0.02 * torch.randn(4000, 2)
    gan = models.BiGAN(
        priors.StandardNormal(1),
        nn.MLP(1, 64, 64, 2),
        posteriors.DiagNormal(nn.MLP(2, 64, 64, 2)),
        nn.MLP(3, 64, 64, 1),
    )
    before = (reconstruct(gan, x) - x).square().sum(1).mean().item()
    make = functools.partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.999))
    train(Adversarial(gan, critic_optimizer=make, generator_optimizer=make), x, epochs=60, batch_size=200, seed=0)
    after = (reconstruct(gan, x) - x).square().sum(1).mean().item()
    assert after < 0.1 < before
    z = encode(gan, x)
    assert z.std().item() == pytest.approx(1, abs=0.35)


def test_a_vaegan_with_a_frozen_posterior_trains_the_rest():
    gan = MODELS["vaegan"]()
    gan.posterior.requires_grad_(False)
    before = copy.deepcopy(gan.state_dict())
    train(Adversarial(gan), torch.randn(8, 2), epochs=1, batch_size=8, progress=False)
    moved = {name.split(".")[0] for name, value in gan.state_dict().items() if not torch.equal(value, before[name])}
    assert {"generator", "discriminator"} <= moved and "posterior" not in moved
