"""From the outputs of a network to the parameters of a distribution."""

from __future__ import annotations

from torch import Tensor, nn


def check_width(owner: str, net: nn.Module, needed: int) -> None:
    """Raises a ValueError if the network states another shape than a vector of ``needed`` outputs."""
    out_shape = getattr(net, "out_shape", None)
    if out_shape is not None and tuple(out_shape) != (needed,):
        raise ValueError(
            f"{owner} needs a network with {needed} outputs (num_outputs says so), but net.out_shape is "
            f"{tuple(out_shape)}: make {needed} its last size."
        )


def split(owner: str, outputs: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """A network's outputs, cut into pieces of the given sizes along the last axis."""
    if outputs.dim() == 0 or outputs.shape[-1] != sum(sizes):
        raise ValueError(
            f"{owner} needs a network with {sum(sizes)} outputs (num_outputs says so), but the network gave a tensor "
            f"of shape {tuple(outputs.shape)}: make {sum(sizes)} its last size."
        )
    return outputs.split(sizes, -1)
