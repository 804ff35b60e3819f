"""``ppgen sample RUN``: samples of a run as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppgen import plots
from ppgen.cli.options import Allow, NoiseSeed, Run
from ppgen.cli.source import visible
from ppgen.inference import sample
from ppgen.runs import load_run


def sample_run(
    run: Run,
    num: Annotated[int, typer.Option(help="How many.")] = 64,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("samples.png"),
    allow: Allow = None,
    draws: Annotated[bool, typer.Option(help="Draw pixels, in place of the mean of p(x | z).")] = False,
    seed: NoiseSeed = 0,
) -> None:
    """Samples of a run as a picture; of a model of classes, the classes in turn.

    Example: ppgen sample runs/vamp --num 64 --out samples.png
    """
    pair, recipe, _ = load_run(run, allow or ())
    if not plots.is_picture(recipe.shape):
        raise ValueError(
            f"The data of {run} have shape {recipe.shape}, which is no picture: use ppgen.inference.sample."
        )
    drawn = sample(pair, num, *recipe.context(num), mean=not draws, seed=seed)
    plots.images(visible(drawn, recipe), out)
    print(f"{num} samples in {out}")
