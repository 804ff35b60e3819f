"""Networks: event shapes in and out, any number of leading axes, several contexts."""

import re
from math import prod

import pytest
import torch
from torch import nn as torch_nn

from ppgen import nn


def test_concat_returns_a_single_context_as_it_is_and_joins_several():
    image = torch.randn(2, 1, 4, 4)
    assert nn.concat(image) is image
    z, y = torch.randn(5, 3, 4), torch.randn(3, 2)
    joined = nn.concat(z, y)
    assert joined.shape == (5, 3, 6)
    assert torch.equal(joined[..., :4], z) and torch.equal(joined[2, :, 4:], y)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ((), "at least one context"),
        ((torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)), "one_hot"),
        ((torch.zeros(3, 4), torch.zeros(())), "context 1 has shape"),
        ((torch.zeros(3, 1, 8, 8), torch.zeros(3, 10)), "context_dim"),
    ],
)
def test_concat_says_what_cannot_be_joined(context, message):
    with pytest.raises(ValueError, match=message):
        nn.concat(*context)


def test_feed_hands_contexts_to_a_network_that_takes_them_and_joins_them_for_one_that_does_not():
    class Two(torch_nn.Module):
        def forward(self, x, y):
            return (x.shape, y.shape)

    x, y = torch.zeros(3, 4), torch.zeros(3, 2)
    assert nn.feed(Two(), x, y) == (x.shape, y.shape)
    assert nn.feed(torch_nn.Sequential(torch_nn.Linear(6, 5)), x, y).shape == (3, 5)
    assert nn.feed(lambda a: a, x) is x
    assert nn.feed(lambda a: a.shape, x, y) == (3, 6)


def test_batched_gives_what_a_loop_over_the_leading_axes_gives():
    convolution = torch_nn.Conv2d(2, 3, 3)
    x = torch.randn(4, 5, 2, 8, 8)
    expected = torch.stack([convolution(part) for part in x])
    torch.testing.assert_close(nn.batched(convolution, x, 3), expected)
    assert nn.batched(convolution, x[0, 0], 3).shape == (3, 6, 6)


NETWORKS = {
    "mlp": lambda i, o, **k: nn.MLP(i, 16, o, **k),
    "mlp, linear": lambda i, o, **k: nn.MLP(i, o, **k),
    "gated mlp": lambda i, o, **k: nn.GatedMLP(i, 16, 16, o, **k),
}
SHAPES = [(7, 5), ((7,), (2, 3)), ((1, 4, 4), 5), (6, (3, 4, 4)), ((2, 4, 3), (1, 4, 4))]


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(("in_shape", "out_shape"), SHAPES)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (1, 0, 3)])
def test_a_network_maps_events_over_any_leading_axes(make, in_shape, out_shape, lead):
    net = make(in_shape, out_shape)
    assert net.in_shape == nn.as_shape(in_shape) and net.out_shape == nn.as_shape(out_shape)
    x = torch.randn(*lead, *net.in_shape)
    y = net(x)
    assert y.shape == (*lead, *net.out_shape)
    if prod(lead):
        first = net(x.reshape(-1, *net.in_shape)[0])
        torch.testing.assert_close(y.reshape(-1, *net.out_shape)[0], first)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_every_parameter_matters(make):
    net = make((1, 4, 4), 5, context_dim=3)
    net(torch.randn(6, 1, 4, 4), torch.randn(6, 3)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_contexts_change_the_output_and_broadcast(make):
    for in_shape in (8, (1, 4, 2)):
        net = make(in_shape, 5, context_dim=3)
        x, y = torch.randn(6, *net.in_shape), torch.randn(4, 1, 3)
        assert net(x, y).shape == (4, 6, 5)
        assert not torch.allclose(net(x, y)[0], net(x, y)[1])


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_integer_levels_are_mapped_to_the_unit_interval(make):
    levels, plain = make(4, 3, levels=256), make(4, 3)
    plain.load_state_dict(levels.state_dict())
    x = torch.tensor([[0, 255, 51, 128]], dtype=torch.uint8)
    expected = plain(torch.tensor([[-1.0, 1.0, -0.6, 256 / 255 - 1]]))
    torch.testing.assert_close(levels(x), expected)
    torch.testing.assert_close(levels(x.float()), expected)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(
    ("in_shape", "given"),
    [(784, (5, 28, 28)), ((1, 28, 28), (5, 784)), ((1, 28, 28), (5, 1, 28, 27)), (784, ())],
)
def test_an_event_of_another_shape_is_an_error_that_states_both(make, in_shape, given):
    net = make(in_shape, 5)
    with pytest.raises(ValueError) as error:
        net(torch.zeros(given))
    assert str(given) in str(error.value) and str(nn.as_shape(in_shape)) in str(error.value)


IMAGES = [(1, 28, 28), (3, 32, 32), (1, 28, 20), (1, 8, 8), (2, 7, 5)]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_convolutional_networks_take_and_give_images_of_any_size(image, gated):
    torch.manual_seed(0)
    options = {"hidden": (64,), "gated": gated, "context_dim": 2}
    encoder = nn.ConvNet(image, 5, channels=(8, 16), **options)
    decoder = nn.DeconvNet(5, (2 * image[0], *image[1:]), channels=(16, 8), **options)
    assert encoder.in_shape == image and encoder.out_shape == (5,) == decoder.in_shape
    x, y = torch.randn(2, 3, *image), torch.randn(3, 2)
    h = encoder(x, y)
    assert h.shape == (2, 3, 5)
    torch.testing.assert_close(h[1, 2], encoder(x[1, 2], y[2]), rtol=1e-4, atol=1e-5)
    out = decoder(h, y)
    assert out.shape == (2, 3, *decoder.out_shape)
    torch.testing.assert_close(out[1, 2], decoder(h[1, 2], y[2]), rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    for net in (encoder, decoder):
        assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())
        assert 1e-3 < out.std() < 10
    assert decoder(h[:0], y).shape == (0, 3, *decoder.out_shape)


def test_convolutional_networks_rescale_levels_and_refuse_other_events():
    net = nn.ConvNet((1, 8, 8), 5, channels=(4,), levels=256)
    x = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    plain = nn.ConvNet((1, 8, 8), 5, channels=(4,))
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(x), plain(x.float() / 127.5 - 1))
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*\(3, 64\)"):
        net(torch.zeros(3, 64))
    with pytest.raises(ValueError, match=r"add up to 64"):
        plain(torch.zeros(3, 1, 8, 8), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="in_shape must be an image"):
        nn.ConvNet(784, 5)
    with pytest.raises(ValueError, match="out_shape must be an image"):
        nn.DeconvNet(5, 784)
    with pytest.raises(ValueError, match="odd"):
        nn.DeconvNet(5, (1, 8, 8), kernel_size=4)


def test_bad_sizes_are_errors():
    with pytest.raises(ValueError, match=r"MLP\(784\) states no output"):
        nn.MLP(784)
    for bad in (0, -3, 2.5, (), (1, 0), True):
        with pytest.raises(ValueError, match="event shape"):
            nn.MLP(784, 300, bad)


@pytest.mark.parametrize(
    ("make", "meant"),
    [
        (lambda: nn.MLP(4, [300, 300], 2), "MLP(4, 300, 300, 2)"),
        (lambda: nn.GatedMLP((1, 2, 2), 8, (3, 3), 2), "GatedMLP((1, 2, 2), 8, 3, 3, 2)"),
        (lambda: nn.GatedBranches([4, 2], [8, 8], 2), "GatedBranches([4, 2], 8, 8, 2)"),
        (lambda: nn.GatedBranches([4, 2], 8, [8], (1, 2, 2)), "GatedBranches([4, 2], 8, 8, (1, 2, 2))"),
    ],
)
def test_a_list_of_hidden_widths_is_not_taken_for_one_layer(make, meant):
    with pytest.raises(ValueError, match="a hidden width is a whole number, got .*" + re.escape(meant)):
        make()


def test_gated_layers_are_linear_times_gate_and_keep_the_scale_of_the_signal():
    layer = nn.GatedLinear(4, 3)
    x = torch.randn(5, 4)
    torch.testing.assert_close(layer(x), layer.linear(x) * torch.sigmoid(layer.gate(x)))
    torch.manual_seed(0)
    out = nn.GatedMLP(784, 300, 300, 80)(torch.bernoulli(torch.full((200, 784), 0.13)))
    assert 0.05 < out.std() < 2


def test_gated_branches():
    net = nn.GatedBranches([(1, 2, 3), 4], 5, 6, (2, 2), levels=16)
    x, z = torch.randint(16, (7, 1, 2, 3), dtype=torch.uint8), torch.randn(3, 7, 4)
    (a, b), joint = net.first, net.joint
    read = a(x.flatten(1) * (2 / 15) - 1), b(z)
    by_hand = joint(torch.cat([read[0].expand(3, 7, 5), read[1]], -1))
    assert net(x, z).shape == (3, 7, 2, 2)
    assert torch.allclose(net(x, z), by_hand)
    assert net.in_shape == (1, 2, 3) and net.out_shape == (2, 2)
    with pytest.raises(ValueError, match=r"takes 2 inputs.*but was given 1"):
        net(x)
    with pytest.raises(ValueError, match=r"input 1 of GatedBranches.*\(4,\).*\(7, 3\)"):
        net(x, torch.zeros(7, 3))
    with pytest.raises(ValueError, match="width of the first layers"):
        nn.GatedBranches([4, 4], 5)
