"""``ppgen compare``: every prior with every posterior, in one table."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ppgen import plots
from ppgen.catalogue import MODELS, POSTERIORS, PRIORS, Recipe, lookup, settings_of
from ppgen.catalogue.training import check_schedule
from ppgen.cli.grid import NOT_YET, Cell, Work, worked
from ppgen.cli.lineup import check_taken, lineup
from ppgen.cli.options import HELP, Binarize, DataDir, DataName, chosen, option
from ppgen.cli.source import load, num_classes, visible
from ppgen.compare import Comparison, rank
from ppgen.files import write_json
from ppgen.numbers import positive_integer

SWAPPING = [name for name, model in MODELS.items() if {"prior", "posterior"} <= set(settings_of(model.build))]
COMPARABLE = [name for name, model in MODELS.items() if not model.flat and not model.classifies]
MODEL, SOME_PRIORS, SOME_POSTERIORS = "vae", "standard,mog,vamp,flow", "diagonal,full,householder,iaf"
LatentDim: Any = option("latent_dim", 40)
NumComponents: Any = option("num_components", 500)
Hidden: Any = option("hidden", (300, 300))


def compare(
    context: typer.Context,
    data: DataName = "digits",
    models: Annotated[
        str | None, typer.Option(help=f"Compare models instead, some of {', '.join(COMPARABLE)}; or all.")
    ] = None,
    model: Annotated[str | None, typer.Option(help=f"{', '.join(SWAPPING)} (default {MODEL}).")] = None,
    prior: Annotated[
        str | None, typer.Option(help=f"Some of {', '.join(PRIORS)}; or all (default {SOME_PRIORS}).")
    ] = None,
    posterior: Annotated[
        str | None, typer.Option(help=f"Some of {', '.join(POSTERIORS)}; or all (default {SOME_POSTERIORS}).")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The folder for the table and the pictures; it must not hold one yet.")
    ] = Path("runs/compare"),
    epochs: Annotated[int, typer.Option(help=HELP["epochs"])] = 100,
    num_samples: Annotated[int, typer.Option(help="Importance samples a datum.")] = 1000,
    batch_size: Annotated[int, typer.Option(help=HELP["batch_size"])] = 100,
    lr: Annotated[float, typer.Option(help=HELP["lr"])] = 3e-3,
    warmup: Annotated[
        float | None, typer.Option(help=f"{HELP['warmup']} 10 if not given, or half of the epochs where that is less.")
    ] = None,
    patience: Annotated[int, typer.Option(help=HELP["patience"])] = 20,
    decoder: Annotated[str, typer.Option(help=HELP["decoder"])] = "bernoulli",
    latent_dim: LatentDim = None,
    num_components: NumComponents = None,
    hidden: Hidden = None,
    seed: Annotated[int, typer.Option(help=HELP["seed"])] = 0,
    device: Annotated[str, typer.Option(help=HELP["device"])] = "auto",
    seeds: Annotated[
        int | None,
        typer.Option(help="With --models: how often each is trained, to see how stable it is (default 2)."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Processes that share the combinations, a thread (and a GPU, if there are any) each.")
    ] = 1,
    data_dir: DataDir = None,
    binarize: Binarize = None,
) -> None:
    """Train every prior with every posterior, evaluate each by importance sampling, and say which is better.

    Data, seed, noise and the shape of the decoder are the same for all; differences are paired, datum by datum.

    With --models, models of different kinds stand in one table instead: likelihood, latent, inference, discreteness,
    stability, sharpness and diversity, as far as each has them, measured on the same data.

    Example: ppgen compare --data digits --prior standard,vamp --posterior diagonal,iaf --out runs/compare
    """
    _check_used(models, seeds, model=model, prior=prior, posterior=posterior, num_components=num_components)
    model, seeds = MODEL if model is None else model, 2 if seeds is None else seeds
    prior, posterior = SOME_PRIORS if prior is None else prior, SOME_POSTERIORS if posterior is None else posterior
    warmup = float(min(10, epochs // 2)) if warmup is None else warmup
    training: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "warmup": warmup,
        "patience": patience,
    }
    check_schedule(lr, warmup, patience, epochs)
    lookup("model", model, SWAPPING)
    if jobs < 1 or (jobs > 1 and models is not None):
        raise ValueError(f"--jobs must be a positive whole number, and 1 with --models, got {jobs}.")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("compare starts its own processes: give --jobs, and start it without torchrun.")
    positive_integer("--num-samples", num_samples)
    positive_integer("--seeds", seeds)
    table = "comparison.json" if models is None else "models.json"
    if (out / table).exists():
        raise ValueError(f"--out {out} already holds {table}: choose another folder, or remove that one.")
    if models is not None:
        given = {**training, "decoder": decoder, "latent_dim": latent_dim, "hidden": hidden, "device": device}
        names = _names("models", models, COMPARABLE)
        typed = [name for name in given if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
        check_taken(names, typed)
        lineup(names, out, data, data_dir, binarize, given, num_samples, seeds, seed)
        return
    grid = [(p, q) for p in _names("prior", prior, PRIORS) for q in _names("posterior", posterior, POSTERIORS)]
    source = (data, data_dir, binarize, model, decoder)
    loaded = load(*source)
    given = {"decoder": decoder, "latent_dim": latent_dim, "num_components": num_components, "hidden": hidden}
    defaults = {name: p.default for name, p in settings_of(MODELS[model].build).items()}
    shared = chosen(defaults, given, data)
    shape, classes = tuple(loaded.event_shape), num_classes(loaded)
    recipes = {
        f"{p} + {q}": Recipe(model, shape, loaded.num_levels, classes, {**shared, "prior": p, "posterior": q})
        for p, q in grid
    }
    first = next(iter(recipes.values()))
    out.mkdir(parents=True, exist_ok=True)
    names = list(recipes)
    parts = {name: {"prior": p, "posterior": q} for name, (p, q) in zip(names, grid, strict=True)}
    about = {"data": data, "binarization": loaded.binarization, "split": loaded.split, "num_data": len(loaded.test)}
    settings = {"model": model, **training, "num_samples": num_samples, "seed": seed, **shared}
    settings = {name: value for name, value in settings.items() if name not in ("prior", "posterior")}
    found: dict[str, Cell | str] = dict.fromkeys(names, NOT_YET)
    work = Work(source, {**training, "device": device}, num_samples, seed)
    for count, (index, cell) in enumerate(worked(work, list(recipes.values()), loaded, jobs), 1):
        name = names[index]
        found[name] = cell
        if isinstance(cell, str):
            said = f"refused: {cell}"
        else:
            note = f" (note: {recipes[name].note})" if recipes[name].note else ""
            said = f"{cell.epochs} epochs in {cell.seconds:.0f} s{note}"
        _say(f"[{count}/{len(names)}] {name}: {said}")
        refused = [{"name": n, **parts[n], "refused": cell} for n in names if isinstance(cell := found[n], str)]
        cells = {n: cell for n in names if not isinstance(cell := found[n], str)}
        if not cells:
            continue
        result = rank(
            {name: cell.estimate for name, cell in cells.items()},
            before={name: {**parts[name], "seconds": round(cell.seconds, 1)} for name, cell in cells.items()},
            after={name: cell.figures for name, cell in cells.items()},
        )
        verdict = result.verdict()
        # Each time, so that whatever ends a long comparison leaves what was measured.
        write_json(out / "comparison.json", {**about, **settings, "verdict": verdict, "rows": [*result.rows, *refused]})
        result.write_csv(out / "comparison.csv", refused)
    if not cells:
        raise ValueError(f"Every combination was refused; the first: {refused[0]['refused']}")
    plots.comparison(result.rows, out / "comparison.png")
    files = ["comparison.csv", "comparison.json", "comparison.png"]
    if plots.is_picture(loaded.event_shape):
        groups = {name: visible(means, first) for name, cell in cells.items() if (means := cell.means) is not None}
        plots.sheet(groups, out / "samples.png", columns=len({q for _, q in grid}))
        files.append("samples.png")
    _print_table(result, f"{data} ({loaded.binarization} binarisation), N = {len(loaded.test)}, S = {num_samples}")
    for row in refused:
        print(f"Refused: {row['name']}: {row['refused']}")
    print(verdict)
    print(f"Files in {out}: {', '.join(files)}")


def _check_used(models: str | None, seeds: int | None, **parts: Any) -> None:
    """Refuses what was typed for the other kind of comparison, and would not be used."""
    if models is None and seeds is not None:
        raise ValueError(f"--seeds {seeds} is for --models: without it each pair of parts is trained once, by --seed.")
    for name, value in parts.items():
        if models is not None and value is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} {value} is for a comparison of parts, and --models compares models with "
                "the parts that they have by default: leave out one of the two."
            )


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


def _names(option: str, text: str, known: Any) -> list[str]:
    if text.strip() == "all":
        return list(known)
    own = option != "models"  # a part may be one's own
    names = [lookup(option, name.strip(), known, importable=own) for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--{option} names nothing: give some of {', '.join(known)}, separated by commas.")
    return list(dict.fromkeys(names))


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
