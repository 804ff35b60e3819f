r"""Model/guide pairs: what every other part of the library sees of a program.

A *pair* is anything with ``.model(*batch)`` and ``.guide(*batch)``, two Pyro programs in which each datum has its
place on axis −1 of one plate. This file holds the contract, the plate, the adapter that lets any torch or zuko
distribution stand at a sample site, and :class:`Custom`, which makes a pair of two functions.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, ClassVar, Protocol, runtime_checkable

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.distributions import Distribution, constraints, transform_to
from torch.fx.experimental.proxy_tensor import get_proxy_mode

__all__ = ["Custom", "Pair", "adapt", "data_plate", "expose_parameters", "observed", "sample", "tracing"]


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
        _explain(error)
        raise


def _explain(error: ValueError) -> None:
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


def observed(x: Tensor, mask: Tensor | None, *, with_mask: bool = False) -> Tensor:
    r"""What an encoder sees of incomplete data: zeros where nothing was observed.

    Args:
        x: (N, \*event).
        mask: of the same shape, True where x was observed; None where all of it was.
        with_mask: whether the mask follows as further channels (of a vector: entries).

    Shape:
        (N, \*event), or with twice as many channels.

    Example:
        >>> observed(torch.tensor([[1.0, 2.0]]), torch.tensor([[True, False]]), with_mask=True)
        tensor([[1., 0., 1., 0.]])
    """
    seen = x if mask is None else torch.where(mask, x, torch.zeros_like(x))
    if not with_mask:
        return seen
    return torch.cat([seen, torch.ones_like(x) if mask is None else mask.to(x.dtype)], 1)


def _collects_parameters() -> bool:
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
    if _collects_parameters():
        if pair not in _names:
            _names[pair] = f"{type(pair).__name__}-{next(_counter)}"
        pyro.module(_names[pair], pair)


def _modules_of(function: Any) -> dict[str, nn.Module]:
    """The networks that a function is, belongs to, or refers to by name."""
    if isinstance(function, functools.partial):
        given = (*function.args, *function.keywords.values())
        found = {f"argument{i}": a for i, a in enumerate(given)}
        for inner in (function.func, *given):  # a handler (config_enumerate, scale) is given the program that it wraps
            if callable(inner) and not isinstance(inner, nn.Module):
                found |= _modules_of(inner)
    elif isinstance(function, nn.Module):
        found = {type(function).__name__: function}
    elif inspect.ismethod(function):
        owner = function.__self__
        found = {type(owner).__name__: owner}
        found |= {} if isinstance(owner, nn.Module) else vars(owner) if hasattr(owner, "__dict__") else {}
    elif inspect.isfunction(function):
        names = inspect.getclosurevars(function)
        found = dict(names.globals) | dict(names.nonlocals)
        # A decorated function (config_enumerate, a handler) is reached through what it wraps.
        for name in ("fn", "func", "__wrapped__"):
            if callable(inner := found.get(name)):
                found |= _modules_of(inner)
    else:
        found = {}
    return {name: m for name, m in found.items() if isinstance(m, nn.Module)}


def _caller(error: AttributeError) -> str:
    """The type of the innermost module that an error was raised in."""
    frame, found = error.__traceback__, "a PyroModule"
    while frame is not None:
        owner = frame.tb_frame.f_locals.get("self")
        found = type(owner).__name__ if isinstance(owner, nn.Module) else found
        frame = frame.tb_next
    return found


def _check_nothing() -> None:
    """In place of a PyroModule's check that it owns all parameters: those of a :class:`Custom` pair are the pair's."""


class _PrivateStore(Messenger):
    """Answers ``param`` sites from a :class:`Custom` pair instead of Pyro's global store."""

    def __init__(self, owner: Custom) -> None:
        super().__init__()
        self.owner = owner

    def _pyro_param(self, msg: Any) -> None:
        if getattr(msg["fn"], "__self__", None) is not pyro.get_param_store():
            return  # a PyroModule answers for itself
        unconstrained = self.owner._unconstrained(msg)
        constraint = msg["kwargs"].get("constraint", constraints.real)
        value = transform_to(constraint)(unconstrained)
        # A view carries Pyro's back reference, so that the Parameter itself stays free of it (and can be pickled).
        value = unconstrained.view_as(unconstrained) if value is unconstrained else value
        value.unconstrained = weakref.ref(unconstrained)  # Pyro's convention
        msg["value"], msg["done"] = value, True


class Custom(nn.Module):
    r"""A pair of two Pyro functions of your own.

    ``Custom(model, guide)`` is an ordinary ``nn.Module``: it owns a private parameter store, so that every
    ``pyro.param`` and ``pyro.module`` site of the two functions becomes a parameter of it (``parameters()``,
    ``state_dict()``, ``.to(device)``), and Pyro's global store is not touched. Networks that the functions refer to
    by name (globals, closures, a bound method's owner) or that are handed in by keyword are submodules, so that
    train and eval mode and buffers reach them too. What a function only uses under
    ``poutine.block(hide_types=["param"])`` is not trained, as under ``pyro.infer.SVI``.

    A ``pyro.param`` site is a parameter from its first run on. ``fit`` makes such a run before it calls an
    ``optimizer`` that is a function, ``lambda parameters: Adam(parameters)``; an optimiser made earlier, of
    ``pair.parameters()``, lacks the sites.

    ``copy.deepcopy`` copies the pair where the functions are methods, or use no networks but their ``pyro.param``
    sites; of plain functions that use networks a copy would use the same, and is refused.

    Args:
        model: a function of the batch, with a plate on axis −1 that gives each datum its place.
        guide: a function of the same batch.
        modules: networks that the functions use but that cannot be found by name (in a list, say). ``fit`` refuses to
            train without them.

    Raises:
        TypeError: the model or the guide cannot be called.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x=None):
        ...     with data_plate(x):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         return pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        ...     with data_plate(x):
        ...         pyro.sample("z", dist.Normal(x / 2, scale))
        >>> pair = Custom(model, guide)
        >>> pair.guide(torch.zeros(4))
        >>> [name for name, _ in pair.named_parameters()]
        ['sites.scale']
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, function in (("model", model), ("guide", guide)):
            if not callable(function):
                raise TypeError(f"Custom: {name} must be a function of the batch, got {type(function).__name__}.")
        self._functions = (model, guide)
        self.sites = nn.ParameterDict()
        self._sites: dict[str, Tensor] = {}
        known: list[nn.Module] = []
        for name, module in (_modules_of(model) | _modules_of(guide) | modules).items():
            if not any(module is m for m in known):
                self.add_module(name if name not in ("sites", "model", "guide") else name + "_", module)
                known += module.modules()
        for module in self.modules():  # of Pyro's own kind (an autoguide): keeps its store, too, to itself
            context = getattr(module, "_pyro_context", None)
            if context is not None:
                if not hasattr(context, "param_state"):
                    context.param_state = {"params": {}, "constraints": {}}
                # An autoguide's first look at the model puts param sites of the model there, and Pyro refuses that.
                vars(module)["_check_module_local_param_usage"] = _check_nothing

    def __deepcopy__(self, memo: dict[int, Any]) -> Custom:
        copied = memo[id(self)] = self.__class__.__new__(self.__class__)
        functions = copy.deepcopy(self._functions, memo)
        # Methods take their owner along, and partials their arguments; what a plain function refers to stays behind.
        own = {id(module): name for name, module in self.named_modules() if module.state_dict()}
        kept = [own[id(m)] for f in functions for m in _modules_of(f).values() if id(m) in own]
        kept += [own[id(m)] for m in self.children() if m is not self.sites and id(m) in own and id(m) not in memo]
        if kept:
            raise TypeError(
                f"copy.deepcopy: the functions of this Custom use {', '.join(dict.fromkeys(kept))}, and a copy of them "
                "would use the same, so that training one pair changes the other. Build the copy anew, "
                "Custom(model, guide) of networks of its own, and load pair.state_dict() into it; or write model and "
                "guide as methods of an nn.Module, which is copied with them."
            )
        copied.__setstate__(copy.deepcopy(vars(self), memo))
        return copied

    def _unconstrained(self, msg: Any) -> Tensor:
        """The tensor behind a ``param`` site: an owned network's own, or one of :attr:`sites`."""
        name = msg["name"]
        if name in self._sites:
            return self._sites[name]
        key = name.replace(".", ":")  # torch forbids dots in the names of parameters
        if key not in self.sites:
            if len(msg["args"]) < 2:
                raise ValueError(
                    f"param site {name!r} has no initial value yet: give pyro.param one where it first appears."
                )
            initial = msg["args"][1]
            if isinstance(initial, nn.Parameter):  # from pyro.module: the network's own parameter is the parameter
                unconstrained = initial
            else:
                value = (initial() if callable(initial) else initial).detach()
                constraint = msg["kwargs"].get("constraint", constraints.real)
                unconstrained = nn.Parameter(transform_to(constraint).inv(value).clone().contiguous())
            if any(unconstrained is p for p in self.parameters()):
                self._sites[name] = unconstrained
                return unconstrained
            self.sites[key] = unconstrained
        # Not remembered in _sites: a deepcopy or a move to a device may replace what sites holds.
        return self.sites[key]

    def _run(self, function: Callable[..., Any], *batch: Any, **mask: Tensor) -> Any:
        with ExitStack() as stack:
            if not _collects_parameters():  # keeps a PyroModule's (an autoguide's) parameters in the module
                stack.enter_context(pyro.settings.context(module_local_params=True))
            stack.enter_context(_PrivateStore(self))
            try:
                return function(*batch, **mask)
            except ValueError as error:
                _explain(error)
                raise
            except AttributeError as error:
                if error.name != "param_state":
                    raise
                raise ValueError(
                    f"The functions call {_caller(error)}, which this Custom does not know, so that its parameters "
                    "would be lost: it is no name of theirs (it is in a list or an attribute, say), or got another "
                    "value after Custom was made. Hand it over by name: Custom(model, guide, autoguide=autoguide)."
                ) from error

    def model(self, *batch: Any, **mask: Tensor) -> Any:
        """The model, with its ``param`` sites answered from this pair."""
        return self._run(self._functions[0], *batch, **mask)

    def guide(self, *batch: Any, **mask: Tensor) -> Any:
        """The guide, with its ``param`` sites answered from this pair."""
        return self._run(self._functions[1], *batch, **mask)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Sites appear at the first run; a state that is loaded before it brings them along.
        for key, value in state_dict.items():
            if key.startswith(prefix + "sites.") and (name := key[len(prefix) + 6 :]) not in self.sites:
                self.sites[name] = nn.Parameter(value.detach().clone())
        super()._load_from_state_dict(state_dict, prefix, *args)
