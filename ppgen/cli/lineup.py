"""Models of different kinds in one table: what each can do, measured on the same data."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ppgen import data as datasets
from ppgen import plots
from ppgen.catalogue import MODELS, Recipe, settings_of
from ppgen.cli.grid import NOT_YET, reason
from ppgen.cli.judge import judged, trained_classifier
from ppgen.cli.options import chosen
from ppgen.cli.source import build, load, num_classes, visible
from ppgen.files import write_csv, write_json
from ppgen.inference import encode, log_likelihood, reconstruct, sample
from ppgen.judge import Classifier


def lineup(
    names: list[str],
    out: Path,
    data: str,
    data_dir: Path | None,
    binarize: str | None,
    given: dict[str, Any],
    num_samples: int,
    num_seeds: int,
    seed: int,
) -> None:
    """Trains models by name, each with several seeds, and prints what was measured of them as one table.

    Args:
        names: of the models.
        out: the folder for the table and the pictures.
        data: the data set.
        data_dir: where its files are.
        binarize: how it is binarised.
        given: settings of models and training; each model takes those that it has.
        num_samples: importance samples a datum.
        num_seeds: how often each model is trained.
        seed: the first seed.
    """
    loaded = load(data, data_dir, binarize, "vae", given["decoder"])
    if not plots.is_picture(loaded.event_shape):
        raise ValueError(f"--models compares models of images, and the data of {data} are {loaded.event_shape}.")
    event, classes = tuple(loaded.event_shape), num_classes(loaded)
    recipes = {}
    for name in names:
        defaults = {n: p.default for n, p in settings_of(MODELS[name].build).items()}
        recipes[name] = Recipe(name, event, loaded.num_levels, classes, chosen(defaults, given, data))
    out.mkdir(parents=True, exist_ok=True)
    classifier = trained_classifier(loaded, 5, seed)
    source = {"data": data, "binarization": loaded.binarization, "split": loaded.split, "num_data": len(loaded.test)}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    settings = {name: {**recipe.settings, **_training(recipe, given)} for name, recipe in recipes.items()}
    pictures = {"data": visible(loaded.test[:36], Recipe("ae", event, loaded.num_levels))}
    for name, recipe in recipes.items():
        for each in range(seed, seed + num_seeds):
            try:
                pair, seconds = _trained(recipe, loaded, given, each)
                print(f"{name}, seed {each}: {seconds:.0f} s of training", file=sys.stderr, flush=True)
                figures = {"seconds": seconds, **_measured(pair, recipe, loaded, classifier, num_samples, each)}
                if MODELS[name].samples and name not in pictures:
                    pictures[name] = visible(sample(pair, 36, *recipe.context(36), seed=each), recipe)
            except Exception as error:  # the others have their turn
                print(f"{name}, seed {each}: {reason(error)}", file=sys.stderr, flush=True)
                figures = {"diverged": True} if isinstance(error, FloatingPointError) else {"refused": reason(error)}
            runs[name].append(figures)
            rows = [
                {"name": n, **_summary(of_name), "settings": settings[n], "runs": of_name}
                for n, of_name in runs.items()
            ]
            if nothing := all("refused" in run for of_name in runs.values() for run in of_name):
                continue
            # Each time, so that whatever ends a long comparison leaves what was measured.
            write_json(
                out / "models.json", {**source, "num_samples": num_samples, "num_seeds": num_seeds, "rows": rows}
            )
            write_csv(out / "models.csv", rows, (k for k in rows[0] if k not in ("settings", "runs")))
    if nothing:
        raise ValueError(f"Every model was refused; the first: {rows[0]['refused']}")
    plots.sheet(pictures, out / "models.png", columns=len(pictures))
    _print(rows, f"{data} ({loaded.binarization} binarisation), N = {len(loaded.test)}, {num_seeds} seeds")
    print(f"Files in {out}: models.csv, models.json, models.png")


def check_taken(names: Sequence[str], typed: Sequence[str]) -> None:
    """Refuses settings that none of the models has.

    Raises:
        ValueError: one that was typed.
    """
    taken = {
        setting
        for name in names
        for function in (MODELS[name].build, MODELS[name].train)
        for setting in settings_of(function)
    }
    for setting in typed:
        if setting not in taken:
            option = setting.replace("_", "-")
            raise ValueError(f"--{option} is a setting of none of these models ({', '.join(names)}): leave it out.")


def _training(recipe: Recipe, given: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that a model's training has."""
    known = settings_of(MODELS[recipe.model].train)
    training = {n: given[n] for n in known if given.get(n) is not None}
    if "particles" in known and known["particles"].default != 1:
        training["warmup"] = 0.0  # an importance-weighted bound has no KL term to anneal
    return training


def _trained(recipe: Recipe, loaded: datasets.Dataset, given: dict[str, Any], seed: int) -> tuple[Any, float]:
    """A model trained with those of the settings that its training has, and the seconds that it took."""
    began = time.perf_counter()
    pair = build(recipe, loaded, seed)
    batch = recipe.batch(loaded.train, loaded.train_labels)
    watched = recipe.batch(loaded.validation, loaded.validation_labels)
    MODELS[recipe.model].train(pair, batch, watched, **{**_training(recipe, given), "seed": seed}, progress=False)
    return pair, time.perf_counter() - began


def _measured(
    pair: Any, recipe: Recipe, loaded: datasets.Dataset, classifier: Classifier | None, num_samples: int, seed: int
) -> dict[str, Any]:
    """What a trained model can do, each figure only where the model can do it."""
    model, test = MODELS[recipe.model], recipe.batch(loaded.test, loaded.test_labels)
    prior = getattr(pair, "prior", None)
    dim = getattr(prior, "latent_dim", None)
    figures: dict[str, Any] = {} if dim is None else {"latent": str(dim)}
    if model.scores:
        estimate = log_likelihood(pair, *test, num_samples=num_samples, seed=seed)
        figures |= {"log_likelihood": estimate.mean, "is_lower_bound": estimate.is_lower_bound}
        figures["given_class"] = model.labels is not None
    if model.reconstructs:
        latents = encode(pair, *(member[:1] for member in test))
        each = latents.values() if isinstance(latents, dict) else [latents]
        figures["latent"] = " + ".join("×".join(map(str, z.shape[1:])) for z in each)
        figures["discrete_latent"] = not any(z.is_floating_point() for z in each)
        error = visible(reconstruct(pair, *test), recipe) - visible(test[0], recipe)
        figures["reconstruction_rmse"] = error.square().mean().sqrt().item()
    if model.samples:
        report, seconds = judged(pair, recipe, loaded, classifier, len(loaded.test), seed)
        figures |= {**report.summary(), "seconds_of_sampling": seconds}
    return figures


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and how far apart they are in the Fréchet distance; why, where there are none."""
    whole = [run for run in runs if "seconds" in run]
    figures: dict[str, Any] = {"diverged": sum("diverged" in run for run in runs)}
    numbers = [
        "log_likelihood", "reconstruction_rmse", "confident", "precision", "recall", "density", "coverage",
        "Fréchet_distance", "kernel_distance", "seconds", "seconds_of_sampling",
    ]  # fmt: skip
    for name in numbers:
        values = [run[name] for run in whole if name in run]
        figures[name] = sum(values) / len(values) if values else None
    distances = [run["Fréchet_distance"] for run in whole if "Fréchet_distance" in run]
    figures["Fréchet_range"] = max(distances) - min(distances) if len(distances) > 1 else None
    shares = [min(run["class_shares"]) for run in whole if "class_shares" in run]
    figures["smallest_class_share"] = min(shares) if shares else None
    bounds = [run["is_lower_bound"] for run in whole if "is_lower_bound" in run]
    figures["is_lower_bound"] = any(bounds) if bounds else None  # a mean with a bound in it is one
    for name in ("given_class", "latent", "discrete_latent"):
        figures[name] = next((run[name] for run in whole if name in run), None)
    refused = [run["refused"] for run in runs if "refused" in run]
    figures["refused"] = NOT_YET if not runs else refused[0] if refused else None
    return figures


def _print(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=f"what was measured: {title}", title_justify="left")
    headings = [
        "model", "log p(x)", "latent", "inference: RMSE", "discrete", "stable: Fréchet, range", "sharp: precision",
        "confident", "diverse: recall", "coverage", "rarest class", "s", "s to sample",
    ]  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("model", "latent") else "right", no_wrap=True)
    for row in rows:
        likelihood = _shown(row["log_likelihood"], ".2f")
        discrete = [
            what
            for what, is_so in (("data", row["log_likelihood"] is not None), ("latent", row["discrete_latent"]))
            if is_so
        ]
        stable = f"{_shown(row['Fréchet_distance'], '.1f')}, {_shown(row['Fréchet_range'], '.1f')}"
        table.add_row(
            row["name"],
            ("≥ " if row["is_lower_bound"] else "") + likelihood + (" | y" if row["given_class"] else ""),
            row["latent"] or "–",
            _shown(row["reconstruction_rmse"], ".3f"),
            ", ".join(discrete) or "–",
            stable + (f", {row['diverged']} diverged" if row["diverged"] else ""),
            _shown(row["precision"], ".2f"),
            _shown(row["confident"], ".0%"),
            _shown(row["recall"], ".2f"),
            _shown(row["coverage"], ".2f"),
            _shown(row["smallest_class_share"], ".1%"),
            _shown(row["seconds"], ".0f"),
            _shown(row["seconds_of_sampling"], ".1f"),
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=220)
    console.print(table)
    for row in rows:
        if row["refused"]:
            print(f"Refused: {row['name']}: {row['refused']}")
    print(
        "log p(x) in nats, | y: of log p(x | y), given the class, and not to be compared with the others; –: the model "
        "has none (and one seed no range). discrete: whether it gives discrete data a "
        "probability, and whether its latent is discrete. Sharp and diverse: of samples against the test data, by the "
        "features of a classifier."
    )


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
