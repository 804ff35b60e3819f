"""The command line: it parses, builds, and calls the library."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from ppgen import data as datasets
from ppgen import plots
from ppgen.catalogue import DECODERS, POSTERIORS, PRIORS, Recipe, lookup, pseudo_inputs
from ppgen.compare import Comparison
from ppgen.compare import compare as compare_pairs
from ppgen.inference import elbo, encode, fit, iwae, latent_report, log_likelihood, reconstruct, sample, warmup
from ppgen.models import VAE
from ppgen.priors import VampPrior
from ppgen.runs import load_run, save_run, write_json

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Deep generative models as Pyro programs: train, evaluate by importance sampling, sample, compare.",
)
train_app = typer.Typer(no_args_is_help=True, help="Train a model on a data set, into a run's folder.")
app.add_typer(train_app, name="train")

# What both training and comparing ask for. Sizes of None depend on the data: digits are small.
DataName = Annotated[
    str, typer.Option("--data", help="A data set (see `ppgen list`), a .npz, .npy or .pt file, a folder.")
]
DataDir = Annotated[
    Path | None, typer.Option(help="Where data files are; otherwise $PPGEN_DATA, then the user's cache.")
]
Binarize = Annotated[str | None, typer.Option(help="none, fixed or dynamic; the data set's own habit if not given.")]
Decoder = Annotated[str, typer.Option(help=f"{', '.join(DECODERS)}.")]
Latent = Annotated[int | None, typer.Option(help="Coordinates of the latent (digits: 8, otherwise 40).")]
Components = Annotated[
    int | None, typer.Option(help="Mixture components or pseudo-inputs (digits: 50, otherwise 500).")
]
Hidden = Annotated[str | None, typer.Option(help="Sizes of the hidden gated layers (digits: 64, otherwise 300,300).")]
Batch = Annotated[int, typer.Option(help="Data in a batch.")]
Rate = Annotated[float, typer.Option(help="Adam's learning rate.")]
Patience = Annotated[int, typer.Option(help="Epochs without a better validation loss before stopping; 0 for none.")]
Seed = Annotated[int, typer.Option(help="Of parameters, order of the data, and noise.")]
Allow = Annotated[str, typer.Option(help="Import paths (module:Class) that the run may name.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, …")]


def main() -> None:
    """The entry point: bad input ends in one line and exit status 2, without a traceback."""
    logging.captureWarnings(True)
    sys.path.insert(0, os.getcwd())  # parts of the user's own are looked for where the command is given
    try:
        status = app(standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError) as error:
        _fail(str(error))
    except Exception as error:
        if not hasattr(error, "format_message"):  # the parser's own errors: unknown options, missing arguments
            raise
        if message := error.format_message():
            _fail(f"{message} See --help.")
        sys.exit(0)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> None:
    print("Error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _load(name: str, data_dir: Path | None, binarize: str | None, decoder: str) -> datasets.Dataset:
    """A data set in the form that the decoder scores."""
    kind = DECODERS[lookup("decoder", decoder, DECODERS)].kind
    choice: Any = None if binarize is None else lookup("binarisation", binarize, ("none", "fixed", "dynamic"))
    if choice is None and kind != "binary":
        choice = "none"
    loaded = datasets.load(name, data_dir=data_dir, binarize=choice)
    if kind == "real" and loaded.kind == "levels" and loaded.num_levels:
        top = loaded.num_levels - 1
        scaled = {part: getattr(loaded, part)[:].float() / top for part in ("train", "validation", "test")}
        loaded = replace(loaded, num_levels=None, **scaled)
    if loaded.kind != kind:
        has = f"{loaded.num_levels} levels" if loaded.kind == "levels" else f"{loaded.kind} values"
        mend = (
            "add --binarize dynamic (pixels become probabilities of a new draw at each use) or --binarize fixed"
            if kind == "binary"
            else "choose another --decoder or --binarize"
        )
        raise ValueError(f"--data {name} has {has}, and the decoder {decoder} is for {kind} data: {mend}.")
    return loaded


def _names(option: str, text: str, known: Any) -> list[str]:
    if text.strip() == "all":
        return list(known)
    names = [lookup(option, name.strip(), known, importable=True) for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--{option} names nothing: give some of {', '.join(known)}, separated by commas.")
    return list(dict.fromkeys(names))


def _recipe(
    prior: str,
    posterior: str,
    decoder: str,
    loaded: datasets.Dataset,
    latent: int | None,
    components: int | None,
    hidden: str | None,
) -> Recipe:
    small = loaded.name == "digits"
    try:
        sizes = tuple(int(size) for size in hidden.split(",")) if hidden else ((64,) if small else (300, 300))
    except ValueError:
        raise ValueError(
            f"--hidden must be whole numbers separated by commas, for example 300,300; got {hidden!r}."
        ) from None
    return Recipe(
        prior,
        posterior,
        tuple(loaded.event_shape),
        latent_dim=(8 if small else 40) if latent is None else latent,
        num_components=(50 if small else 500) if components is None else components,
        hidden=sizes,
        decoder=decoder,
        num_levels=loaded.num_levels,
    )


def _build(recipe: Recipe, loaded: datasets.Dataset, seed: int) -> VAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = pseudo_inputs(loaded.train, recipe.num_components, seed) if recipe.prior == "vamp" else None
        return recipe.build(start)


def _check_training(lr: float, warm: float, patience: int, epochs: int) -> None:
    if not 0 < lr < 10:
        raise ValueError(f"--lr must be a positive learning rate below 10, got {lr}.")
    if not 0 <= warm < float("inf"):
        raise ValueError(f"--warmup must be a number of epochs that is not negative, got {warm}.")
    if patience < 0:
        raise ValueError(f"--patience must not be negative, got {patience}.")
    if patience and warm >= epochs:
        raise ValueError(
            f"--warmup {warm:g} is not over before --epochs {epochs}: early stopping could never keep anything."
        )


def _adam(lr: float) -> Any:
    return partial(torch.optim.Adam, lr=lr, fused=True)


@train_app.command("vae")
def train_vae(
    out: Annotated[Path, typer.Option(help="The run's folder; it must not hold a run yet.")],
    data: DataName = "digits",
    prior: Annotated[str, typer.Option(help=", ".join(PRIORS))] = "standard",
    posterior: Annotated[str, typer.Option(help=", ".join(POSTERIORS))] = "diagonal",
    epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = 100,
    particles: Annotated[int, typer.Option(help="k of the importance-weighted bound; 1 trains on the ELBO.")] = 1,
    batch_size: Batch = 100,
    lr: Rate = 1e-3,
    warmup_epochs: Annotated[float, typer.Option("--warmup", help="Epochs of KL warm-up; 0 for none.")] = 0,
    patience: Patience = 0,
    decoder: Decoder = "bernoulli",
    latent_dim: Latent = None,
    num_components: Components = None,
    hidden: Hidden = None,
    seed: Seed = 0,
    device: Device = "auto",
    data_dir: DataDir = None,
    binarize: Binarize = None,
) -> None:
    """Train a variational autoencoder: any prior with any posterior and any decoder.

    A prior or posterior of your own goes by its import path, for example --prior mymodule:MyPrior.

    Writes config.json, model.safetensors, history.json, metrics.json and pictures into the run's folder.

    Example: ppgen train vae --data mnist --prior vamp --epochs 10 --out runs/vamp
    """
    if (out / "config.json").exists():
        raise ValueError(f"--out {out} already holds a run: choose another folder, or remove that one.")
    _check_training(lr, warmup_epochs, patience, epochs)
    if particles != 1 and warmup_epochs:
        raise ValueError(
            "--warmup belongs to the ELBO's KL term: the importance-weighted bound (--particles) has none."
        )
    loaded = _load(data, data_dir, binarize, decoder)
    recipe = _recipe(prior, posterior, decoder, loaded, latent_dim, num_components, hidden)
    pair = _build(recipe, loaded, seed)
    if recipe.note:
        _say(f"Note: {recipe.note}.")
    loss = iwae(particles) if particles != 1 else elbo(beta=warmup(warmup_epochs) if warmup_epochs else 1.0)
    history = fit(
        pair,
        loaded.train,
        loss=loss,
        epochs=epochs,
        batch_size=batch_size,
        validation=loaded.validation,
        patience=patience or None,
        optimizer=_adam(lr),
        seed=seed,
        device=device,
    )
    source = {"name": data, "binarization": loaded.binarization, "split": loaded.split}
    training = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "warmup": warmup_epochs,
        "patience": patience,
        "particles": particles,
        "seed": seed,
    }
    save_run(out, pair, recipe, data=source, training=training, history=history)
    estimate = log_likelihood(pair, loaded.validation, num_samples=100, seed=seed)
    report = latent_report(pair, loaded.validation, seed=seed)
    metrics = {
        "validation": estimate.summary(),
        "kl": report.kl,
        "active_units": report.active_units,
        "epochs": len(history.loss),
        "seconds": sum(history.seconds),
    }
    write_json(out / "metrics.json", metrics)
    pictures = _draw(pair, loaded, history, out, seed)
    print(f"{len(history.loss)} epochs in {sum(history.seconds):.0f} s; validation: {estimate}")
    active = sum(report.active_units.values())
    print(f"KL {sum(report.kl.values()):.2f} nats, {active} of {recipe.latent_dim} units active")
    print(f"Written to {out}: config.json, model.safetensors, history.json, metrics.json, {', '.join(pictures)}")


def _visible(values: torch.Tensor, num_levels: int | None) -> torch.Tensor:
    """Data as brightness in [0, 1]."""
    return values.float() / (num_levels - 1) if num_levels else values.float()


def _draw(pair: VAE, loaded: datasets.Dataset, history: Any, out: Path, seed: int) -> list[str]:
    plots.losses(history, out / "losses.png")
    names = ["losses.png"]
    if not plots.is_picture(loaded.event_shape):
        return names
    levels = loaded.num_levels
    drawn = _visible(sample(pair, 64, mean=True, seed=seed), levels)
    plots.images(drawn, out / "samples.png", title="means of p(x | z), z from the prior")
    given = loaded.test[:32]
    both = torch.stack([given.float(), reconstruct(pair, given, seed=seed)], 1).flatten(0, 1)
    plots.images(
        _visible(both, levels),
        out / "reconstructions.png",
        title="test data, each with its reconstruction to the right",
    )
    names += ["samples.png", "reconstructions.png"]
    if isinstance(pair.prior, VampPrior):
        inputs = pair.prior.pseudo_inputs.detach().clamp(pair.prior.low, pair.prior.high).cpu()
        plots.images(_visible(inputs[:64], levels), out / "pseudo_inputs.png", title="pseudo-inputs")
        names.append("pseudo_inputs.png")
    if encode(pair, loaded.test[:1]).shape[-1] == 2:
        plots.manifold(pair, out / "manifold.png", top=levels - 1 if levels else 1)
        names.append("manifold.png")
    return names


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that `ppgen train` wrote.")],
    num_samples: Annotated[int, typer.Option(help="Importance samples a datum.")] = 5000,
    num_data: Annotated[int | None, typer.Option(help="Only the first so many test data.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    allow: Allow = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and nothing else.")] = False,
    data_dir: DataDir = None,
) -> None:
    """The test log-likelihood of a run by importance sampling, with its errors.

    Example: ppgen evaluate runs/vamp --num-samples 5000 --json
    """
    pair, config = load_run(run, allow.split(","))
    loaded = _load(config["data"]["name"], data_dir, config["data"]["binarization"], config["recipe"]["decoder"])
    if num_data is not None and num_data < 1:
        raise ValueError(f"--num-data must be a positive whole number, got {num_data}.")
    pair.to("cuda" if torch.cuda.is_available() else "cpu")
    estimate = log_likelihood(pair, loaded.test[:num_data], num_samples=num_samples, seed=seed)
    figures = estimate.summary()
    write_json(run / "evaluation.json", {**figures, "seed": seed})
    print(json.dumps(figures, indent=2) if as_json else str(estimate))


@app.command("sample")
def sample_run(
    run: Annotated[Path, typer.Argument(help="A folder that `ppgen train` wrote.")],
    num: Annotated[int, typer.Option(help="How many.")] = 64,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("samples.png"),
    allow: Allow = "",
    draws: Annotated[bool, typer.Option(help="Draw pixels, in place of the mean of p(x | z).")] = False,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
) -> None:
    """Samples of a run as a picture.

    Example: ppgen sample runs/vamp --num 64 --out samples.png
    """
    pair, config = load_run(run, allow.split(","))
    shape = config["recipe"]["shape"]
    if not plots.is_picture(shape):
        raise ValueError(
            f"The data of {run} have shape {tuple(shape)}, which is no picture: use ppgen.inference.sample."
        )
    drawn = sample(pair, num, mean=not draws, seed=seed)
    plots.images(_visible(drawn, config["recipe"]["num_levels"]), out)
    print(f"{num} samples in {out}")


@app.command()
def compare(
    data: DataName = "digits",
    prior: Annotated[str, typer.Option(help=f"Some of {', '.join(PRIORS)}; or all.")] = "standard,mog,vamp,flow",
    posterior: Annotated[
        str, typer.Option(help=f"Some of {', '.join(POSTERIORS)}; or all.")
    ] = "diagonal,full,householder,iaf",
    out: Annotated[Path, typer.Option(help="The folder for the table and the pictures.")] = Path("runs/compare"),
    epochs: Annotated[int, typer.Option(help="At most so many passes over the training data.")] = 100,
    num_samples: Annotated[int, typer.Option(help="Importance samples a datum.")] = 1000,
    batch_size: Batch = 100,
    lr: Rate = 3e-3,
    warmup_epochs: Annotated[float, typer.Option("--warmup", help="Epochs of KL warm-up; 0 for none.")] = 10,
    patience: Patience = 20,
    decoder: Decoder = "bernoulli",
    latent_dim: Latent = None,
    num_components: Components = None,
    hidden: Hidden = None,
    seed: Seed = 0,
    device: Device = "auto",
    data_dir: DataDir = None,
    binarize: Binarize = None,
) -> None:
    """Train every prior with every posterior, evaluate each by importance sampling, and say which is better.

    Data, seed, noise and the shape of the decoder are the same for all; differences are paired, datum by datum.

    Example: ppgen compare --data digits --prior standard,vamp --posterior diagonal,iaf --out runs/compare
    """
    _check_training(lr, warmup_epochs, patience, epochs)
    chosen = [(p, q) for p in _names("prior", prior, PRIORS) for q in _names("posterior", posterior, POSTERIORS)]
    loaded = _load(data, data_dir, binarize, decoder)
    recipes = {f"{p} + {q}": _recipe(p, q, decoder, loaded, latent_dim, num_components, hidden) for p, q in chosen}
    out.mkdir(parents=True, exist_ok=True)
    pairs: dict[str, Any] = {}
    details: dict[str, dict[str, Any]] = {}
    refused: list[dict[str, Any]] = []
    for i, (name, recipe) in enumerate(recipes.items(), 1):
        began = time.perf_counter()
        try:
            pair = _build(recipe, loaded, seed)
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            refused.append({"name": name, "prior": recipe.prior, "posterior": recipe.posterior, "refused": reason})
            _say(f"[{i}/{len(recipes)}] {name}: refused: {reason}")
            continue
        history = fit(
            pair,
            loaded.train,
            loss=elbo(beta=warmup(warmup_epochs) if warmup_epochs else 1.0),
            epochs=epochs,
            batch_size=batch_size,
            validation=loaded.validation,
            patience=patience or None,
            optimizer=_adam(lr),
            seed=seed,
            device=device,
            progress=False,
        )
        seconds = time.perf_counter() - began
        pairs[name] = pair
        details[name] = {"prior": recipe.prior, "posterior": recipe.posterior, "seconds": round(seconds, 1)}
        _say(
            f"[{i}/{len(recipes)}] {name}: {len(history.loss)} epochs in {seconds:.0f} s"
            + (f" (note: {recipe.note})" if recipe.note else "")
        )
    if not pairs:
        raise ValueError(f"Every combination was refused; the first: {refused[0]['refused']}")
    result = compare_pairs(pairs, loaded.test, num_samples=num_samples, seed=seed, details=details)
    source = {"data": data, "binarization": loaded.binarization, "split": loaded.split, "num_data": len(loaded.test)}
    settings = {"epochs": epochs, "num_samples": num_samples, "batch_size": batch_size, "lr": lr, "seed": seed}
    settings |= {"warmup": warmup_epochs, "patience": patience}
    first = next(iter(recipes.values()))
    shared = {"latent_dim": first.latent_dim, "num_components": first.num_components, "hidden": first.hidden}
    verdict = result.verdict()
    write_json(
        out / "comparison.json", {**source, **settings, **shared, "verdict": verdict, "rows": [*result.rows, *refused]}
    )
    result.write_csv(out / "comparison.csv", refused)
    plots.comparison(result.rows, out / "comparison.png")
    files = ["comparison.csv", "comparison.json", "comparison.png"]
    if plots.is_picture(loaded.event_shape):
        means = {name: sample(pair, 36, mean=True, seed=seed) for name, pair in pairs.items()}
        groups = {name: _visible(mean, loaded.num_levels) for name, mean in means.items()}
        plots.sheet(groups, out / "samples.png", columns=len({q for _, q in chosen}))
        files.append("samples.png")
    _print_table(result, f"{data} ({loaded.binarization} binarisation), N = {len(loaded.test)}, S = {num_samples}")
    for cell in refused:
        print(f"Refused: {cell['name']}: {cell['refused']}")
    print(verdict)
    print(f"Files in {out}: {', '.join(files)}")


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


@app.command("list")
def list_parts() -> None:
    """Every part and every data set, a line each."""
    for heading, parts in (("Priors", PRIORS), ("Posteriors", POSTERIORS), ("Decoders", DECODERS)):
        print(f"{heading}:")
        for name, part in parts.items():
            kind = f" [{part.kind} data]" if part.kind else ""
            print(f"  {name:<20} {part.line}{kind} ({part.paper})")
    print("Data sets:")
    for name, line in datasets.describe().items():
        print(f"  {name:<20} {line}")


if __name__ == "__main__":
    main()
