"""``ppgen evaluate RUN``: the test log-likelihood of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from ppgen.catalogue import MODELS
from ppgen.cli.options import Allow, DataDir, MovedData, NoiseSeed, RunFolder
from ppgen.cli.source import data_of, error_rate
from ppgen.decoders import bits_per_dim
from ppgen.files import json_text, write_json
from ppgen.inference import log_likelihood
from ppgen.inference.execution.distributed import processes
from ppgen.inference.programs.networks import usable_device
from ppgen.numbers import positive_integer
from ppgen.runs import EVALUATION, load_run


def evaluate(
    run: RunFolder,
    num_samples: Annotated[int, typer.Option(help="Importance samples a datum.")] = 5000,
    num_data: Annotated[int | None, typer.Option(help="Only the first so many test data.")] = None,
    seed: NoiseSeed = 0,
    allow: Allow = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and nothing else.")] = False,
    data: MovedData = None,
    data_dir: DataDir = None,
) -> None:
    """The test log-likelihood of a run by importance sampling, with its errors.

    Of a conditional VAE it is log p(x | y), of a semi-supervised one log p(x), with its error rate as a classifier.

    Example: ppgen evaluate runs/vamp --num-samples 5000 --json
    """
    if num_data is not None:
        positive_integer("--num-data", num_data)
    with processes() as group:  # this one, or those of torchrun
        pair, recipe, config = load_run(run, allow or ())
        loaded = data_of(run, recipe, config, data_dir, allow or (), data)
        pair.to(usable_device("auto"))
        x, y = loaded.test[:num_data], None if loaded.test_labels is None else loaded.test_labels[:num_data]
        estimate = log_likelihood(pair, *recipe.scored_batch(x, y), num_samples=num_samples, seed=seed)
    if not group.leads:
        return
    figures = estimate.summary()
    if recipe.num_levels not in (None, 2):
        figures["bits_per_dim"] = bits_per_dim(estimate.values.double().mean(), recipe.shape).item()
    if MODELS[recipe.model].classifies:
        figures["error_rate"] = error_rate(pair, x, y)
    write_json(run / EVALUATION, {**figures, "seed": seed})
    if as_json:
        print(json_text(figures))
    else:
        print(estimate)
        if "bits_per_dim" in figures:
            print(f"{figures['bits_per_dim']:.3f} bits per dimension")
        if "error_rate" in figures:
            print(f"Error rate: {figures['error_rate']:.2%}")
