r"""Model/guide pairs: what every other part of the library sees of a program.

A *pair* is anything with ``.model(*batch)`` and ``.guide(*batch)``, two Pyro programs in which each datum has its
place on axis −1 of one plate. This file holds the contract, the plate, and the adapter that lets any torch or zuko
distribution stand at a sample site.
"""

from __future__ import annotations

import itertools
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol, runtime_checkable

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.fx.experimental.proxy_tensor import get_proxy_mode

__all__ = ["Pair", "adapt", "data_plate", "expose_parameters", "observed", "sample", "tracing"]


@runtime_checkable
class Pair(Protocol):
    """A probabilistic program and its proposal: ``model(*batch)`` and ``guide(*batch)``.

    A pair that takes incomplete data has a keyword ``mask`` in both, True where the first member was observed.
    """

    def model(self, *batch: Any, **mask: Any) -> Any:
        """Draw latents and observe the batch."""

    def guide(self, *batch: Any, **mask: Any) -> Any:
        """Propose the latents of a batch."""


class _Adapted(TorchDistribution):
    """A torch or zuko distribution with what Pyro asks of one: callable, and expandable inside plates."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base: Distribution) -> None:
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch declares a class attribute
        return self.base.has_rsample

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return self.base.has_enumerate_support

    @property
    def support(self) -> Any:
        try:
            return self.base.support
        except NotImplementedError:
            return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self.base.mean

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Adapted:
        shape = torch.Size(batch_shape)
        return self if shape == self.batch_shape else _Adapted(self.base.expand(shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.base.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.base.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(value)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self.base.enumerate_support(expand=expand)

    def __repr__(self) -> str:
        return repr(self.base)


def adapt(distribution: Any) -> TorchDistributionMixin:
    """A Pyro distribution from Pyro's, torch's or zuko's.

    Raises:
        TypeError: what was given is not a distribution at all.

    Example:
        >>> d = adapt(torch.distributions.Normal(torch.zeros(3), 1.0))
        >>> d().shape
        torch.Size([3])
    """
    if isinstance(distribution, TorchDistributionMixin):
        return distribution
    if isinstance(distribution, Distribution):
        return _Adapted(distribution)
    raise TypeError(
        f"A conditional returned {type(distribution).__name__} where a distribution was expected: "
        "its forward(*context) must return a torch, Pyro or zuko distribution."
    )


def unadapted(distribution: Any) -> Any:
    """What :func:`adapt` was given, for code that asks a distribution for its type."""
    return distribution.base if isinstance(distribution, _Adapted) else distribution


def sample(name: str, distribution: Any, obs: Tensor | None = None, **options: Any) -> Tensor:
    """Pyro's ``sample`` statement for a distribution of any of the three libraries.

    Args:
        name: the site's name.
        distribution: a torch, Pyro or zuko distribution.
        obs: the observed value, if the site is observed.
        options: passed on to :func:`pyro.sample`, for example ``infer={"enumerate": "parallel"}``.
    """
    if isinstance(obs, Tensor) and obs.dtype == torch.bool:
        obs = obs.to(torch.get_default_dtype())  # no density has arithmetic for it
    try:
        return pyro.sample(name, adapt(distribution), obs=obs, **options)
    except ValueError as error:
        explain_axes(error)
        raise


def explain_axes(error: ValueError) -> None:
    """Raises what to do about a batch axis that is no plate's, once, where Pyro says that there is one."""
    if error.__cause__ is None and str(error).startswith("Shape mismatch inside plate"):
        raise ValueError(
            f"{error}: the batch axes of a site are those of its plates. Axes of one datum belong to the event: "
            "torch's Independent(d, n) or Pyro's d.to_event(n), or under a decoder a network that states what it "
            "gives, net.out_shape = (1, 8, 8). Rows are the rest, as many in each member of the batch."
        ) from error


def data_plate(*batch: Any) -> AbstractContextManager[Any]:
    """The plate ``data`` on axis −1, as long as the first member of the batch that is given.

    With nothing given there is no plate: one draw for each plate that is open around the call.

    Example:
        >>> with data_plate(None, torch.zeros(5, 2)):
        ...     x = pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))
        >>> x.shape
        torch.Size([5])
    """
    for member in batch:
        if member is not None:
            return pyro.plate("data", len(member), dim=-1)
    return nullcontext()


def observed(x: Tensor, mask: Tensor | None, *, seen_as: int | None = None) -> Tensor:
    r"""What an encoder sees of incomplete data: zeros where nothing was observed.

    Args:
        x: (N, \*event).
        mask: of the same shape, True where x was observed; None where all of it was.
        seen_as: if given, the mask follows as further channels (of a vector: entries), this number for True.

    Shape:
        (N, \*event), or with twice as many channels.

    Example:
        >>> observed(torch.tensor([[1.0, 2.0]]), torch.tensor([[True, False]]), seen_as=1)
        tensor([[1., 0., 1., 0.]])
    """
    seen = x if mask is None else torch.where(mask, x, torch.zeros_like(x))
    if seen_as is None:
        return seen
    wide = torch.promote_types(x.dtype, torch.int32)  # a level of 299 would be 43 to uint8
    return torch.cat([seen, seen_as * (torch.ones_like(x, dtype=wide) if mask is None else mask.to(wide))], 1)


def collects_parameters() -> bool:
    """Whether somebody outside (``pyro.infer.SVI``) is collecting ``param`` sites right now."""
    return any(isinstance(h, poutine.trace_messenger.TraceMessenger) and h.param_only for h in _PYRO_STACK)


def tracing() -> bool:
    """Whether this run is one whose tensor operations are written down, so that its Python does not run again."""
    return get_proxy_mode() is not None


_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_counter = itertools.count()


def expose_parameters(pair: nn.Module) -> None:
    """Registration of a pair's parameters with ``pyro.infer.SVI``, under a name of this instance's own.

    Pyro's ``SVI`` trains what ``param`` sites show it. A name shared by two instances would make the second train
    nothing, in silence; so every instance (a deepcopy too) has another. Does nothing, and leaves Pyro's global store
    alone, unless a collector of ``param`` sites is listening.
    """
    if collects_parameters():
        if pair not in _names:
            _names[pair] = f"{type(pair).__name__}-{next(_counter)}"
        pyro.module(_names[pair], pair)
