"""The published protocol: networks, optimiser and schedule."""

import torch
from torch import Tensor, nn

from ppgen.nn import GatedMLP


class GaussianEncoder(nn.Module):
    """Two gated layers, then a linear layer for the means and one for the log-variances."""

    def __init__(self, in_shape, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.in_shape, self.out_shape = in_shape, (2 * latent_dim,)
        self.loc = GatedMLP(in_shape, hidden, hidden, latent_dim)
        self.log_variance = nn.Linear(hidden, latent_dim)
        nn.init.kaiming_normal_(self.log_variance.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.loc.hidden(x.flatten(-len(self.in_shape)).to(self.log_variance.weight.dtype))
        return torch.cat([self.loc.output(h), self.log_variance(h) / 2], -1)
