"""Pictures of what the latents do: one coordinate moved at a time, and the lines between data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor

from ppgen.inference import decode, encode
from ppgen.inference.execution.batches import checked_rows
from ppgen.inference.programs.modes import evaluating
from ppgen.inference.programs.seeds import seeded
from ppgen.inference.programs.traces import device_batch, log_prob, sites
from ppgen.numbers import interval, positive_integer
from ppgen.plots.pictures import draw_pictures, is_picture

__all__ = ["interpolations", "traversals"]


class _Encoded(NamedTuple):
    batch: tuple[Any, ...]
    latents: dict[str, Tensor]  # posterior means, or draws where there is no closed form: (N, *event)
    continuous: list[str]  # those whose coordinates may be any real number
    below: dict[str, list[str]]  # by site, the latents that the model draws given it, directly or not


def _encoded(pair: Any, batch: Any, what: str) -> _Encoded:
    given = checked_rows(batch)(slice(None))
    n = len(given[0])
    encoding = encode(pair, *given, seed=0)
    with evaluating(pair, 0):
        on_device = device_batch(pair, given)
        guide_sites = sites(poutine.trace(pair.guide).get_trace(*on_device))
        found = sites(poutine.trace(pair.model).get_trace(*on_device))
        of_model = [name for name in guide_sites if name in found and not found[name]["is_observed"]]
        latents = encoding if isinstance(encoding, dict) else dict(zip(of_model, [encoding], strict=True))
        continuous = [name for name, z in latents.items() if _takes_any_number(found[name]["fn"], z)]
        if not continuous:
            kinds = {name: str(type(found[name]["fn"]).__name__) for name in latents}
            raise ValueError(f"{what} need a latent with real coordinates to move, but the pair's latents are {kinds}.")
        if odd := {name: tuple(z.shape) for name, z in latents.items() if z.dim() < 2 or len(z) != n}:
            raise ValueError(
                f"{what} take latents of shape (N, ...), here N = {n}, got {odd}: write scalars, and "
                "latents inside other plates, as events: .to_event()."
            )
        below = _below(pair, on_device, latents)
    return _Encoded(given, latents, continuous, below)


def _takes_any_number(fn: Any, z: Tensor) -> bool:
    try:
        support = fn.support
    except NotImplementedError:  # some flows do not say
        return z.is_floating_point()
    if not z.is_floating_point() or support.is_discrete:
        return False
    return bool(support.check(z - 3).all() and support.check(z + 3).all())


def _below(pair: Any, given: Any, latents: dict[str, Tensor]) -> dict[str, list[str]]:
    """A latent lies below another if its density changes as the other moves: no graph is needed for that."""

    def scores(values: dict[str, Tensor]) -> dict[str, Tensor]:
        fixed = dict(zip(values, device_batch(pair, tuple(values.values())), strict=True))
        with seeded(0):  # what else the model draws is the same
            found = sites(poutine.trace(poutine.condition(pair.model, data=fixed)).get_trace(*given))
        return {name: log_prob(found[name]) for name in values}

    names = list(latents)
    if len(names) < 2:
        return {name: [] for name in names}
    before = scores(latents)
    direct = {}
    for name in names:
        moved = latents[name] + 0.5 if latents[name].is_floating_point() else latents[name].flip(0)
        after = scores({**latents, name: moved})
        direct[name] = [o for o in names if o != name and not torch.equal(before[o], after[o])]
    below: dict[str, list[str]] = {}
    for name in names:
        reached = list(direct[name])
        for further in reached:  # which grows as it is read
            reached += [o for o in direct[further] if o not in reached]
        below[name] = reached
    return below


def _pictures(pair: Any, latents: dict[str, Tensor], y: Any, what: str) -> Tensor:
    drawn = decode(pair, latents, *y, seed=0).float()
    if not is_picture(drawn.shape[1:]):
        raise ValueError(
            f"{what} are pictures, and the pair's observation has shape {tuple(drawn.shape[1:])}: (1 or 3 channels, "
            "height, width) can be shown."
        )
    return drawn


def traversals(
    pair: Any,
    batch: Any,
    path: Path,
    *,
    span: tuple[float, float] | None = (-3.0, 3.0),
    steps: int = 11,
    num_coordinates: int = 16,
    top: float = 1.0,
) -> None:
    """What each coordinate of the latents does: a row each, in which it moves while the others stay.

    The others are at the encoding of the first datum. A latent that the model draws given the one that moves (``z1``
    given ``z2`` of a hierarchy) is drawn again by the model, with the same noise along the row. The coordinates that
    vary most over the data's encodings come first.

    Args:
        pair: whose model takes ``None`` for the observation, with any number of latent sites.
        batch: the data, or a tuple of them and their contexts, N rows; more than one say what varies most.
        path: the file to write; its ending says the format.
        span: from where to where each coordinate goes. None: between the 1 % and the 99 % quantile of draws from
            the data's aggregate posterior.
        steps: pictures in a row.
        num_coordinates: rows at most.
        top: the value of the data that is shown as white.

    Raises:
        ValueError: no latent with real coordinates, latents inside plates, observations that are no pictures, a span
            that does not rise, or None for it with fewer than 10 data.
    """
    positive_integer("steps", steps), positive_integer("num_coordinates", num_coordinates)
    span = None if span is None else interval("span", span)
    given, latents, continuous, below = _encoded(pair, batch, "Traversals")
    if span is None and len(given[0]) < 10:
        raise ValueError(f"Quantiles need at least 10 data, got {len(given[0])}: give more, or a span.")
    draws = encode(pair, *given, mean=False, seed=0) if span is None else {}
    draws = draws if isinstance(draws, dict) else {continuous[0]: draws}
    coordinates = []
    for name in continuous:
        spread = latents[name].flatten(1).double().std(0, correction=0)
        for i in range(len(spread)):
            low, high = span or draws[name].flatten(1)[:, i].float().quantile(torch.tensor([0.01, 0.99])).tolist()
            coordinates.append((spread[i].item(), name, i, low, high))
    coordinates = sorted(coordinates, key=lambda c: -c[0])[:num_coordinates]  # a stable sort: in order, among equals

    y = [member[:1].expand(steps, *member.shape[1:]) for member in given[1:]]
    rows = []
    for _, name, i, low, high in coordinates:
        z = {n: v[:1].repeat(steps, *(1,) * (v.dim() - 1)) for n, v in latents.items() if n not in below[name]}
        z[name].view(steps, -1)[:, i] = torch.linspace(low, high, steps)
        # One step at a time: what the model draws below comes from the same noise at each.
        moments = [{n: v[s : s + 1] for n, v in z.items()} for s in range(steps)] if below[name] else [z]
        context = [member[:1] for member in y] if below[name] else y
        rows.append(torch.cat([_pictures(pair, moment, context, "Traversals") for moment in moments]))
    labels = [f"{name}[{i}]" for _, name, i, *_ in coordinates]
    where = f"from {span[0]:g} to {span[1]:g}" if span else "from the 1 % to the 99 % quantile of q(z)"
    _write(rows, path, labels, f"one coordinate at a time, {where}", top)


def interpolations(pair: Any, a: Any, b: Any, path: Path, *, steps: int = 9, top: float = 1.0) -> None:
    """The means of p(x | z) along the straight lines between the encodings of pairs of data, a row each.

    The first and the last picture of a row are the data themselves. All latents with real coordinates move together;
    discrete ones, and contexts, are those of ``a``.

    Args:
        pair: whose model takes ``None`` for the observation, with any number of latent sites.
        a: where the lines start: the data, or a tuple of them and their contexts, N rows.
        b: where they end, N rows.
        path: the file to write; its ending says the format.
        steps: pictures on a line, the ends' reconstructions among them; at least 2.
        top: the value of the data that is shown as white.

    Raises:
        ValueError: no latent with real coordinates, latents inside plates, observations that are no pictures, fewer
            than two steps, or another number of rows in b.
    """
    if positive_integer("steps", steps) < 2:
        raise ValueError(f"steps must be at least 2, one for each end, got {steps}.")
    start, end = _encoded(pair, a, "Interpolations"), _encoded(pair, b, "Interpolations")
    n = len(start.batch[0])
    if len(end.batch[0]) != n:
        raise ValueError(f"a has {n} rows and b has {len(end.batch[0])}: each line needs its two ends.")
    columns = []
    for t in torch.linspace(0, 1, steps).tolist():
        z = {name: v.lerp(end.latents[name], t) if name in start.continuous else v for name, v in start.latents.items()}
        columns.append(_pictures(pair, z, start.batch[1:], "Interpolations"))
    rows = torch.stack([start.batch[0].float().cpu(), *columns, end.batch[0].float().cpu()], 1)
    _write(list(rows), path, [], "data at the ends, p(x | z) on the line between their encodings", top)


def _write(rows: list[Tensor], path: Path, labels: list[str], title: str, top: float) -> None:
    steps, _, height, width = rows[0].shape
    figure = Figure(figsize=(6.5, 6 * len(rows) * (height + 1) / (steps * (width + 1)) + 0.4), layout="constrained")
    axes = figure.subplots()
    draw_pictures(axes, torch.cat(rows) / top, steps)
    for row, label in enumerate(labels):
        axes.text(-1, row * (height + 1) + 1 + height / 2, label, ha="right", va="center", fontsize=7)
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=150)
