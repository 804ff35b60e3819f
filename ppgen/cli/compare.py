"""``ppgen compare``: every prior with every posterior, in one table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ppgen.catalogue import MODELS, POSTERIORS, PRIORS, lookup, settings_of
from ppgen.catalogue.training import check_schedule
from ppgen.cli.combinations import combinations
from ppgen.cli.lineup import check_taken, lineup
from ppgen.cli.options import HELP, Binarize, DataDir, DataName, option
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
    given = {"decoder": decoder, "latent_dim": latent_dim, "num_components": num_components, "hidden": hidden}
    source = (data, data_dir, binarize, model, decoder)
    combinations(grid, out, source, given, training, num_samples, seed, device, jobs)


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


def _names(option: str, text: str, known: Any) -> list[str]:
    if text.strip() == "all":
        return list(known)
    own = option != "models"  # a part may be one's own
    names = [lookup(option, name.strip(), known, importable=own) for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--{option} names nothing: give some of {', '.join(known)}, separated by commas.")
    return list(dict.fromkeys(names))
