"""Where observed values may lie: of others a density says something, and none of it is true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from pyro.distributions import MaskedDistribution
from torch import Size, Tensor
from torch.distributions.constraints import Constraint

from ppgen.inference.programs.traces import innermost, layers

__all__ = ["Support", "check_observed", "check_support", "observed_supports"]


class Support(NamedTuple):
    """Where the values of one member of a batch may lie."""

    member: int
    site: str
    distribution: str
    constraint: Any
    shape: Size


def observed_supports(found: dict[str, Any], batch: Sequence[Any]) -> list[Support]:
    """The supports of the sites of a run that observe members of its batch as they are, if one holds for all data.

    A site that is masked has none: of which other data it is to count, only the program knows.
    """
    supports = []
    for name, site, constraint, mask in _observed(found):
        value = site["value"]
        member = next((i for i, m in enumerate(batch) if _same_rows(m, value)), None)
        if member is not None and mask is None and (shared := _shared(constraint, value.shape)) is not None:
            supports.append(Support(member, name, type(innermost(site["fn"])).__name__, shared, value.shape[1:]))
    return supports


def check_support(supports: Sequence[Support], batch: Sequence[Any], name: str = "data", start: int = 0) -> None:
    """Refuses data outside the support of the site that observes them (grey values under a Bernoulli, say).

    Raises:
        ValueError: a value lies outside the support.
    """
    for support in supports:
        values = batch[support.member]
        if values[0].numel() != support.shape.numel():
            continue
        values = values.reshape(-1, *support.shape)
        good = _within(support.constraint, values)
        if not good.all():
            row = start + int((~good.reshape(len(values), -1).all(1)).nonzero()[0])
            raise _outside(f"{name}: datum {row} lies", support.site, support.distribution, support.constraint, values)


def check_observed(found: dict[str, Any]) -> None:
    """Refuses values that a run observed outside the support of their site, whatever the program made them of.

    Raises:
        ValueError: a value lies outside the support, where with validation off there would be a log_prob for it.
    """
    for name, site, constraint, mask in _observed(found):
        try:
            good = _within(constraint, site["value"])
            good = good if mask is None else good | ~mask
        except RuntimeError:  # a value of another shape, of which the density will say more
            continue
        if not good.all():
            distribution = type(innermost(site["fn"])).__name__
            raise _outside("The data: a value lies", name, distribution, constraint, site["value"])


def _observed(found: dict[str, Any]) -> Iterator[tuple[str, Any, Any, Tensor | None]]:
    """The observed sites with their supports, where these are known, and masks of what counts, where not all does."""
    for name, site in found.items():
        if not site["is_observed"] or not isinstance(site["value"], Tensor):
            continue
        mask = None if site["mask"] is True else site["mask"]
        inside = any(isinstance(fn, MaskedDistribution) and fn._mask is not True for fn in layers(site["fn"]))
        if mask is False or inside:  # of an axis of the event, maybe
            continue
        try:
            yield name, site, site["fn"].support, mask
        except (NotImplementedError, AttributeError):
            continue


def _same_rows(member: Any, value: Tensor) -> bool:
    """Whether a site observed a member as it is, or with its rows in another shape."""
    if member is value or not isinstance(member, Tensor):
        return member is value
    same = member.data_ptr() == value.data_ptr() and member.numel() == value.numel()
    return same and value.is_contiguous() and value.shape[:1] == member.shape[:1]


def _shared(constraint: Any, shape: Size) -> Any:
    """A constraint with the bounds that all rows of values of a shape have; None if these have bounds of their own.

    A Binomial's are such, where each datum has its own total.
    """
    own: Any
    same = copy(constraint)
    for name, bound in vars(constraint).items():
        if isinstance(bound, Tensor):
            rows = bound.expand(torch.broadcast_shapes(bound.shape, shape))
            own = rows[0] if rows.numel() and (rows == rows[:1]).all() else None
            own = own.flatten()[0].item() if own is not None and (own == own.flatten()[0]).all() else own
        else:
            own = _shared(bound, shape) if isinstance(bound, Constraint) else bound
        if own is None:
            return None
        setattr(same, name, own)
    return same


def _bounds(constraint: Any) -> Iterator[Tensor]:
    for bound in vars(constraint).values():
        if isinstance(bound, Tensor):
            yield bound
        elif isinstance(bound, Constraint):
            yield from _bounds(bound)


def _within(constraint: Any, values: Tensor) -> Tensor:
    """Where values satisfy a constraint; a bound of 255 would be -1 to int8, so whole numbers are asked as int64."""
    values = values.to(next((bound.device for bound in _bounds(constraint)), values.device))
    good: Tensor = constraint.check(values if values.is_floating_point() else values.long())
    return good


def _outside(what: str, site: str, distribution: str, constraint: Any, values: Tensor) -> ValueError:
    where = _shared(constraint, values.shape) or type(constraint).__name__.strip("_")
    return ValueError(
        f"{what} outside the support of the observed site {site!r}, {distribution} on {where} (values run from "
        f"{values.min().item():g} to {values.max().item():g}). Binarise or rescale the data, or choose a decoder or "
        "generator whose support holds them."
    )
