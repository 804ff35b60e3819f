"""Networks in raster order: causality for every pixel and channel, densities that sum to 1, sampling by columns."""

import copy
import itertools
import math
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ppgen import decoders, models, nn
from ppgen.distributions import marginal
from ppgen.inference import fit, log_likelihood, sample

# Small networks of each kind, as functions of the shapes and of what else they take. Adding a line here tests a new one
# everywhere. All but the masked PixelCNN and the Row LSTM see every earlier pixel of a 4 × 5 image.
NETWORKS = {
    "PixelCNN": lambda *a, **o: nn.PixelCNN(*a, channels=4, num_layers=4, first_kernel_size=3, **o),
    "GatedPixelCNN": lambda *a, **o: nn.GatedPixelCNN(*a, channels=4, num_layers=3, first_kernel_size=5, **o),
    "PixelCNN++": lambda *a, **o: nn.PixelCNNPlusPlus(*a, channels=4, num_blocks=1, num_scales=3, **o),
    "Row LSTM": lambda *a, **o: nn.PixelRNN(*a, nn.RowLSTM, channels=4, num_layers=2, first_kernel_size=3, **o),
    "Diagonal BiLSTM": lambda *a, **o: nn.PixelRNN(*a, channels=4, num_layers=1, first_kernel_size=3, **o),
}
SEEING_ALL = ["GatedPixelCNN", "PixelCNN++", "Diagonal BiLSTM"]
EVERY = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def influences(net, *context):
    """Which elements of the image (columns) each element of the output (rows) depends on, by gradients at a few images.

    At one image alone, rectifiers that are off could hide an influence.
    """
    net, seen = net.double(), False
    for x in torch.randn(4, *net.in_shape, dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(lambda x: net(x, *context), x, vectorize=True)
        seen = seen | (jacobian.reshape(math.prod(net.out_shape), -1) != 0)
    return seen


def orders(channels, height, width):
    """The place of each element in the order in which they are drawn: pixel by pixel, in it channel by channel."""
    pixel = torch.arange(height * width)
    return (pixel * channels + torch.arange(channels)[:, None]).reshape(-1)


@EVERY
@pytest.mark.parametrize("channels", [1, 3])
def test_no_output_sees_its_own_element_or_a_later_one(network, channels):
    parameters = 2  # of each element
    net = network((channels, 4, 5), (parameters * channels, 4, 5))
    order = orders(channels, 4, 5)
    seen = influences(net).reshape(parameters, -1, len(order))
    earlier = order[None, :] < order[:, None]
    for each in seen:
        assert not (each & ~earlier).any()


@pytest.mark.parametrize("name", SEEING_ALL)
def test_there_is_no_blind_spot(name):
    net = NETWORKS[name]((3, 4, 5), (3, 4, 5))
    order = orders(3, 4, 5)
    assert torch.equal(influences(net), order[None, :] < order[:, None])


def test_the_masked_stack_has_its_blind_spot():
    """Kernels of 3 lose a column a row: whatever the depth, nothing above to the right of a diagonal is seen."""
    net = nn.PixelCNN((1, 4, 5), (1, 4, 5), channels=4, num_layers=12, first_kernel_size=3)
    seen = influences(net).reshape(4, 5, 4, 5)[3, 0]
    assert seen[2, 1] and not seen[2, 2] and not seen[2, 4] and seen[0, 2]
    wide = nn.GatedPixelCNN((1, 4, 5), (1, 4, 5), channels=4, num_layers=4, first_kernel_size=3)
    assert influences(wide).reshape(4, 5, 4, 5)[3, 0, :3].all()


@EVERY
def test_channels_may_be_left_to_the_output(network):
    net = network((3, 3, 3), (5, 3, 3), channels_in_turn=False)
    seen = influences(net).reshape(5, 9, 3, 9)
    pixel = torch.arange(9)
    assert not (seen & ~(pixel[None, :] < pixel[:, None])[None, :, None]).any()
    assert seen[:, 4, :, 3].all()


def densities(network, shape, **options):
    """A decoder for each kind of output, with the number of its levels."""
    bernoulli = network(shape, decoders.Bernoulli.outputs_shape(shape), levels=2, **options)
    categorical = network(shape, decoders.Categorical.outputs_shape(shape, 3), levels=3, **options)
    codes = network(shape, decoders.Categorical.outputs_shape(shape, 3), categories=3, **options)
    out = decoders.LogisticMixture.outputs_shape(shape, num_components=2)
    logistics = network(shape, out, levels=3, channels_in_turn=False, **options)
    return {
        "binary": (2, decoders.Bernoulli(bernoulli)),
        "levels": (3, decoders.Categorical(categorical, 3)),
        "codes": (3, decoders.Categorical(codes, 3)),
        "logistics": (3, decoders.LogisticMixture(logistics, shape[0], num_components=2, num_levels=3)),
    }


@EVERY
@pytest.mark.parametrize("kind", ["binary", "levels", "codes", "logistics"])
@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 1, 3), (3, 2, 1)])
def test_probabilities_of_all_images_sum_to_one(network, kind, shape):
    num_levels, output = densities(network, shape)[kind]
    for parameter in output.parameters():  # away from a start at which everything is alike
        torch.nn.init.normal_(parameter, std=0.5)
    everything = torch.tensor(list(itertools.product(range(num_levels), repeat=math.prod(shape)))).float()
    log_prob = decoders.Autoregressive(output)().log_prob(everything.reshape(-1, *shape))
    assert log_prob.exp().std() > 1e-5
    torch.testing.assert_close(log_prob.double().logsumexp(0).exp().item(), 1.0, atol=1e-4, rtol=0)


def conditional(network, kind="levels", shape=(2, 4, 5)):
    """A conditional density on a vector and a map, in double precision: sums in another order shall not decide."""
    _, output = densities(network, shape, context_shapes=[3, (2, 2, 3)])[kind]
    for parameter in output.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return decoders.Autoregressive(output).double()


def contexts(*lead):
    return torch.randn(*lead, 3, dtype=torch.float64), torch.randn(*lead, 2, 2, 3, dtype=torch.float64)


@EVERY
@pytest.mark.parametrize("kind", ["binary", "levels", "codes", "logistics"])
def test_incremental_sampling_draws_what_naive_sampling_draws(network, kind):
    d = conditional(network, kind)(*contexts(6))
    torch.manual_seed(1)
    by_columns = d.sample()
    after = torch.rand(())
    torch.manual_seed(1)
    assert torch.equal(by_columns, d.sample(incremental=False))
    assert torch.equal(after, torch.rand(())), "the two consume different amounts of noise"
    assert by_columns.unique().numel() == densities(network, (2, 4, 5))[kind][0]


@EVERY
@pytest.mark.parametrize("kind", ["levels", "logistics"])
def test_what_is_replayed_draws_the_same_on_images_of_many_rows(network, kind):
    """After two periods everything is a replay: nine rows of the network with the longest, four."""
    output = densities(network, (2, 11, 6), context_shapes=[3, (2, 11, 3)])[kind][1]
    for parameter in output.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    context = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 2, 11, 3, dtype=torch.float64)
    d = decoders.Autoregressive(output).double()(*context)
    torch.manual_seed(1)
    by_columns = d.sample()
    torch.manual_seed(1)
    assert torch.equal(by_columns, d.sample(incremental=False))


@EVERY
def test_columns_are_drawn_under_autocast(network):
    """Where products are in bfloat16, what is remembered stays in the weights' own type."""
    output = densities(network, (2, 11, 6))["logistics"][1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = decoders.Autoregressive(output)().sample((3,))
    assert x.dtype == torch.float32 and torch.equal(x, x.round()) and x.unique().numel() > 1


def test_a_network_without_a_period_is_never_replayed():
    net = nn.PixelCNN((1, 2, 9), (1, 2, 9), channels=4, num_layers=2, first_kernel_size=3)
    del net.period
    d = decoders.Autoregressive(decoders.Bernoulli(net)).double()()
    calls = []
    net.head.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(1)
    by_columns = d.sample((5,))
    assert len(calls) == 18
    torch.manual_seed(1)
    assert torch.equal(by_columns, d.sample((5,), incremental=False))


@EVERY
def test_columns_are_the_networks_own_parameters(network):
    from ppgen.nn.raster import Incremental

    net = conditional(network).output.net
    x, context = torch.randint(3, (6, 2, 4, 5)).double(), contexts(6)
    with torch.no_grad():
        expected = net(x, *context)
        run, before = Incremental(net, context, 6), None
        for i in range(4):
            run.row(i, x[:, :, i - 1 : i] if i else None)
            for j in range(5):
                run.pixel(j, before)
                before = x[:, :, i : i + 1, j : j + 1]
                torch.testing.assert_close(run.parameters(before)[:, :, 0, 0], expected[:, :, i, j])


@EVERY
def test_an_image_is_drawn_at_the_cost_of_scoring_one(network):
    """In products and sums: each pixel's column of the network is computed once."""
    net = network((1, 8, 8), (1, 8, 8))
    d = decoders.Autoregressive(decoders.Bernoulli(net))()
    with FlopCounterMode(display=False) as scored, torch.no_grad():
        d.log_prob(torch.zeros(3, 1, 8, 8))
    with FlopCounterMode(display=False) as drawn:
        d.sample((3,))
    assert 0.5 < drawn.get_total_flops() / scored.get_total_flops() < 1.5


@EVERY
def test_every_parameter_and_context_has_a_gradient(network):
    decoder, (y, s) = conditional(network), contexts(3)
    y.requires_grad_(), s.requires_grad_()
    decoder(y, s).log_prob(torch.randint(3, (3, 2, 4, 5)).double()).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in decoder.parameters())
    assert y.grad.abs().min() > 0 and s.grad.abs().min() > 0


def test_a_drawn_image_follows_the_density():
    torch.manual_seed(0)
    _, output = densities(NETWORKS["GatedPixelCNN"], (1, 2, 2))["binary"]
    for parameter in output.parameters():
        torch.nn.init.normal_(parameter, std=1.5)
    d = decoders.Autoregressive(output)()
    everything = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).reshape(-1, 1, 2, 2)
    expected = d.log_prob(everything).exp().detach()
    index = (d.sample((20_000,)).flatten(1) @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long()
    found = index.bincount(minlength=16) / 20_000
    assert expected.max() > 0.15
    torch.testing.assert_close(found, expected, atol=0.015, rtol=0)


def test_shapes_broadcast_and_expand():
    decoder = conditional(NETWORKS["GatedPixelCNN"])
    y, s = contexts(4)
    x = torch.randint(3, (4, 2, 4, 5)).double()
    particles = decoder(torch.stack([y, y + 1]), s)
    assert particles.batch_shape == (2, 4) and particles.event_shape == (2, 4, 5)
    log_prob = particles.log_prob(x)
    torch.testing.assert_close(log_prob, torch.stack([decoder(y, s).log_prob(x), decoder(y + 1, s).log_prob(x)]))
    with torch.no_grad():  # in blocks
        torch.testing.assert_close(particles.expand((200, 2, 4)).log_prob(x)[7], log_prob)
    assert particles.expand((3, 2, 4)).sample((5,)).shape == (5, 3, 2, 4, 2, 4, 5)


@pytest.mark.parametrize("kind", ["levels", "codes", "logistics"])
def test_levels_of_any_type(kind):
    _, output = densities(NETWORKS["PixelCNN++"], (3, 4, 4))[kind]
    d, x = decoders.Autoregressive(output)(), torch.randint(3, (5, 3, 4, 4))
    assert torch.equal(d.log_prob(x.to(torch.uint8)), d.log_prob(x.float()))


def test_other_arrangements_of_the_same_elements():
    net = NETWORKS["GatedPixelCNN"]((1, 3, 4), (5, 3, 4), categories=5, context_shapes=[10])
    grid = decoders.Autoregressive(decoders.Categorical(net, 5), event_shape=(3, 4))
    codes, y = torch.randint(5, (7, 3, 4)), torch.eye(10)[:7]
    image = decoders.Autoregressive(decoders.Categorical(net, 5))
    assert torch.equal(grid(y).log_prob(codes), image(y).log_prob(codes[:, None]))
    assert grid(y).sample().shape == (7, 3, 4)
    assert grid(y).support.event_dim == 2 and bool(grid(y).support.check(codes).all())
    assert not bool(grid(y).support.check(codes + 5).any())


@EVERY
def test_as_a_density_it_is_trained_scored_and_sampled(network):
    x = torch.zeros(20, 1, 4, 4)
    x[::2, :, :2], x[1::2, :, 2:] = 1.0, 1.0  # two pictures: at best log 2 nats each, 16 log 2 at the start
    pair = models.ExplicitDensity(decoders.Autoregressive(decoders.Bernoulli(network((1, 4, 4), (1, 4, 4)))))
    fit(pair, x, epochs=80, batch_size=20, seed=0, progress=False, optimizer=lambda p: torch.optim.Adam(p, 3e-2))
    estimate = log_likelihood(pair, x, num_samples=1)
    assert estimate.reliable.all() and -4 < estimate.mean < -0.69
    drawn = sample(pair, 100, seed=0)
    kinds = [(drawn == x[i]).all((1, 2, 3)).sum().item() / 100 for i in (0, 1)]
    expected = estimate.values[:2].exp().float()
    torch.testing.assert_close(torch.tensor(kinds), expected, atol=0.17, rtol=0)  # over three standard errors


@EVERY
def test_states_are_saved_and_copied(network):
    decoder, other = conditional(network), conditional(network)
    x, context = torch.randint(3, (3, 2, 4, 5)).double(), contexts(3)
    assert not torch.equal(other(*context).log_prob(x), decoder(*context).log_prob(x))
    other.load_state_dict(decoder.state_dict())
    assert torch.equal(other(*context).log_prob(x), decoder(*context).log_prob(x))
    assert torch.equal(copy.deepcopy(decoder)(*context).log_prob(x), decoder(*context).log_prob(x))


def test_labels_decide_what_is_drawn():
    y = torch.eye(2).repeat(60, 1)
    x = y[:, :1, None, None].expand(-1, 1, 3, 3)
    net = nn.GatedPixelCNN((1, 3, 3), (1, 3, 3), channels=8, num_layers=2, context_shapes=[2])
    pair = models.ExplicitDensity(decoders.Autoregressive(decoders.Bernoulli(net)))
    fit(pair, (x, y), epochs=60, batch_size=60, seed=0, progress=False, optimizer=lambda p: torch.optim.Adam(p, 1e-2))
    drawn = sample(pair, 10, torch.eye(2).repeat(5, 1), seed=0)
    assert drawn[::2].mean() > 0.9 and drawn[1::2].mean() < 0.1


def test_an_image_is_continued_from_its_upper_half():
    decoder = conditional(NETWORKS["GatedPixelCNN"])
    d = decoder(*contexts(3))
    known = torch.arange(4)[:, None].expand(4, 5) < 2
    x = torch.randint(3, (3, 2, 4, 5)).double()
    one, other = d.draw(x, known=known), d.draw(x, known=known)
    assert torch.equal(one[:, :, :2], x[:, :, :2]) and not torch.equal(one, other)


def test_masks_are_refused_with_the_reason():
    net = nn.GatedPixelCNN((1, 3, 3), (1, 3, 3), channels=4, num_layers=2)
    decoder = decoders.Autoregressive(decoders.Bernoulli(net))
    mask = torch.ones(5, 1, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="AutoregressiveImage has no exact marginal, since its elements depend"):
        marginal(decoder(), mask)
    with pytest.raises(ValueError, match="cannot be integrated out"):
        log_likelihood(models.ExplicitDensity(decoder), torch.zeros(5, 1, 3, 3), mask=mask, num_samples=1)


def test_progress_is_shown_when_asked_for(capsys):
    net = nn.GatedPixelCNN((1, 3, 3), (1, 3, 3), channels=4, num_layers=2)
    decoder = decoders.Autoregressive(decoders.Bernoulli(net))
    decoder().sample((2,))
    assert capsys.readouterr().err == ""
    decoder.progress = True
    sample(models.ExplicitDensity(decoder), 2, seed=0)
    assert "9/9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "error", "fact"),
    [
        (lambda: nn.GatedPixelCNN((1, 4, 4), (1, 4, 5)), ValueError, "in_shape is (1, 4, 4) and out_shape (1, 4, 5)"),
        (lambda: nn.GatedPixelCNN(16, 16), ValueError, "(C, H, W)"),
        (lambda: nn.PixelCNN((1, 4, 4), (1, 4, 4), kernel_size=4), ValueError, "kernel_size must be odd"),
        (lambda: nn.PixelCNN((3, 4, 4), (10, 4, 4)), ValueError, "channels_in_turn=False"),
        (lambda: nn.PixelCNN((1, 4, 4), (1, 4, 4), levels=4, categories=4), ValueError, "exclude each other"),
        (lambda: nn.PixelCNN((1, 4, 4), (1, 4, 4), context_shapes=[(3, 4)]), ValueError, "(3, 4)"),
        (
            lambda: decoders.Autoregressive(decoders.Bernoulli(nn.MLP(4, 4))),
            TypeError,
            "Bernoulli of MLP",
        ),
        (
            lambda: decoders.Autoregressive(
                decoders.LogisticMixture(nn.PixelCNN((2, 4, 4), (30, 4, 4), levels=256), 2, num_components=5)
            ),
            ValueError,
            "channels_in_turn=False",
        ),
        (
            lambda: decoders.Autoregressive(decoders.Bernoulli(nn.PixelCNN((1, 4, 4), (1, 4, 4))), event_shape=(4, 5)),
            ValueError,
            "(4, 5) has 20 elements",
        ),
        (
            lambda: nn.PixelCNN((1, 4, 4), (1, 4, 4), context_shapes=[3])(torch.zeros(2, 1, 4, 4), torch.zeros(2, 5)),
            ValueError,
            "(2, 5)",
        ),
        (
            lambda: decoders.Autoregressive(decoders.Bernoulli(nn.PixelCNN((1, 4, 4), (1, 4, 4))))(torch.zeros(2, 5)),
            ValueError,
            "takes 0 contexts",
        ),
        (lambda: nn.PixelCNN((1, 4, 4), (1, 4, 4))(torch.zeros(2, 1, 5, 4)), ValueError, "(2, 1, 5, 4)"),
    ],
)
def test_what_does_not_fit_is_said(make, error, fact):
    with pytest.raises(error, match=re.escape(fact)):
        make()
