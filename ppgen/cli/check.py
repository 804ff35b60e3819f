"""``ppgen check``: exact cases, each with its number; ``ppgen check RUN``: whether a run's numbers can be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from ppgen.catalogue import MODELS
from ppgen.check import RUNGS, climb, trust
from ppgen.check.trust import DATA_OF_CALIBRATION
from ppgen.cli.options import Allow, DataDir, MovedData, NoiseSeed
from ppgen.cli.source import data_of
from ppgen.files import json_text, write_json
from ppgen.inference.programs.networks import usable_device
from ppgen.numbers import positive_integer
from ppgen.runs import CHECK, load_run


def check(
    run: Annotated[Path | None, typer.Argument(help="A folder that `ppgen train` wrote; the library if none.")] = None,
    num_data: Annotated[int, typer.Option(help="Test data of the run.")] = 100,
    seed: NoiseSeed = 0,
    allow: Allow = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and nothing else.")] = False,
    data: MovedData = None,
    data_dir: DataDir = None,
) -> int:
    """Likelihoods against cases that are known exactly; or whether those of a run can be believed.

    Without a run the exit status is 1 if a case fails. With one, the verdict comes from k-hat and from bounds on data
    that the model drew itself: believed, lower bound only, or not to be believed, and what to do.

    Example: ppgen check runs/vae --num-data 100
    """
    if run is None:
        return _ladder(seed, as_json)
    positive_integer("--num-data", num_data)
    pair, recipe, config = load_run(run, allow or ())
    if not MODELS[recipe.model].scores:
        text = f"{recipe.model} has no likelihood, so there is none to check"
        if MODELS[recipe.model].samples:
            text += f": see `ppgen judge {run}`"
        print(json_text({"verdict": "no likelihood"}) if as_json else f"{text}.")
        return 0
    loaded = data_of(run, recipe, config, data_dir, allow or (), data)
    pair.to(usable_device("auto"))
    x, y = loaded.test[:num_data], None if loaded.test_labels is None else loaded.test_labels[:num_data]
    context = recipe.context(DATA_OF_CALIBRATION)
    if context:  # the classes in turn, all of them also among the first few
        order = torch.randperm(DATA_OF_CALIBRATION, generator=torch.Generator().manual_seed(seed))
        context = tuple(member[order] for member in context)
    found = trust(pair, *recipe.scored_batch(x, y), context=context, seed=seed)
    figures = {**found.summary(), "seed": seed}
    write_json(run / CHECK, figures)
    print(json_text(figures) if as_json else found)
    return 0


def _ladder(seed: int, as_json: bool) -> int:
    rungs = []
    for name in RUNGS:
        rungs.append(climb(name, seed=seed))
        if not as_json:
            print(rungs[-1], flush=True)
    if as_json:
        print(json_text([{**rung._asdict(), "passed": rung.passed} for rung in rungs]))
    return int(not all(rung.passed for rung in rungs))
