"""``ppgen train MODEL``: a command a model, whose options are the settings of the model and of its training."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ppgen import data as datasets
from ppgen import plots
from ppgen.catalogue import MODELS, Recipe, settings_of
from ppgen.cli.options import Binarize, DataDir, DataName, chosen, option
from ppgen.cli.source import build, error_rate, load, num_classes, visible
from ppgen.files import write_json
from ppgen.inference import encode, latent_report, log_likelihood, reconstruct, sample
from ppgen.inference.distributed import current, processes
from ppgen.priors import VampPrior
from ppgen.runs import save_run

Out = Annotated[Path, typer.Option(help="The run's folder; it must not hold a run yet.")]

train_app = typer.Typer(no_args_is_help=True, help="Train a model on a data set, into a run's folder.")


def _command(name: str) -> Callable[..., None]:
    """The command that trains a model, with a signature made of its builder's keywords and its training's."""
    model = MODELS[name]
    parts = {n: p.default for n, p in settings_of(model.build).items()}
    training = {n: p.default for n, p in settings_of(model.train).items()}

    def command(out: Path, data: str, data_dir: Path | None, binarize: str | None, **given: Any) -> None:
        with processes():  # this one, or those of torchrun
            run(name, out, data, data_dir, binarize, chosen(parts, given, data), {n: given[n] for n in training})

    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = {"out": (Out, inspect.Parameter.empty), "data": (DataName, "digits")}
    last = {"data_dir": (DataDir, None), "binarize": (Binarize, None)}
    own = {n: (option(n, d), d) for n, d in {**parts, **training}.items()}
    # A size that was not typed depends on the data.
    own = {
        n: (kind, None if type(None) in getattr(kind.__origin__, "__args__", ()) else d) for n, (kind, d) in own.items()
    }
    every = {**shared, **own, **last}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # which typer reads
        [inspect.Parameter(n, keyword, annotation=kind, default=default) for n, (kind, default) in every.items()]
    )
    command.__annotations__ = {n: kind for n, (kind, _) in every.items()}
    command.__doc__ = (
        f"{model.line[0].upper()}{model.line[1:]} ({model.paper}).\n\n"
        "Writes config.json, model.safetensors, history.json, metrics.json and pictures into the run's folder.\n\n"
        f"Example: ppgen train {name} --data mnist --epochs 10 --out runs/{name}"
    )
    return command


for _name in MODELS:
    train_app.command(_name)(_command(_name))


def run(
    name: str,
    out: Path,
    data: str,
    data_dir: Path | None,
    binarize: str | None,
    settings: dict[str, Any],
    training: dict[str, Any],
) -> None:
    """Trains a model by its name, and writes its run; of several processes the first writes and prints."""
    leads = current().leads
    if (out / "config.json").exists():
        raise ValueError(f"--out {out} already holds a run: choose another folder, or remove that one.")
    loaded = load(data, data_dir, binarize, name, settings.get("decoder"))
    recipe = Recipe(name, tuple(loaded.event_shape), loaded.num_levels, num_classes(loaded), settings)
    batch = recipe.batch(loaded.train, loaded.train_labels)
    validation = recipe.batch(loaded.validation, loaded.validation_labels)
    pair = build(recipe, loaded, training["seed"])
    if recipe.note and leads:
        print(f"Note: {recipe.note}.", file=sys.stderr, flush=True)
    history = MODELS[name].train(pair, batch, validation, **training)
    source = {"name": data, "binarization": loaded.binarization, "split": loaded.split}
    if leads:
        save_run(out, pair, recipe, data=source, training=training, history=history)
    seed = training["seed"]
    metrics: dict[str, Any] = {"epochs": len(history.loss), "seconds": sum(history.seconds)}
    metrics["monitors"] = {name: values[-1] for name, values in history.monitors.items()}
    said = f"{len(history.loss)} epochs in {sum(history.seconds):.0f} s"
    if MODELS[name].scores:
        estimate = log_likelihood(pair, *validation, num_samples=100, seed=seed)
        metrics["validation"] = estimate.summary()
        said += f"; validation: {estimate}"
    elif history.validation:
        said += f"; validation: reconstruction error {history.validation[-1]:.2f} nats"
    if not leads:
        return
    print(said)
    for monitor, value in metrics["monitors"].items():
        print(f"{monitor}: {value:.3g}")
    if MODELS[name].reconstructs and MODELS[name].scores and name != "vqvae":
        report = latent_report(pair, *validation, seed=seed)
        metrics |= {"kl": report.kl, "active_units": report.active_units}
        units = ", ".join(
            f"{site}: KL {report.kl[site]:.2f} nats, {n} units active" for site, n in report.active_units.items()
        )
        print(units)
    if name == "ss-vae":
        metrics["error_rate"] = error_rate(pair, loaded.validation, validation[1])
        print(f"Error rate on the validation data: {metrics['error_rate']:.2%}")
    write_json(out / "metrics.json", metrics)
    pictures = _draw(pair, recipe, loaded, history, out, seed)
    print(f"Written to {out}: config.json, model.safetensors, history.json, metrics.json, {', '.join(pictures)}")


def _draw(pair: Any, recipe: Recipe, loaded: datasets.Dataset, history: Any, out: Path, seed: int) -> list[str]:
    plots.losses(history, out / "losses.png")
    names = ["losses.png"]
    if not plots.is_picture(recipe.shape):
        return names
    if recipe.model != "ae":  # which has nothing to draw from
        drawn = sample(pair, 64, *recipe.context(64), mean=True, seed=seed)
        plots.images(visible(drawn, recipe), out / "samples.png", title="means of p(x | z), z from the prior")
        names.append("samples.png")
    if MODELS[recipe.model].reconstructs:
        labels = None if loaded.test_labels is None else loaded.test_labels[:32]
        given = recipe.batch(loaded.test[:32], labels)
        both = torch.stack([given[0].float(), reconstruct(pair, *given, seed=seed)], 1).flatten(0, 1)
        title = "test data, each with its reconstruction to the right"
        plots.images(visible(both, recipe), out / "reconstructions.png", title=title)
        names.append("reconstructions.png")
        latents = encode(pair, *given)
        if recipe.model == "vae" and latents.shape[-1] == 2:
            plots.manifold(pair, out / "manifold.png", top=recipe.observed.high)
            names.append("manifold.png")
        if recipe.model == "vae":
            x, top = loaded.test[:100], recipe.observed.high
            plots.traversals(pair, x, out / "traversals.png", top=top)
            plots.interpolations(pair, x[:8], x[:8].roll(1, 0), out / "interpolations.png", top=top)
            names += ["traversals.png", "interpolations.png"]
    prior = getattr(pair, "prior", None)
    if isinstance(prior, VampPrior):
        inputs = prior.pseudo_inputs.detach().clamp(prior.low, prior.high).cpu()
        plots.images(visible(inputs[:64], recipe), out / "pseudo_inputs.png", title="pseudo-inputs")
        names.append("pseudo_inputs.png")
    return names
