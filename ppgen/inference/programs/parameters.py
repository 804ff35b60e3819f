"""What training may change of a pair: the parameters of its networks, and those that a run shows as ``param`` sites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ppgen.inference.programs.networks import modules_of

__all__ = ["Shown", "foreign", "leaves", "showing", "trained_parameters"]


class Shown(Messenger):
    """Notes the ``param`` sites that a run goes through, without asking library pairs to fill Pyro's global store."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, Any] = {}
        self.open: set[int] = set()
        self.hidden: set[int] = set()
        self.called: dict[nn.Module, None] = {}  # networks in the open, in the order of their first calls

    def _pyro_post_param(self, msg: Any) -> None:
        value = msg["value"]
        self.sites[msg["name"]] = value.unconstrained() if hasattr(value, "unconstrained") else value

    def note(self, module: nn.Module) -> None:
        """Notes whether a network is called where the program hides ``param`` sites from whoever runs it."""
        inner = _PYRO_STACK[_PYRO_STACK.index(self) :]
        message: Any = {"type": "param", "name": "", "is_observed": False, "value": None, "infer": {}, "args": ()}
        if any(isinstance(handler, BlockMessenger) and handler.hide_fn(message) for handler in inner):
            self.hidden |= {id(parameter) for parameter in module.parameters()}
        else:
            self.open |= {id(parameter) for parameter in module.parameters(recurse=False)}
            self.called.setdefault(module)


@contextmanager
def showing() -> Iterator[Shown]:
    """What the runs inside show of the parameters that they use."""
    shown = Shown()
    handle = register_module_forward_pre_hook(lambda module, _: shown.note(module))
    try:
        with shown:
            yield shown
    finally:
        handle.remove()


def trained_parameters(pair: Any, shown: Shown) -> list[nn.Parameter]:
    """The parameters of a pair that are trained, once a run has shown which it uses.

    They are those of all its networks and ``param`` sites, but for what the program only uses where it hides such sites
    (``poutine.block(hide_types=["param"])``): that is to stay as it is, as under ``pyro.infer.SVI``.
    """
    hidden = shown.hidden - shown.open - {id(parameter) for parameter in shown.sites.values()}
    own = [p for module in modules_of(pair) for p in module.parameters() if id(p) not in hidden]
    return list({id(p): p for p in (*own, *shown.sites.values()) if p.requires_grad}.values())


def foreign(shown: Shown, parameters: Sequence[nn.Parameter]) -> dict[nn.Parameter, nn.Module]:
    """What a run goes through and nobody trains: parameters of networks that the pair does not hold, with these.

    A network is the outermost of those that were called. What is frozen, or hidden as ``param`` sites may be, is to
    stay as it is.
    """
    known = {id(parameter) for parameter in parameters} | shown.hidden - shown.open
    found: dict[nn.Parameter, nn.Module] = {}
    for module in shown.called:
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in known:
                found.setdefault(parameter, module)
    return found


def leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that a loss has gradients for."""
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found[id(leaf)] = leaf
        waiting += [following for following, _ in node.next_functions]
    return list(found.values())
