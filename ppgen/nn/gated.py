"""Dense networks of gated layers."""

from __future__ import annotations

from torch import Tensor, nn

from .mlp import MLP
from .shapes import Shape


class GatedLinear(nn.Module):
    r"""Linear layer times a sigmoid gate.

    .. math:: y = (W x + b) \odot \sigma(V x + c)

    References:
        Language Modeling with Gated Convolutional Networks (Dauphin et al., 2017), https://arxiv.org/abs/1612.08083

    Args:
        in_features: width of the input.
        out_features: width of the output.

    Shape:
        (\*, in_features) to (\*, out_features).

    Example:
        >>> import torch
        >>> GatedLinear(784, 300)(torch.zeros(100, 784)).shape
        torch.Size([100, 300])
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.gate = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.gate(x).sigmoid()


class GatedMLP(MLP):
    r"""Multi-layer perceptron whose hidden layers are gated.

    .. math:: h_{l+1} = (W_l h_l + b_l) \odot \sigma(V_l h_l + c_l), \quad y = W_L h_L + b_L

    The network of the VampPrior paper's experiments, its weights drawn by He's rule as there.

    References:
        VAE with a VampPrior (Tomczak and Welling, 2018), https://arxiv.org/abs/1705.07120

    Args:
        in_shape: event shape of the input, such as 784 or (1, 28, 28).
        sizes: widths of the hidden layers, then the event shape of the output.
        context_dim: numbers that further contexts bring (a label, say), joined to the flattened input.
        levels: if given, the input holds integer levels 0, ..., levels - 1, which are mapped to [-1, 1].

    Shape:
        (\*, \*in_shape) and contexts (\*, D) to (\*, \*out_shape).

    Raises:
        ValueError: no output shape is given, a size is not positive, or an input's event has another shape.

    Example:
        >>> import torch
        >>> GatedMLP((1, 28, 28), 300, 300, 80)(torch.zeros(100, 1, 28, 28)).shape
        torch.Size([100, 80])
    """

    def __init__(self, in_shape: Shape, *sizes: Shape, context_dim: int = 0, levels: int | None = None) -> None:
        super().__init__(in_shape, *sizes, context_dim=context_dim, levels=levels, layer=GatedLinear)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)
