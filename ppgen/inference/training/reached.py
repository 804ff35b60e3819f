"""What a first batch shows of training's reach: what the loss depends on, and no step would ever move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppgen.inference.losses.schedules import asked, schedules
from ppgen.inference.programs.parameters import Shown, foreign, leaves
from ppgen.pair import Pair

__all__ = ["KnownParameters", "check_reached", "fault"]


class KnownParameters(Messenger):
    """Refuses a ``param`` site that a first run did not show: no optimiser would ever train it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_post_param(self, msg: Any) -> None:
        if msg["name"] not in self.names:
            raise ValueError(
                f"The param site {msg['name']!r} appeared only after the first step, so no optimiser trains it: make "
                "every pyro.param statement run at the first call."
            )


def check_reached(
    pair: Pair, loss: Any, shown: Shown, parameters: Sequence[nn.Parameter], trial: Callable[[], Any]
) -> None:
    """Refuses what the loss depends on and training would never move: parameters and schedules of nobody's.

    Args:
        pair, loss: what is trained, and by what.
        shown: what a run of both programs has shown.
        parameters: those that are trained.
        trial: a loss that does not count.

    Raises:
        ValueError: the programs run a parameter that the pair does not hold, the loss uses a warm-up that it does not
            hold, or nothing at all is trained.
    """
    networks = foreign(shown, parameters)
    if parameters or networks:
        _check_held(pair, loss, shown, parameters, networks, trial)
    if not parameters:
        raise ValueError(
            "The pair has no parameters to train: give it networks (as attributes, if it is an object of your own; "
            "by name, Custom(model, guide, net=net), if it is made of functions) or pyro.param statements."
        )


def _check_held(
    pair: Pair,
    loss: Any,
    shown: Shown,
    parameters: Sequence[nn.Parameter],
    networks: dict[nn.Parameter, nn.Module],
    trial: Callable[[], Any],
) -> None:
    # The library's own pairs and losses hold all that they use, unless a part of theirs does not.
    own = type(pair).__module__.startswith("ppgen.models.") and not hasattr(pair, "_functions")  # which a Custom has
    if own and type(loss).__module__.startswith("ppgen.") and not networks:
        return
    with asked() as used:
        value = trial()
    if left := [schedule for schedule in used if schedule not in schedules(loss) and not schedule.done]:
        raise ValueError(
            f"The loss uses the warm-up from {left[0].extra_repr()}, which training would not advance: it advances "
            "those of a loss that is an nn.Module. Make the loss one, with the warm-up as an attribute and "
            "forward(model, guide, *batch)."
        )
    if fault(value):
        return
    known = {id(parameter) for parameter in parameters} | (shown.hidden - shown.open)
    # A network that is not to be trained may run under no_grad, or be detached: only the graph tells.
    lost = [leaf for leaf in leaves(value) if isinstance(leaf, nn.Parameter) and id(leaf) not in known]
    if not lost:
        return
    names = dict.fromkeys(
        type(networks[p]).__name__ if p in networks else f"a parameter of shape {tuple(p.shape)}" for p in lost
    )
    raise ValueError(
        f"The programs run {' and '.join(names)}, which the pair does not hold (in a list, a dictionary or another "
        "object, say), so that it would never be trained, in an optimizer or not. Hand networks of functions over "
        "by name, Custom(model, guide, net=net); make those of an object attributes of it, several as "
        "nn.ModuleList or nn.ModuleDict; a single number of functions is a pyro.param, that of an object belongs "
        "to an nn.Module. What is to stay as it is may be frozen, .requires_grad_(False)."
    )


def fault(value: Any) -> str | None:
    """Why what a loss gave has no gradients, if so."""
    if not isinstance(value, Tensor):
        return f"a value of type {type(value).__name__}"
    if value.numel() != 1:
        return f"a tensor of shape {tuple(value.shape)}: take its mean over the data, .mean()"
    if not value.requires_grad:
        return "a tensor without one: leave out .detach(), torch.no_grad() and the like"
    return None
