"""Gradients of unit length: an optimiser sees each parameter's gradient divided by its own norm."""

from __future__ import annotations

from typing import Any

import torch

from ppgen.numbers import positive_number

__all__ = ["normalize_gradients"]


def normalize_gradients(optimizer: torch.optim.Optimizer, eps: float = 1e-7) -> torch.optim.Optimizer:
    r"""An optimiser whose gradients are divided by their L2 norm, parameter tensor by parameter tensor.

    .. math:: g_i \leftarrow \frac{g_i}{\lVert g_i \rVert_2 + \varepsilon}

    Before Adam this leaves the size of a step as it is and takes from its averages what a few large gradients would
    weigh. The optimiser of the VampPrior paper's experiments is Adam so treated.

    References:
        VAE with a VampPrior (Tomczak and Welling, 2018), https://arxiv.org/abs/1705.07120
        Block-Normalized Gradient Method (Yu et al., 2017), https://arxiv.org/abs/1707.04822

    Args:
        optimizer: any of torch's, fused ones among them. It is changed, and returned.
        eps: added to each norm, so that a gradient of zero stays zero.

    Raises:
        TypeError: something else than a torch optimiser.
        ValueError: ``eps`` is not positive.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = normalize_gradients(torch.optim.SGD([weight], lr=1.0))
        >>> weight.grad = torch.tensor([30.0, 40.0])
        >>> optimizer.step()
        >>> weight.data
        tensor([-0.6000, -0.8000])
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"normalize_gradients takes a torch optimiser, such as Adam(...), got {optimizer!r}.")
    positive_number("eps", eps)  # or a gradient of zero would be divided by zero

    def normalize(optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(parameter.grad.norm() + eps)

    optimizer.register_step_pre_hook(normalize)
    return optimizer
