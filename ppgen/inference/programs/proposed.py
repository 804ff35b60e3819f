"""Whether a guide proposes of each latent what the model draws: all of its range, and under the same mask."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.distributions import constraints

from ppgen.inference.programs.traces import delta_of, innermost, is_point, mask_of, support
from ppgen.pair import tracing

__all__ = ["check_masks", "check_supports"]


def check_masks(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """Makes sure that what is masked of a latent is masked in both programs: its other density would stand alone.

    All of the model's density may be left out, ``fn.mask(False)``, as a flat prior is written; and at a point the guide
    has none.

    Raises:
        ValueError: a latent is masked in one of them, or otherwise in the other.
    """
    if tracing():  # a graph holds no comparison
        return
    for name in guide_sites.keys() & model_sites.keys():
        masks = _mask(model_sites[name]), _mask(guide_sites[name])
        if not (masks[0] is False or is_point(guide_sites[name]) or _same(*masks)):
            one, other = ("model", "guide") if masks[1] is True else ("guide", "model")
            raise ValueError(
                f"The latent {name!r} is masked in the {one}, and not, or otherwise, in the {other}, so that one of "
                "its two densities would count where the other does not: draw it under the same mask in both programs."
            )


def check_supports(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """Makes sure that the guide proposes of each latent what the model can draw, and all of it.

    Raises:
        ValueError: one program draws a number from a density and the other from a set of values, or the guide reaches
            only a part of the latent's range, or more than one period of an angle.
    """
    if tracing():
        return
    for name in guide_sites.keys() & model_sites.keys():
        p, q = model_sites[name], guide_sites[name]
        if delta_of(q) is not None:  # which hands on what another site drew, wherever that lies
            continue
        kinds = type(innermost(p["fn"])).__name__, type(innermost(q["fn"])).__name__
        of_p, of_q = _range(p["fn"]), _range(q["fn"])
        if support(p["fn"]).is_discrete != support(q["fn"]).is_discrete:
            fault = "one is a probability and the other a density, whose quotient is no weight"
        elif kinds[0] == "VonMises" != kinds[1] and of_q is not None and -math.inf in of_q:
            fault = "a density on one period of an angle is asked for at draws from all of them"
        elif of_p is not None and of_q is not None and _reaches_less(of_q, of_p):
            fault = "the guide's draws reach only a part of its range, and the mean weight would be of that part alone"
        else:
            continue
        raise ValueError(
            f"The latent {name!r} is {kinds[0]} in the model and {kinds[1]} in the guide: {fault}. Propose it from a "
            "distribution with the support that it has in the model."
        )


def _mask(site: Any) -> Any:
    """What a site's density is masked by, by the program or by its distribution; True for nothing."""
    own = mask_of(site["fn"])
    return own if site["mask"] is None or site["mask"] is True else own & site["mask"]


def _same(one: Any, other: Any) -> bool:
    """Whether two masks hide the same; of those that do not fit each other that is not known."""
    if one is other:
        return True
    try:
        return bool((torch.as_tensor(one).cpu() == torch.as_tensor(other).cpu()).all())
    except RuntimeError:
        return True


def _range(fn: Any) -> tuple[Any, Any] | None:
    """From where to where the values of a distribution go, if its support is an interval, a half-line or the line."""
    constraint = support(fn)
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    if isinstance(constraint, type(constraints.real)):
        return -math.inf, math.inf
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    if low is None and high is None:
        return None
    return -math.inf if low is None else low, math.inf if high is None else high


def _reaches_less(inner: tuple[Any, Any], outer: tuple[Any, Any]) -> bool:
    """Whether a range leaves out a part of another one, for any datum; of those that do not fit that is not known."""
    (low, high), (lowest, highest) = (tuple(torch.as_tensor(end).cpu() for end in ends) for ends in (inner, outer))
    try:
        return bool((low > lowest).any() or (high < highest).any())
    except RuntimeError:
        return False
