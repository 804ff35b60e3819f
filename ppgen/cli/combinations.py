"""Every prior with every posterior: trained alike, ranked, and written as one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ppgen import plots
from ppgen.catalogue import MODELS, Recipe, settings_of
from ppgen.cli.grid import NOT_YET, Cell, Work, worked
from ppgen.cli.options import chosen
from ppgen.cli.source import load, num_classes, visible
from ppgen.compare import Comparison, rank
from ppgen.files import write_json


def combinations(
    grid: Sequence[tuple[str, str]],
    out: Path,
    source: tuple[str, Path | None, str | None, str, str],
    given: dict[str, Any],
    training: dict[str, Any],
    num_samples: int,
    seed: int,
    device: str,
    jobs: int,
) -> None:
    """Trains and evaluates a model with each pair of parts, and says which is better.

    Args:
        grid: the names of prior and posterior of each.
        out: where to write the tables and the pictures.
        source: name of the data, their folder, how they are binarised, the model, the decoder.
        given: settings of the model that were typed.
        training: settings of the training.
        num_samples: importance samples a datum.
        seed: of all of it.
        device: where it is done.
        jobs: processes that share it.

    Raises:
        ValueError: a setting that the model does not have, or no pair of parts could be trained.
    """
    data, _, _, model, _ = source
    loaded = load(*source)
    shared = chosen({name: p.default for name, p in settings_of(MODELS[model].build).items()}, given, data)
    shape, classes = tuple(loaded.event_shape), num_classes(loaded)
    parts = {f"{p} + {q}": {"prior": p, "posterior": q} for p, q in grid}
    recipes = {
        name: Recipe(model, shape, loaded.num_levels, classes, {**shared, **pair}) for name, pair in parts.items()
    }
    first = next(iter(recipes.values()))
    out.mkdir(parents=True, exist_ok=True)
    about = {"data": data, "binarization": loaded.binarization, "split": loaded.split, "num_data": len(loaded.test)}
    about |= {"model": model, **training, "num_samples": num_samples, "seed": seed}
    about |= {name: value for name, value in shared.items() if name not in ("prior", "posterior")}
    names = list(recipes)
    found: dict[str, Cell | str] = dict.fromkeys(names, NOT_YET)
    result = None
    work = Work(source, {**training, "device": device}, num_samples, seed)
    for count, (index, cell) in enumerate(worked(work, list(recipes.values()), loaded, jobs), 1):
        name = names[index]
        found[name] = cell
        print(f"[{count}/{len(names)}] {name}: {_said(cell, recipes[name])}", file=sys.stderr, flush=True)
        if any(isinstance(each, Cell) for each in found.values()):
            # Each time, so that whatever ends a long comparison leaves what was measured.
            result = _write_tables(out, about, parts, found)
    if result is None:
        raise ValueError(f"Every combination was refused; the first: {found[names[0]]}")
    plots.comparison(result.rows, out / "comparison.png")
    files = ["comparison.csv", "comparison.json", "comparison.png"]
    if plots.is_picture(loaded.event_shape):
        means = {name: cell.means for name, cell in found.items() if isinstance(cell, Cell) and cell.means is not None}
        groups = {name: visible(drawn, first) for name, drawn in means.items()}
        plots.sheet(groups, out / "samples.png", columns=len({q for _, q in grid}))
        files.append("samples.png")
    _print_table(result, f"{data} ({loaded.binarization} binarisation), N = {len(loaded.test)}, S = {num_samples}")
    for name, cell in found.items():
        if isinstance(cell, str):
            print(f"Refused: {name}: {cell}")
    print(result.verdict())
    print(f"Files in {out}: {', '.join(files)}")


def _said(cell: Cell | str, recipe: Recipe) -> str:
    if isinstance(cell, str):
        return f"refused: {cell}"
    return f"{cell.epochs} epochs in {cell.seconds:.0f} s" + (f" (note: {recipe.note})" if recipe.note else "")


def _write_tables(
    out: Path, about: dict[str, Any], parts: dict[str, dict[str, Any]], found: dict[str, Cell | str]
) -> Comparison:
    """Ranks what has been measured so far, and writes it with what was refused or is yet to come."""
    cells = {name: cell for name, cell in found.items() if isinstance(cell, Cell)}
    refused = [{"name": n, **parts[n], "refused": cell} for n, cell in found.items() if isinstance(cell, str)]
    result = rank(
        {name: cell.estimate for name, cell in cells.items()},
        before={name: {**parts[name], "seconds": round(cell.seconds, 1)} for name, cell in cells.items()},
        after={name: cell.figures for name, cell in cells.items()},
    )
    write_json(out / "comparison.json", {**about, "verdict": result.verdict(), "rows": [*result.rows, *refused]})
    result.write_csv(out / "comparison.csv", refused)
    return result


def _print_table(result: Comparison, title: str) -> None:
    console = Console()
    table = Table(title=f"log p(x) in nats per datum: {title}", title_justify="left")
    for heading in ("prior", "posterior"):
        table.add_column(heading, no_wrap=True)
    for heading in ("log p(x)", "± MC", "to the best", "± paired", "ELBO", "KL", "active", "reliable", "params", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(
            row["prior"],
            row["posterior"],
            ("≥ " if row["is_lower_bound"] else "") + f"{row['log_likelihood']:.2f}",
            f"{row['mc_standard_error']:.3f}",
            f"{row['difference']:.2f}",
            f"{row['difference_standard_error']:.2f}",
            f"{row['elbo']:.2f}",
            f"{row['kl']:.2f}",
            str(row["active_units"]),
            f"{row['reliable_fraction']:.0%}",
            f"{row['parameters']:,}",
            f"{row['seconds']:.0f}",
        )
    if not console.is_terminal:  # a file or a pipe has no width to keep to
        console = Console(width=200)
    console.print(table)
