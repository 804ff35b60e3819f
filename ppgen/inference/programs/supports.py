"""Where observed values may lie: of others a density says something, and none of it is true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, NamedTuple

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
    """The supports of the sites of a run that observe members of its batch as they are, if one holds for all data."""
    supports = []
    for name, site, constraint in _observed(found):
        value = site["value"]
        member = next((i for i, m in enumerate(batch) if _same_rows(m, value)), None)
        if member is not None and (shared := _shared(constraint)) is not None:
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
    for name, site, constraint in _observed(found):
        try:
            good = _within(constraint, site["value"])
        except RuntimeError:  # a value of another shape, of which the density will say more
            continue
        if not good.all():
            distribution = type(innermost(site["fn"])).__name__
            raise _outside("The data: a value lies", name, distribution, constraint, site["value"])


def _observed(found: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The observed sites of which every value counts, with their supports, where these are known."""
    for name, site in found.items():
        masked = site["mask"] is not None or any(isinstance(fn, MaskedDistribution) for fn in layers(site["fn"]))
        if not site["is_observed"] or masked or not isinstance(site["value"], Tensor):
            continue
        try:
            yield name, site, site["fn"].support
        except (NotImplementedError, AttributeError):
            continue


def _same_rows(member: Any, value: Tensor) -> bool:
    """Whether a site observed a member as it is, or with its rows in another shape."""
    if member is value or not isinstance(member, Tensor):
        return member is value
    same = member.data_ptr() == value.data_ptr() and member.numel() == value.numel()
    return same and value.is_contiguous() and value.shape[:1] == member.shape[:1]


def _shared(constraint: Any) -> Any:
    """A constraint with numbers for bounds; None if these differ (a Binomial's, where each datum has its own total)."""
    same = copy(constraint)
    for name, bound in vars(constraint).items():
        if isinstance(bound, Tensor):
            values = bound.unique()
            own = values.item() if len(values) == 1 else None
        else:
            own = _shared(bound) if isinstance(bound, Constraint) else bound
        if own is None:
            return None
        setattr(same, name, own)
    return same


def _within(constraint: Any, values: Tensor) -> Tensor:
    """Where values satisfy a constraint; a bound of 255 would be -1 to int8, so whole numbers are asked as int64."""
    good: Tensor = constraint.check(values if values.is_floating_point() else values.long())
    return good


def _outside(what: str, site: str, distribution: str, constraint: Any, values: Tensor) -> ValueError:
    where = _shared(constraint) or type(constraint).__name__.strip("_")
    return ValueError(
        f"{what} outside the support of the observed site {site!r}, {distribution} on {where} (values run from "
        f"{values.min().item():g} to {values.max().item():g}). Binarise or rescale the data, or choose a decoder or "
        "generator whose support holds them."
    )
