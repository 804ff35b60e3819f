"""A dense network of several inputs, each read by a layer of its own."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from .gated import GatedLinear, GatedMLP
from .levels import input_levels, rescale
from .shapes import Shape, as_shape, check_event, concat, hidden_widths


class GatedBranches(nn.Module):
    r"""Gated multi-layer perceptron of several inputs, each with a first layer of its own.

    .. math:: h_i = (W_i x_i + b_i) \odot \sigma(V_i x_i + c_i), \quad y = \mathrm{GatedMLP}(h_1, \dots, h_I)

    The network of the VampPrior paper where an image meets a latent, or a latent another. Beside a network on the
    joined inputs it saves work: an image that many samples of a latent share is read once, not once a sample.

    References:
        VAE with a VampPrior (Tomczak and Welling, 2018), https://arxiv.org/abs/1705.07120

    Args:
        in_shapes: event shape of each input, such as [(1, 28, 28), 40].
        sizes: width of the first layers, widths of the hidden layers behind them, then the event shape of the output.
        levels: if given, the first input holds integer levels 0, ..., levels - 1, which are mapped to [-1, 1].

    Shape:
        (\*, \*in_shapes[i]), leading axes broadcast, to (\*, \*out_shape).

    Raises:
        ValueError: fewer than two sizes, a size that is not positive, another number of inputs than in_shapes has, or
            an input's event of another shape.

    Example:
        >>> import torch
        >>> net = GatedBranches([(1, 28, 28), 40], 300, 300, 80)
        >>> net(torch.zeros(100, 1, 28, 28), torch.zeros(5, 100, 40)).shape
        torch.Size([5, 100, 80])
    """

    def __init__(self, in_shapes: Sequence[Shape], *sizes: Shape, levels: int | None = None) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(
                f"GatedBranches({in_shapes!r}, ...) needs the width of the first layers and the output's shape, "
                f"as in GatedBranches([(1, 28, 28), 40], 300, 300, 80), but got the sizes {sizes}."
            )
        self.in_shapes = [as_shape(shape, "in_shapes") for shape in in_shapes]
        self.levels = input_levels(levels)
        width = hidden_widths("GatedBranches", in_shapes, sizes)[0]
        self.first = nn.ModuleList(GatedLinear(prod(shape), width) for shape in self.in_shapes)
        for module in self.first.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        self.joint = GatedMLP(width * len(self.first), *sizes[1:])
        self.in_shape, self.out_shape = self.in_shapes[0], self.joint.out_shape

    def forward(self, *inputs: Tensor) -> Tensor:
        if len(inputs) != len(self.in_shapes):
            raise ValueError(
                f"GatedBranches takes {len(self.in_shapes)} inputs, of shapes {self.in_shapes}, but was given "
                f"{len(inputs)}, of shapes {[tuple(x.shape) for x in inputs]}: hand over what is missing (the y of a "
                "batch (x, y), say), or build it with a shape for each."
            )
        read = []
        for i, (x, shape, layer) in enumerate(zip(inputs, self.in_shapes, self.first, strict=True)):
            check_event(x, shape, f"input {i} of GatedBranches(in_shapes={self.in_shapes})")
            x = rescale(x, self.levels if i == 0 else None, self.joint.output.weight.dtype)
            read.append(layer(x.flatten(-len(shape))))
        return self.joint(concat(*read))

    def extra_repr(self) -> str:
        return f"in_shapes={self.in_shapes}, out_shape={self.out_shape}"
