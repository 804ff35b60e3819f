"""Two Pyro functions of the user's own as a pair, and whose their parameters and networks are."""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from ppgen.pair import collects_parameters, explain_axes

__all__ = ["Custom"]


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
        >>> import torch, pyro.distributions as dist
        >>> from ppgen.pair import data_plate
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
            if not collects_parameters():  # keeps a PyroModule's (an autoguide's) parameters in the module
                stack.enter_context(pyro.settings.context(module_local_params=True))
            stack.enter_context(_PrivateStore(self))
            try:
                return function(*batch, **mask)
            except ValueError as error:
                explain_axes(error)
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
