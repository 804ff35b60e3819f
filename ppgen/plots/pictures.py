"""Data and results as figures. They are written straight to files; pyplot's state is not used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ppgen.inference import History, decode
from ppgen.numbers import positive_integer

__all__ = ["comparison", "draw_pictures", "images", "is_picture", "losses", "manifold", "sheet"]

MARKED = 20  # epochs up to which each is marked by a point


def _canvas(pictures: Tensor, columns: int) -> Tensor:
    """Pictures (N, C, H, W) side by side, as one (H', W', C)."""
    n, channels, height, width = pictures.shape
    rows = math.ceil(n / columns)
    canvas = torch.ones(channels, rows * (height + 1) + 1, columns * (width + 1) + 1)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        canvas[:, top : top + height, left : left + width] = picture
    return canvas.permute(1, 2, 0)


def draw_pictures(axes: Any, pictures: Tensor, columns: int) -> None:
    """A grid of pictures (N, C, H, W) in [0, 1] on axes."""
    _show(axes, _canvas(pictures.float(), columns))


def _show(axes: Any, canvas: Tensor) -> None:
    array = canvas.clamp(0, 1).numpy()
    axes.imshow(array[..., 0] if array.shape[-1] == 1 else array, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


def is_picture(shape: Any) -> bool:
    """Whether events of this shape can be shown: (1 or 3 channels, height, width)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def images(pictures: Tensor, path: Path, *, columns: int = 8, title: str = "") -> None:
    """A grid of pictures.

    Args:
        pictures: (N, C, H, W) in [0, 1], one or three channels.
        path: the file to write; its ending says the format.
        columns: pictures in a row.
        title: over the grid.

    Raises:
        ValueError: not pictures.
    """
    if pictures.dim() != 4 or not pictures.numel() or not is_picture(pictures.shape[1:]):
        raise ValueError(f"pictures must be (N, C, H, W) with one or three channels, got {tuple(pictures.shape)}.")
    positive_integer("columns", columns)
    canvas = _canvas(pictures.detach().float(), columns)
    figure = Figure(figsize=(6, 6 * canvas.shape[0] / canvas.shape[1] + (0.4 if title else 0)), layout="constrained")
    axes = figure.subplots()
    _show(axes, canvas)
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=150)


def sheet(groups: dict[str, Tensor], path: Path, *, columns: int = 4, per_row: int = 6) -> None:
    """Several named groups of pictures on one sheet, for example samples of every cell of a comparison.

    Args:
        groups: pictures (N, C, H, W) in [0, 1], one or three channels, by the name over them.
        path: the file to write; its ending says the format.
        columns: groups in a row.
        per_row: pictures in a row of a group.
    """
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (name, pictures) in zip(grid, groups.items(), strict=False):
        draw_pictures(axes, pictures, per_row)
        axes.set_title(name, fontsize=8)
    figure.savefig(path, dpi=150)


def losses(history: History, path: Path) -> None:
    """The course of training by epoch: loss per datum in nats, or the critic's loss where there is one.

    Args:
        history: of a training run.
        path: the file to write; its ending says the format.

    Raises:
        ValueError: a history without epochs.
    """
    if not history.loss:
        raise ValueError("history has no epochs, so there is nothing to draw: train for at least one.")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    epochs = range(1, len(history.loss) + 1)
    marker = "." if len(epochs) <= MARKED else ""  # a line of one point is not seen
    axes.plot(epochs, history.loss, label="training", marker=marker)
    if history.validation:
        axes.plot(epochs, history.validation, label="validation", marker=marker)
    if history.best_epoch is not None:
        axes.axvline(history.best_epoch + 1, color="gray", linestyle=":", label="kept")
    first = 1 if len(epochs) > 2 else 0  # the first epoch would flatten the rest
    if shown := [value for value in (*history.loss[first:], *history.validation[first:]) if math.isfinite(value)]:
        low, high = min(shown), max(shown)
        margin = 0.05 * (high - low or abs(high) or 1.0)
        axes.set_ylim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss of the critic" if "critic_loss" in history.monitors else "loss (nats per datum)")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def manifold(pair: Any, path: Path, *, side: int = 20, top: float = 1.0) -> None:
    """What the decoder makes of a grid over a two-dimensional latent, at quantiles of the standard normal.

    Args:
        pair: with a latent of two dimensions.
        path: the file to write.
        side: pictures in a row, and rows.
        top: the value of the data that is shown as white.
    """
    positive_integer("side", side)
    quantiles = torch.special.ndtri(torch.linspace(0.02, 0.98, side))
    z = torch.stack(torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij"), -1).reshape(-1, 2).flip(-1)
    images(decode(pair, z) / top, path, columns=side, title="p(x | z) over the latent plane")


def comparison(rows: list[dict[str, Any]], path: Path) -> None:
    """Differences to the best pair in nats per datum with two paired standard errors, the best at the top.

    Args:
        rows: of a :class:`~ppgen.compare.Comparison`.
        path: the file to write; its ending says the format.
    """
    figure = Figure(figsize=(7, 1.2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    errors = [0.0 if math.isnan(e := r["difference_standard_error"]) else 2 * e for r in rows]
    for place, row, error in zip(places, rows, errors, strict=True):
        bound = row["is_lower_bound"]
        axes.errorbar(
            row["difference"], place, xerr=error, fmt="o", color="C1" if bound else "C0", mfc="white" if bound else None
        )
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set_yticks(places, [r["name"] for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel("log p(x) minus the best, in nats (bars: ± 2 paired s.e.)", fontsize=9)
    if any(r["is_lower_bound"] for r in rows):
        axes.set_title("open marks: lower bounds (k-hat is too large for more than 1 % of the data)", fontsize=8)
    figure.savefig(path, dpi=150)
