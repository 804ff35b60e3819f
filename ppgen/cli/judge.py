"""``ppgen judge RUN``: what a run's samples are worth, with or without a likelihood."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ppgen import data as datasets
from ppgen.catalogue import MODELS, Recipe
from ppgen.cli.options import Allow, DataDir, MovedData, NoiseSeed, RunFolder
from ppgen.cli.source import data_of, num_classes
from ppgen.files import json_text, write_json
from ppgen.inference import sample
from ppgen.inference.programs.networks import usable_device
from ppgen.judge import Classifier, SampleReport, sample_report, train_classifier
from ppgen.runs import JUDGEMENT, load_run

FEWEST = 6  # density and coverage look at the 5 nearest neighbours of each


def judge(
    run: RunFolder,
    num: Annotated[int, typer.Option(help="How many samples.")] = 1000,
    epochs: Annotated[
        int, typer.Option(help="Of the classifier that the samples are shown to, at least; small data take more.")
    ] = 5,
    seed: NoiseSeed = 0,
    allow: Allow = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and nothing else.")] = False,
    data: MovedData = None,
    data_dir: DataDir = None,
) -> None:
    """Samples of a run against test data: precision, recall, density, coverage, Fréchet and kernel distance, classes.

    Data and samples are compared by the last hidden layer of a small classifier, trained here on the same data.

    Example: ppgen judge runs/gan --num 1000
    """
    if num < FEWEST:
        raise ValueError(
            f"--num must be at least {FEWEST}, since samples are compared with their neighbours, got {num}."
        )
    pair, recipe, config = load_run(run, allow or ())
    check_samples(run, recipe)
    pair.to(usable_device("auto"))
    loaded = data_of(run, recipe, config, data_dir, allow or (), data)
    if len(loaded.test) < FEWEST:
        raise ValueError(
            f"{loaded.name} has {len(loaded.test)} test data, and at least {FEWEST} are needed: take more."
        )
    classifier = trained_classifier(loaded, epochs, seed)
    report, seconds = judged(pair, recipe, loaded, classifier, num, seed)
    figures = {**report.summary(), "seconds_of_sampling": seconds, "seed": seed}
    if classifier is not None and loaded.test_labels is not None:
        figures["classifier_accuracy"] = classifier.accuracy(loaded.test, loaded.test_labels)
    write_json(run / JUDGEMENT, figures)
    if as_json:
        print(json_text(figures))
        return
    if "classifier_accuracy" in figures:
        print(f"classifier: {figures['classifier_accuracy']:.2%} of the test data right")
    print(report)


def check_samples(run: Path, recipe: Recipe) -> None:
    """Refuses a run of a model that has none.

    Raises:
        ValueError: nothing can be drawn from it.
    """
    if not MODELS[recipe.model].samples:
        able = ", ".join(name for name, model in MODELS.items() if model.samples)
        raise ValueError(
            f"The run {run} is of {recipe.model}, which has no prior to draw samples from: take a run of another model "
            f"({able})."
        )


def trained_classifier(loaded: datasets.Dataset, epochs: int, seed: int) -> Classifier | None:
    """A classifier of the data set, where it has classes."""
    if loaded.train_labels is None or num_classes(loaded) is None:
        return None
    steps = max(1, len(loaded.train) // 100)
    enough = max(epochs, -(-500 // steps))  # small data sets need more passes
    print(f"training a classifier of {loaded.name} ({enough} epochs)", file=sys.stderr, flush=True)
    return train_classifier(loaded.train, loaded.train_labels, levels=loaded.num_levels, epochs=enough, seed=seed)


def judged(
    pair: Any, recipe: Recipe, loaded: datasets.Dataset, classifier: Classifier | None, num: int, seed: int
) -> tuple[SampleReport, float]:
    """The measures of so many samples against the test data, and the seconds that sampling took."""
    began = time.perf_counter()
    blocks = [
        sample(pair, min(500, num - i), *recipe.context(min(500, num - i)), seed=seed + i) for i in range(0, num, 500)
    ]
    seconds = time.perf_counter() - began
    drawn = torch.cat(blocks).reshape(num, *recipe.shape)
    return sample_report(loaded.test[:num].to(drawn.dtype), drawn, classifier=classifier), seconds
