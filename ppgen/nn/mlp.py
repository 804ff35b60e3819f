"""Dense networks over events of any shape."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from ppgen.numbers import natural_number

from .levels import input_levels, rescale
from .shapes import Shape, as_shape, flatten_event, hidden_widths


class MLP(nn.Module):
    r"""Multi-layer perceptron from one event shape to another.

    .. math:: h_0 = x, \quad h_{l+1} = a(W_l h_l + b_l), \quad y = W_L h_L + b_L

    The first and the last argument are event shapes: an integer is a vector, a tuple is flattened on the way in
    and restored on the way out. Everything in front of the event (particles, enumeration, data) broadcasts.

    Args:
        in_shape: event shape of the input, such as 784 or (1, 28, 28).
        sizes: widths of the hidden layers, then the event shape of the output.
        activation: constructor of the activation :math:`a`.
        context_dim: numbers that further contexts bring (a label, say), joined to the flattened input.
        levels: if given, the input holds integer levels 0, ..., levels - 1, which are mapped to [-1, 1].
        layer: constructor of a hidden layer from its widths; by default linear, then the activation.

    Shape:
        (\*, \*in_shape) and contexts (\*, D) to (\*, \*out_shape).

    Raises:
        ValueError: no output shape is given, a size is not positive, a hidden width is a list, or an input's event has
            another shape.

    Example:
        >>> import torch
        >>> net = MLP((1, 28, 28), 300, 300, 80)
        >>> net(torch.zeros(5, 100, 1, 28, 28)).shape
        torch.Size([5, 100, 80])
        >>> MLP(40, 300, (1, 28, 28))(torch.zeros(100, 40)).shape
        torch.Size([100, 1, 28, 28])
        >>> conditional = MLP((1, 28, 28), 300, 80, context_dim=10)
        >>> conditional(torch.zeros(100, 1, 28, 28), torch.zeros(100, 10)).shape
        torch.Size([100, 80])
    """

    def __init__(
        self,
        in_shape: Shape,
        *sizes: Shape,
        activation: Callable[[], nn.Module] = nn.ReLU,
        context_dim: int = 0,
        levels: int | None = None,
        layer: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if not sizes:
            raise ValueError(
                f"{type(self).__name__}({in_shape!r}) states no output: after the input's shape come the widths of "
                "the hidden layers and the output's shape, as in MLP(784, 300, 300, 80)."
            )
        if layer is None:

            def layer(width_in: int, width_out: int) -> nn.Module:
                return nn.Sequential(nn.Linear(width_in, width_out), activation())

        self.in_shape = as_shape(in_shape, "in_shape")
        self.out_shape = as_shape(sizes[-1], "out_shape")
        self.context_dim = natural_number("context_dim", context_dim)
        self.levels = input_levels(levels)
        widths = [prod(self.in_shape) + context_dim, *hidden_widths(type(self).__name__, in_shape, sizes)]
        self.hidden = nn.Sequential(*(layer(a, b) for a, b in pairwise(widths)))
        self.output = nn.Linear(widths[-1], prod(self.out_shape))

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        width = prod(self.in_shape) + self.context_dim
        x = rescale(x, self.levels, self.output.weight.dtype)
        x = flatten_event(x, context, self.in_shape, width, f"{type(self).__name__}(in_shape={self.in_shape})")
        return self.output(self.hidden(x)).unflatten(-1, self.out_shape)

    def extra_repr(self) -> str:
        return f"in_shape={self.in_shape}, out_shape={self.out_shape}"
