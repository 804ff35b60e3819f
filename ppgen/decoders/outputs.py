"""From the output of a network to the parameters of a distribution of the data.

Where a decoder needs P numbers for each number of the data, the network's output has P times as many channels (for a
vector: entries), all channels of the first parameter before those of the second. ``Decoder.outputs_shape(shape)``
says what that makes.
"""

from __future__ import annotations

from math import log, prod

from torch import Tensor, nn

from ppgen.nn import as_shape
from ppgen.nn.shapes import Shape


def event_rank(net: nn.Module) -> int:
    """Number of axes of the data: what the network states, otherwise 1."""
    return len(getattr(net, "out_shape", (1,)))


def widen(shape: Shape, factor: int) -> tuple[int, ...]:
    """The shape with ``factor`` times as many channels."""
    channels, *rest = as_shape(shape)
    return (factor * channels, *rest)


def check_channels(owner: str, net: nn.Module, factor: int) -> None:
    """Raises a ValueError if the network states a number of channels that is no multiple of ``factor``."""
    out_shape = getattr(net, "out_shape", None)
    if out_shape is not None and out_shape[0] % factor:
        raise ValueError(
            f"{owner} needs {factor} numbers for each number of the data, so {factor} times as many channels, but "
            f"net.out_shape is {tuple(out_shape)}: outputs_shape(shape of the data) says what to make it."
        )


def parameters(owner: str, output: Tensor, factor: int, rank: int) -> Tensor:
    """The network's output (*, P C, ...) as (*, P, C, ...), the parameters on axis -1 - rank."""
    if output.dim() < rank or output.shape[-rank] % factor:
        raise ValueError(
            f"{owner} needs {factor} numbers for each number of the data, but the network gave a tensor of shape "
            f"{tuple(output.shape)}: axis {-rank} must be a multiple of {factor}."
        )
    return output.unflatten(-rank, (factor, -1))


def bits_per_dim(log_prob: Tensor, shape: Shape) -> Tensor:
    r"""Bits per dimension of log-likelihoods in nats.

    .. math:: -\frac{\log p(x)}{D \log 2}

    Meant for probabilities of integer levels, such as 8-bit images, with decoders that give exact probabilities.

    Args:
        log_prob: nats, of any shape.
        shape: event shape of the data, of D numbers in all.

    Shape:
        that of ``log_prob``.

    Example:
        >>> import torch
        >>> from ppgen.decoders import bits_per_dim
        >>> uniform = -3 * 32 * 32 * torch.tensor(256.0).log()
        >>> bits_per_dim(uniform, (3, 32, 32))
        tensor(8.)
    """
    return -log_prob / (prod(as_shape(shape)) * log(2))
