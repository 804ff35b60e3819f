"""Residual networks between images and grids of other sizes."""

import pytest
import torch

from ppgen import nn


@pytest.mark.parametrize(
    ("large", "small"),
    [((28, 28), (7, 7)), ((28, 20), (4, 3)), ((5, 7), (3, 4)), ((6, 6), (6, 6)), ((1, 12), (1, 6)), ((12, 1), (6, 1))],
)
def test_residual_networks_go_both_ways(large, small):
    options = {"channels": 8, "num_blocks": 1}
    down = nn.ResidualConvNet((2, *large), (3, *small), **options)
    up = nn.ResidualConvNet((3, *small), (2, *large), **options)
    x = torch.randn(2, 5, 2, *large)
    assert down(x).shape == (2, 5, 3, *small)
    assert up(down(x)).shape == x.shape
    assert torch.allclose(down(x)[1, 3], down(x[1, 3]), atol=1e-5), "leading axes do not mix"
    up(down(x)).square().sum().backward()
    for net in (down, up):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_residual_networks_keep_places():
    down = nn.ResidualConvNet((1, 32, 32), (4, 8, 8), channels=8, num_blocks=1)
    x = torch.zeros(1, 1, 32, 32, requires_grad=True)
    down(x)[0, :, 1, 1].sum().backward()
    assert x.grad[0, 0, :16, :16].abs().sum() > 0
    assert not x.grad[0, 0, 24:, 24:].any()


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((28, 28), (4, 7, 7)), "in_shape must be an image"),
        (((1, 28, 28), 10), "out_shape must be an image"),
        (((1, 28, 28), (4, 6, 7)), r"\(6, 7\) is no halving of \(28, 28\)"),
        (((1, 28, 28), (4, 7, 14)), "is no halving"),
        (((1, 4, 6), (1, 8, 3)), r"\(4, 6\) is no halving of \(8, 3\).*both axes"),
        (((1, 2, 3), (1, 1, 6)), r"\(1, 6\) is no halving of \(2, 3\).*both axes"),
    ],
)
def test_residual_networks_between_other_shapes_are_refused(shapes, words):
    with pytest.raises(ValueError, match=words):
        nn.ResidualConvNet(*shapes)


def test_residual_networks_refuse_other_inputs():
    net = nn.ResidualConvNet((1, 8, 8), (4, 4, 4), context_shapes=[3])
    with pytest.raises(ValueError, match="takes 1 contexts"):
        net(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"events of shape \(3,\)"):
        net(torch.zeros(2, 1, 8, 8), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="context_shapes must be vectors or images"):
        nn.ResidualConvNet((1, 8, 8), (4, 4, 4), context_shapes=[(3, 3)])
