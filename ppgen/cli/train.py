"""``ppgen train MODEL``: a command a model, whose options are the settings of the model and of its training."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import torch
import typer

from ppgen import data as datasets
from ppgen import plots
from ppgen.catalogue import MODELS, Recipe, settings_of
from ppgen.cli.log import LOG, logging_to
from ppgen.cli.options import Allow, Binarize, DataDir, DataName, MovedData, chosen, option
from ppgen.cli.source import build, data_of, described, error_rate, load, num_classes, visible
from ppgen.files import MANIFEST, write_json
from ppgen.inference import encode, latent_report, log_likelihood, reconstruct, sample
from ppgen.inference.execution.distributed import current, processes
from ppgen.priors import VampPrior
from ppgen.runs import CONFIG, MODEL, begin_run, read_config, save_run

CHECKPOINTS = "checkpoints"
log = logging.getLogger(__name__)

Out = Annotated[Path, typer.Option(help="The run's folder; it must not hold a run yet.")]

train_app = typer.Typer(help="Train a model on a data set, into a run's folder; or go on with a run that was stopped.")

Resume = Annotated[Path | None, typer.Option(help="Go on with the run in this folder, as if it had never stopped.")]
MoreEpochs = Annotated[int | None, typer.Option(help="Of a run that goes on: passes over its data in all, at most.")]


@train_app.callback(invoke_without_command=True)
def resume_or_train(
    ctx: typer.Context,
    resume: Resume = None,
    epochs: MoreEpochs = None,
    data: MovedData = None,
    data_dir: DataDir = None,
    allow: Allow = None,
) -> None:
    """Train a model on a data set, into a run's folder; or go on with a run that was stopped.

    Model and settings of a run that goes on come from its folder.

    Example: ppgen train --resume runs/vae --epochs 200
    """
    model = ctx.invoked_subcommand
    if resume is not None and model is not None:
        raise ValueError(f"--resume {resume} takes the model and its settings from the folder: leave out {model}.")
    if resume is not None:
        with processes():
            go_on(resume, epochs, data_dir, allow or (), data)
        return
    given = {"--epochs": epochs, "--data": data, "--data-dir": data_dir, "--allow": allow or None}
    if typed := [option for option, value in given.items() if value is not None]:
        raise ValueError(
            f"{typed[0]} is in front of a model only with --resume FOLDER; of a new run it comes behind its model "
            f"(ppgen train {model or 'vae'} …)."
        )
    if model is None:
        print(ctx.get_help())


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
        "Writes config.json, model.safetensors, history.json, metrics.json, a log and pictures into the folder.\n\n"
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
    if (out / MODEL).exists():
        raise ValueError(f"--out {out} already holds a run: choose another folder, or remove that one.")
    if _was_saved(out) or (out / CONFIG).exists():
        raise ValueError(
            f"--out {out} holds a run that was stopped, or a config.json of something else: go on with it (ppgen train "
            f"--resume {quote(str(out))}), choose another folder, or remove that one."
        )
    loaded = load(data, data_dir, binarize, name, settings.get("decoder"))
    recipe = Recipe(name, tuple(loaded.event_shape), loaded.num_levels, num_classes(loaded), settings)
    source = described(data, loaded)
    before = _begun(out)
    if current().leads:
        begin_run(out, recipe, data=source, training=training)  # if it is refused, all that is there is another's
    try:
        _train(out, recipe, loaded, source, training, "")
    except Exception:
        if current().leads and not _was_saved(out):
            _remove_begun(out, before)
        raise


def go_on(
    folder: Path, epochs: int | None, data_dir: Path | None, allow: Sequence[str], data: str | None = None
) -> None:
    """Continues the run in a folder, maybe for more epochs than it began with."""
    recipe, config = read_config(folder, allow)
    training = _checked(config["training"], recipe.model, folder)
    if (folder / MANIFEST).exists():  # the last thing that a run writes
        if epochs is None:
            raise ValueError(
                f"The run {folder} has ended, after {training['epochs']} epochs at most: ask for more (--epochs)."
            )
        if not _was_saved(folder):
            raise ValueError(
                f"The run {folder} has ended, and its {CHECKPOINTS} are not there to go on from: begin another (--out)."
            )
    more = "" if epochs is None else f" --epochs {epochs}"
    training["epochs"] = training["epochs"] if epochs is None else epochs
    loaded = data_of(folder, recipe, config, data_dir, allow, data)
    _train(folder, recipe, loaded, described(data or config["data"]["name"], loaded), training, more)


def _checked(training: dict[str, Any], model: str, folder: Path) -> dict[str, Any]:
    """The settings of a training that a file names, each of the kind that it has to be."""
    known = {n: p.default for n, p in settings_of(MODELS[model].train).items()}
    wrong = [n for n in known.keys() | training.keys() if type(training.get(n)) is not type(known.get(n))]
    if wrong:
        raise ValueError(
            f"{folder / CONFIG}: {wrong[0]}={training.get(wrong[0])!r} is no setting of the training of {model}."
        )
    return dict(training)


def _train(
    out: Path, recipe: Recipe, loaded: datasets.Dataset, source: dict[str, Any], training: dict[str, Any], more: str
) -> None:
    """Until its end nothing in the folder changes but checkpoints and log: what a run that goes on had stays good."""
    leads, name = current().leads, recipe.model
    batch = recipe.batch(loaded.train, loaded.train_labels)
    validation = recipe.batch(loaded.validation, loaded.validation_labels)
    pair = build(recipe, loaded, training["seed"])
    if recipe.note and leads:
        print(f"Note: {recipe.note}.", file=sys.stderr, flush=True)
    try:
        with logging_to(out) if leads else nullcontext():
            log.info("%s of %s; %s", name, loaded, ", ".join(f"{n} {v}" for n, v in training.items()))
            history = MODELS[name].train(pair, batch, validation, checkpoint=out / CHECKPOINTS, **training)
    except KeyboardInterrupt:
        print(f"Interrupted. To go on: ppgen train --resume {quote(str(out))}{more}", file=sys.stderr, flush=True)
        raise
    if leads:
        save_run(out, pair, recipe, data=source, training=training, history=history)
    scored = recipe.scored_batch(loaded.validation, loaded.validation_labels)
    seed = training["seed"]
    metrics: dict[str, Any] = {"epochs": len(history.loss), "seconds": sum(history.seconds)}
    metrics["monitors"] = {name: values[-1] for name, values in history.monitors.items()}
    said = f"{len(history.loss)} epochs in {sum(history.seconds):.0f} s"
    if MODELS[name].scores:
        estimate = log_likelihood(pair, *scored, num_samples=100, seed=seed)
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
        report = latent_report(pair, *scored, seed=seed)
        metrics |= {"kl": report.kl, "active_units": report.active_units}
        units = ", ".join(
            f"{site}: KL {report.kl[site]:.2f} nats, {n} units active" for site, n in report.active_units.items()
        )
        print(units)
    if MODELS[name].classifies:
        metrics["error_rate"] = error_rate(pair, loaded.validation, validation[1])
        print(f"Error rate on the validation data: {metrics['error_rate']:.2%}")
    write_json(out / "metrics.json", metrics)
    pictures = _draw(pair, recipe, loaded, history, out, seed)
    print(f"Written to {out}: config.json, model.safetensors, history.json, metrics.json, {LOG}, {', '.join(pictures)}")


def _was_saved(out: Path) -> bool:
    return any((out / CHECKPOINTS).glob(f"**/{MANIFEST}"))


def _begun(out: Path) -> dict[Path, int]:
    """What there is of all that a run makes before its first checkpoint, a folder after what is in it, with sizes."""
    inside = sorted((out / CHECKPOINTS).rglob("*"), reverse=True)
    every = (out / CONFIG, out / LOG, *inside, out / CHECKPOINTS, out, *out.parents)
    return {path: path.stat().st_size for path in every if path.exists()}


def _remove_begun(out: Path, before: dict[Path, int]) -> None:
    """Leaves no trace of a run that was refused before its first step, and what was there before it as it was."""
    begun = _begun(out)
    if any(path.name == ".lock" and path not in before for path in begun):  # this run's own is gone by now
        return  # to another process, which went on with this run (--resume) before its first step
    for path in begun:
        with suppress(OSError):  # of a folder into which somebody else has put something
            if path not in before:
                path.rmdir() if path.is_dir() else path.unlink()
            elif path == out / LOG:
                os.truncate(path, before[path])


def _draw(pair: Any, recipe: Recipe, loaded: datasets.Dataset, history: Any, out: Path, seed: int) -> list[str]:
    plots.losses(history, out / "losses.png")
    names = ["losses.png"]
    if not plots.is_picture(recipe.shape):
        return names
    if MODELS[recipe.model].samples:
        drawn = sample(pair, 64, *recipe.context(64), mean=True, seed=seed)
        title = "means of p(x | z), z from the prior" if MODELS[recipe.model].reconstructs else "samples"
        plots.images(visible(drawn, recipe), out / "samples.png", title=title)
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
