"""``ppgen sample RUN``: samples of a run as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppgen import plots
from ppgen.cli.judge import check_samples
from ppgen.cli.options import Allow, NoiseSeed, RunFolder
from ppgen.cli.source import visible
from ppgen.inference import sample
from ppgen.inference.programs.networks import usable_device
from ppgen.runs import load_run


def sample_run(
    run: RunFolder,
    num: Annotated[int, typer.Option(help="How many.")] = 64,
    out: Annotated[Path, typer.Option(help="The picture to write; a PNG if its name has no ending.")] = Path(
        "samples.png"
    ),
    allow: Allow = None,
    draws: Annotated[bool, typer.Option(help="Draw pixels, in place of the mean of p(x | z).")] = False,
    seed: NoiseSeed = 0,
) -> None:
    """Samples of a run as a picture; of a model of classes, the classes in turn.

    Example: ppgen sample runs/vamp --num 64 --out samples.png
    """
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: give the name of the picture, {out / 'samples.png'}, say.")
    out = out if out.suffix else Path(f"{out}.png")  # as matplotlib would name it
    pair, recipe, _ = load_run(run, allow or ())
    check_samples(run, recipe)
    pair.to(usable_device("auto"))
    if not plots.is_picture(recipe.shape):
        raise ValueError(
            f"The data of {run} have shape {recipe.shape}, which is no picture: use ppgen.inference.sample."
        )
    drawn = sample(pair, num, *recipe.context(num), mean=not draws, seed=seed)
    plots.images(visible(drawn, recipe), out)
    print(f"{num} samples in {out}")
