"""How cost grows: with the data, the samples, the pseudo-inputs of a VampPrior and the size of images.

    python benchmarks/growth.py

Each curve is one setting made larger by steps of two; sizes take turns and a point is the median of the rounds, so that
a busy machine bends no curve. The exponent is the slope of the upper half in logarithms: 1 is proportional, 0 free. A
picture and its numbers go to results/growth.png and results/growth.json beside this script.

N and S  a log-likelihood by importance sampling, VAE 784-300-300-40
K        a training step of this VAE with a VampPrior of K pseudo-inputs, and a log-likelihood (100 data, 50 samples)
size     a training step on 20 images of D x D pixels: of a dense and of a convolutional VAE, and of a PixelCNN

Steps are in eager: that compiled code saves, training.py says.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from record import VERSIONS, machine, write
from timing import in_turns

from ppgen import decoders, models, nn, posteriors, priors
from ppgen.inference import SVI, log_likelihood

RESULTS = Path(__file__).parent / "results" / "growth.json"
Work = Callable[[], object]
LATENT, HIDDEN, PIXELS, ROWS = 40, 300, 784, 100


def binary(*shape: int) -> torch.Tensor:
    return torch.bernoulli(torch.full(shape, 0.3))


def dense(num_pseudo_inputs: int = 0) -> models.VAE:
    posterior = posteriors.DiagNormal(nn.MLP(PIXELS, HIDDEN, HIDDEN, 2 * LATENT))
    decoder = decoders.Bernoulli(nn.MLP(LATENT, HIDDEN, HIDDEN, PIXELS))
    if num_pseudo_inputs:
        return models.VAE(priors.VampPrior(posterior, binary(num_pseudo_inputs, PIXELS)), decoder, posterior)
    return models.VAE(priors.StandardNormal(LATENT), decoder, posterior)


def likelihood(num_data: int = ROWS, num_samples: int = 100, num_pseudo_inputs: int = 0) -> Work:
    vae, x = dense(num_pseudo_inputs), binary(num_data, PIXELS)
    return lambda: log_likelihood(vae, x, num_samples=num_samples, compile=False)


def step(pair: object, x: torch.Tensor) -> Work:
    svi = SVI(pair)
    return lambda: svi.step(x)


def image_step(kind: str, size: int) -> Work:
    shape, x = (1, size, size), binary(20, 1, size, size)
    if kind == "PixelCNN":
        net = nn.PixelCNN(shape, shape, channels=16, num_layers=3)
        return step(models.ExplicitDensity(decoders.Autoregressive(decoders.Bernoulli(net))), x)
    if kind == "convolutional VAE":
        encoder, decoder = nn.ConvNet(shape, 2 * LATENT), nn.DeconvNet(LATENT, shape)
    else:
        encoder, decoder = nn.MLP(shape, HIDDEN, 2 * LATENT), nn.MLP(LATENT, HIDDEN, shape)
    q = posteriors.DiagNormal(encoder)
    return step(models.VAE(priors.StandardNormal(LATENT), decoders.Bernoulli(decoder), q), x)


# panel: (label of the axis, {curve: (what to do at a size, sizes)})
CURVES: dict[str, tuple[str, dict[str, tuple[Callable[[int], Work], list[int]]]]] = {
    "data": ("data N", {"log-likelihood, S = 50": (lambda n: likelihood(n, 50), [100, 200, 400, 800, 1600])}),
    "samples": ("samples S", {"log-likelihood, N = 100": (lambda s: likelihood(ROWS, s), [50, 100, 200, 400, 800])}),
    "pseudo-inputs": (
        "pseudo-inputs K of a VampPrior",
        {
            "training step, N = 100": (lambda k: step(dense(k), binary(ROWS, PIXELS)), [125, 250, 500, 1000, 2000]),
            "log-likelihood, N = 100, S = 50": (
                lambda k: likelihood(num_samples=50, num_pseudo_inputs=k),
                [125, 250, 500, 1000, 2000],
            ),
        },
    ),
    "pixels": (
        "pixels of an image",
        {
            f"training step, {kind}": (lambda d, kind=kind: image_step(kind, math.isqrt(d)), [64, 256, 1024, 4096])
            for kind in ("dense VAE", "convolutional VAE", "PixelCNN")
        },
    ),
}


def exponent(sizes: list[int], milliseconds: list[float]) -> float:
    """The least-squares slope of the upper half of a curve in logarithms."""
    upper = len(sizes) // 2
    x, y = ([math.log(v) for v in values[upper:]] for values in (sizes, milliseconds))
    return statistics.linear_regression(x, y).slope


def draw(cells: list[dict], path: Path) -> None:
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    for axes, (panel, (label, _)) in zip(panels.flat, CURVES.items(), strict=True):
        for cell in (c for c in cells if c["panel"] == panel):
            name = f"{cell['curve']}: exponent {cell['exponent']:.2f}"
            axes.plot(cell["sizes"], cell["milliseconds"], "o-", label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        ticks = sorted({size for c in cells if c["panel"] == panel for size in c["sizes"]})
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(label)
        axes.set_ylabel("milliseconds")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle("How cost grows")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cells = []
    for panel, (_, curves) in CURVES.items():
        for curve, (work_at, sizes) in curves.items():
            sides = {str(size): work_at(size) for size in sizes}
            for run in sides.values():
                run()
            found = in_turns(sides, rounds=args.rounds, steps=1)
            medians = [round(statistics.median(times), 3) for times in found.values()]
            slope = round(exponent(sizes, medians), 2)
            cells.append({"panel": panel, "curve": curve, "sizes": sizes, "milliseconds": medians, "exponent": slope})
            print(f"{panel:14} {curve:32} cost grows with exponent {slope:5.2f}", flush=True)
    about = {"what": "how cost grows", "rounds": args.rounds, "machine": machine(), "versions": VERSIONS}
    write(args.out, about | {"cells": cells})
    draw(cells, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
