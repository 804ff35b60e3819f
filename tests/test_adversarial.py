"""Adversarial training: losses against closed forms, whose turn it is, and what happens when a run diverges."""

import copy
import functools
import math

import pytest
import torch
from torch import nn as tnn

from ppgen import models, nn, priors
from ppgen.inference import Adversarial, adversarial, train

LOSSES = {
    "minimax": adversarial.minimax,
    "nonsaturating": adversarial.nonsaturating,
    "hinge": adversarial.hinge,
    "wasserstein": adversarial.wasserstein,
    "wasserstein_gp": adversarial.wasserstein_gp,
}
every_loss = pytest.mark.parametrize("loss", LOSSES)
frozen = functools.partial(torch.optim.SGD, lr=0.0)


def gan(dim=2, hidden=(8,)):
    return models.GAN(priors.StandardNormal(2), nn.MLP(2, *hidden, dim), nn.MLP(dim, *hidden, 1))


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


# -- losses ----------------------------------------------------------------------------------------

REAL, FAKE = torch.tensor([2.0, -0.5, 0.3]), torch.tensor([-1.0, 0.7, 1.5, -3.0])


def test_losses_by_their_formulas():
    d_real, d_fake = REAL.sigmoid(), FAKE.sigmoid()
    game = d_real.log().mean() + (1 - d_fake).log().mean()
    difference = REAL.mean() - FAKE.mean()
    expected = {
        "minimax": (-game, (1 - d_fake).log().mean(), (game + math.log(4)) / 2),
        "nonsaturating": (-game, -d_fake.log().mean(), (game + math.log(4)) / 2),
        "hinge": ((1 - REAL).clamp(min=0).mean() + (1 + FAKE).clamp(min=0).mean(), -FAKE.mean(), difference),
        "wasserstein": (-difference, -FAKE.mean(), difference),
        "wasserstein_gp": (-difference, -FAKE.mean(), difference),
    }
    for name, values in expected.items():
        loss = LOSSES[name]()
        for found, value in zip(
            (loss.critic(REAL, FAKE), loss.generator(FAKE), loss.estimate(REAL, FAKE)), values, strict=True
        ):
            torch.testing.assert_close(found, value)


def test_minimax_is_a_zero_sum_game():
    loss = adversarial.minimax()
    both = loss.generator(FAKE) + loss.generator(-REAL)  # what the side of generator and posterior minimises
    torch.testing.assert_close(both, -loss.critic(REAL, FAKE))


def test_scores_of_any_size_are_finite():
    sure = torch.tensor([1e6, -1e6])
    for make in LOSSES.values():
        loss = make()
        assert loss.critic(sure, sure).isfinite() and loss.generator(sure).isfinite()


def test_only_the_saturating_generator_loses_its_gradient():
    slopes = {}
    for name in ("minimax", "nonsaturating"):
        score = torch.tensor([-20.0], requires_grad=True)  # the discriminator is sure that it is a draw
        slopes[name] = torch.autograd.grad(LOSSES[name]().generator(score), score)[0].abs().item()
    assert slopes["minimax"] < 1e-8 and slopes["nonsaturating"] == pytest.approx(1)


def test_the_gradient_penalty_of_a_linear_critic():
    w, v = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    x, z = torch.randn(5, 2), torch.randn(5, 1)
    loss = adversarial.wasserstein_gp(weight=7.0)
    one = loss.penalty(lambda x: x @ w, (x,), (x + 1,))
    assert one.item() == pytest.approx(7 * (5 - 1) ** 2, rel=1e-5)
    two = loss.penalty(lambda x, z: x @ w + z @ v, (x, z), (x + 1, z - 1))  # the norm over both inputs
    assert two.item() == pytest.approx(7 * (13 - 1) ** 2, rel=1e-5)


def test_slopes_lie_between_data_and_draws_and_have_gradients():
    scale = torch.tensor(3.0, requires_grad=True)
    real, fake = torch.zeros(1000, 1), torch.ones(1000, 1)
    slopes = adversarial.slopes(lambda x: scale * x.square()[:, 0] / 2, (real,), (fake,))  # slope scale · x̂
    assert slopes.min() >= 0 and slopes.max() <= 3 and slopes.mean().item() == pytest.approx(1.5, abs=0.1)
    assert torch.autograd.grad(slopes.mean(), scale)[0].item() == pytest.approx(0.5, abs=0.04)
    flat = adversarial.slopes(lambda x: 0 * x[:, 0], (real,), (fake,))
    assert flat.max() < 1e-5


def test_bounds_and_weights_must_be_positive():
    with pytest.raises(ValueError, match="clip must be a positive finite number, got 0"):
        adversarial.wasserstein(clip=0)
    with pytest.raises(ValueError, match="weight must be a positive finite number, got nan"):
        adversarial.wasserstein_gp(weight=math.nan)


# -- what the critic finds --------------------------------------------------------------------------


class Fixed(tnn.Module):
    """A generator that only shifts and scales its noise."""

    def __init__(self, loc, scale):
        super().__init__()
        self.loc, self.scale = tnn.Parameter(torch.tensor(loc)), tnn.Parameter(torch.tensor(scale))

    def forward(self, z):
        return self.loc + self.scale * z


def critic_against(generator, critic, x, loss, steps, lr=0.05):
    pair = models.GAN(priors.StandardNormal(x.shape[1]), generator, critic)
    step = Adversarial(
        pair,
        loss,
        critic_optimizer=functools.partial(torch.optim.Adam, lr=lr, betas=(0.5, 0.9)),
        generator_optimizer=frozen,
    )
    train(step, x, epochs=steps, batch_size=len(x), seed=0)
    return step


def test_the_wasserstein_estimate_of_two_point_masses():
    # In the plane: on a line, a critic that begins with the wrong sign would have to pass through a slope of 0.
    distance, weight = 0.5, 10.0
    x = torch.tensor([[0.3, 0.4]]).expand(64, 2)
    step = critic_against(Fixed(0.0, 0.0), tnn.Linear(2, 1), x, adversarial.wasserstein_gp(weight), steps=300)
    # The best slope s maximises s · d − λ (s − 1)², so it is 1 + d / 2 λ.
    assert float(step.monitors["critic_estimate"]) == pytest.approx(distance * (1 + distance / (2 * weight)), abs=1e-3)
    # The clipped critic has slope c in either coordinate: it sees the distance in units of its own.
    step = critic_against(Fixed(0.0, 0.0), tnn.Linear(2, 1), x, adversarial.wasserstein(clip=0.01), steps=10)
    _, now = step.pair.critic_loss(step.loss, x)
    assert float(now["critic_estimate"]) == pytest.approx(0.01 * (0.3 + 0.4), rel=1e-3)


def test_the_wasserstein_estimate_of_two_gaussians():
    x = torch.tensor([1.2, 1.6]) + torch.randn(1000, 2)  # moved by 2
    step = critic_against(Fixed(0.0, 1.0), nn.MLP(2, 32, 1), x, adversarial.wasserstein_gp(), steps=250, lr=0.01)
    assert float(step.monitors["critic_estimate"]) == pytest.approx(2.0, abs=0.3)


def test_the_best_discriminator_of_two_gaussians():
    x = 1 + torch.randn(4000, 1)
    line = tnn.Linear(1, 1)
    step = critic_against(Fixed(-1.0, 1.0), line, x, adversarial.nonsaturating(), steps=300)
    # log N(x; 1, 1) − log N(x; −1, 1) = 2 x
    assert line.weight.item() == pytest.approx(2, abs=0.25) and line.bias.item() == pytest.approx(0, abs=0.15)
    grid = torch.linspace(-12, 12, 4001)
    p, q = (torch.distributions.Normal(m, 1.0).log_prob(grid) for m in (1.0, -1.0))
    middle = torch.logaddexp(p, q) - math.log(2)
    divergence = torch.trapezoid(p.exp() * (p - middle) + q.exp() * (q - middle), grid).item() / 2
    assert float(step.monitors["critic_estimate"]) == pytest.approx(divergence, abs=0.02)
    right = torch.special.ndtr(torch.tensor(1.0)).item()
    assert float(step.monitors["discriminator_accuracy"]) == pytest.approx(right, abs=0.02)


# -- turns ------------------------------------------------------------------------------------------


def test_critic_steps_are_counted_and_the_other_side_stands_still():
    pair, x = gan(), torch.randn(32, 2)
    step = Adversarial(pair, adversarial.wasserstein_gp(), critic_steps=3)
    for turn in range(1, 8):
        generator, critic = state(pair.generator), state(pair.discriminator)
        step.step(x)
        assert not same(critic, state(pair.discriminator)), f"the critic stood still in step {turn}"
        assert same(generator, state(pair.generator)) == (turn % 3 != 0), f"step {turn}"
    assert step.num_steps == 7


def test_the_generator_s_turn_does_not_move_the_critic():
    pair = gan()
    step = Adversarial(pair, critic_steps=1, critic_optimizer=frozen)
    generator, critic = state(pair.generator), state(pair.discriminator)
    step.step(torch.randn(32, 2))
    assert same(critic, state(pair.discriminator)) and not same(generator, state(pair.generator))
    assert all(p.grad is None for p in pair.parameters())


def test_clipped_weights_stay_clipped():
    pair = gan()
    step = Adversarial(pair, adversarial.wasserstein(clip=0.02))
    for _ in range(12):
        step.step(torch.randn(32, 2))
        assert max(p.abs().max() for p in pair.discriminator.parameters()) <= 0.02
    assert max(p.abs().max() for p in pair.generator.parameters()) > 0.02


def test_losses_bring_the_settings_of_their_papers_and_yield_to_others():
    step = Adversarial(gan(), adversarial.wasserstein())
    assert step.critic_steps == 5
    assert [type(o) for o in step.optimizers.values()] == [torch.optim.RMSprop] * 2
    pair = gan()
    mine = torch.optim.SGD(pair.discriminator.parameters(), lr=0.1)
    step = Adversarial(
        pair, adversarial.wasserstein(), critic_steps=2, critic_optimizer=mine, generator_optimizer=frozen
    )
    assert step.critic_steps == 2 and step.optimizers["discriminator"] is mine
    assert isinstance(step.optimizers["generator"], torch.optim.SGD)


@every_loss
def test_training_is_reproducible_and_watched(loss):
    pair, x = gan(), torch.randn(120, 2)
    twin = copy.deepcopy(pair)
    histories = [train(Adversarial(p, LOSSES[loss]()), x, epochs=3, batch_size=20, seed=4) for p in (pair, twin)]
    assert same(state(pair), state(twin)) and histories[0].monitors == histories[1].monitors
    monitors = histories[0].monitors
    assert set(monitors) == {
        "critic_loss",
        "critic_gradient_norm",
        "critic_estimate",
        "discriminator_accuracy",
        "generator_loss",
        "generator_gradient_norm",
    }
    assert all(len(values) == 3 and all(map(math.isfinite, values)) for values in monitors.values())
    assert all(0 <= value <= 1 for value in monitors["discriminator_accuracy"])
    assert all(norm > 0 for norm in monitors["critic_gradient_norm"])


@every_loss
def test_accuracy_has_its_zero_where_scores_have_one(loss):
    far = tnn.Linear(2, 1)
    far.weight.data, far.bias.data = torch.tensor([[1.0, 0.0]]), torch.tensor([100.0])
    pair = models.GAN(priors.StandardNormal(2), Fixed(0.0, 0.1), far)
    accuracy = pair.critic_loss(LOSSES[loss](), torch.tensor([[5.0, 0.0]]).expand(50, 2))[1]["discriminator_accuracy"]
    assert accuracy == (1.0 if loss.startswith("wasserstein") else 0.5)


def test_monitors_are_running_means():
    step = Adversarial(gan())
    losses = [float(step.step(torch.randn(16, 2))) for _ in range(7)]
    assert float(step.monitors["critic_loss"]) == pytest.approx(sum(losses) / 7, rel=1e-5)


def test_a_step_without_monitors_has_none_in_its_history():
    class Step:
        def step(self, x):
            return x.mean()

    assert train(Step(), torch.ones(4, 1), epochs=1).monitors == {}


# -- divergence -------------------------------------------------------------------------------------


class Fatal(tnn.Module):
    """Passes x on until it is armed; then its values, or only their gradients, are not finite."""

    def __init__(self):
        super().__init__()
        self.armed = None

    def forward(self, x):
        if self.armed == "loss":
            return x * math.nan
        if self.armed == "gradient" and x.requires_grad:
            x = x.view_as(x)
            x.register_hook(lambda g: g * math.inf)
        return x


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("network", ["discriminator", "generator"])
def test_divergence_names_step_and_network_and_keeps_the_last_good_state(what, network):
    fatal = Fatal()
    body = tnn.Sequential(tnn.Linear(2, 4), tnn.BatchNorm1d(4), tnn.ReLU(), tnn.Linear(4, 2))
    generator = tnn.Sequential(body, fatal) if network == "generator" else body
    critic = nn.spectrally_normalized(tnn.Sequential(tnn.Linear(2, 4), tnn.ReLU(), tnn.Linear(4, 1)))
    discriminator = tnn.Sequential(critic, fatal) if network == "discriminator" else critic
    pair = models.GAN(priors.StandardNormal(2), generator, discriminator)
    step = Adversarial(pair)
    x = torch.randn(16, 2)
    for _ in range(3):
        step.step(x)
    fatal.armed = what
    generator_before, before = state(pair.generator), state(pair)
    # The discriminator's turn comes first, and sees what the generator makes.
    named = "generator" if (what, network) == ("gradient", "generator") else "discriminator"
    with pytest.raises(FloatingPointError, match=f"Step 4: the {named}'s {what}.*not made") as error:
        train(step, x, epochs=1, batch_size=16, seed=0)
    if what == "gradient":
        assert f"first at {named}." in str(error.value)
    if named == "discriminator":
        assert same(before, state(pair))
    parameters = [name for name, _ in pair.generator.named_parameters()]
    assert all(torch.equal(generator_before[name], state(pair.generator)[name]) for name in parameters)
    assert all(value.isfinite().all() for value in pair.state_dict().values())
    fatal.armed = None
    assert step.step(x).isfinite()


def test_a_learning_rate_too_large_ends_in_the_same_error():
    pair = gan()
    huge = functools.partial(torch.optim.SGD, lr=1e25)
    step = Adversarial(pair, adversarial.wasserstein_gp(), critic_optimizer=huge, generator_optimizer=huge)
    with pytest.raises(
        FloatingPointError, match=r"Step \d+: the (discriminator|generator)'s .*learning rate too large"
    ):
        train(step, torch.randn(100, 2), epochs=5, batch_size=10, seed=0)
    assert all(p.isfinite().all() for p in pair.parameters())


# -- what is refused --------------------------------------------------------------------------------


def test_what_is_no_game_is_refused():
    with pytest.raises(TypeError, match=r"models\.GAN; got Linear"):
        Adversarial(tnn.Linear(2, 2))
    with pytest.raises(TypeError, match="call the function"):
        Adversarial(gan(), adversarial.minimax)
    with pytest.raises(TypeError, match="critic_optimizer must be a torch optimiser"):
        Adversarial(gan(), critic_optimizer=0.1)
    with pytest.raises(TypeError, match=r"generator_optimizer is LBFGS, .* closure"):
        Adversarial(gan(), generator_optimizer=torch.optim.LBFGS)
    with pytest.raises(ValueError, match="critic_steps must be a positive whole number, got 0"):
        Adversarial(gan(), critic_steps=0)
    with pytest.raises(ValueError, match="The generator of GAN has no parameters"):
        Adversarial(models.GAN(priors.StandardNormal(2), tnn.Identity(), nn.MLP(2, 1)))
    pair, old = gan(), gan()
    for name, side, other in (("critic", "discriminator", "generator"), ("generator", "generator", "discriminator")):
        for wrong in (getattr(old, side), getattr(pair, other)):
            optimizer = torch.optim.Adam(wrong.parameters())
            with pytest.raises(ValueError, match=f"{name}_optimizer holds none of the {side}'s parameters"):
                Adversarial(pair, **{f"{name}_optimizer": optimizer})
    with pytest.raises(TypeError, match=r"no \.evaluate"):
        train(Adversarial(gan()), torch.randn(9, 2), epochs=1, validation=torch.randn(9, 2))


def test_a_fused_optimiser_reads_gradients_in_the_order_of_the_weights():
    """A convolution of channels-last images gives them in another."""

    class Critic(tnn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = tnn.Conv2d(6, 6, 3), tnn.Linear(216, 1)

        def forward(self, x):
            return self.out(self.conv(x.contiguous(memory_format=torch.channels_last)).flatten(1))

    gan = models.GAN(priors.StandardNormal(2), nn.MLP(2, (6, 8, 8)), Critic())
    x, moved = torch.rand(20, 6, 8, 8), []
    for fused in (False, True):
        copied = copy.deepcopy(gan)
        torch.manual_seed(1)
        step = Adversarial(copied, critic_optimizer=functools.partial(torch.optim.Adam, lr=2e-4, fused=fused))
        for _ in range(10):
            step.step(x)
        moved.append((copied.discriminator.conv.weight - gan.discriminator.conv.weight).flatten().detach())
    assert torch.cosine_similarity(*moved, 0) > 0.999
