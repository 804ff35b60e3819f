"""A photograph as a mixture of Gaussians: a pixel is a place and a colour, and each component a patch of the picture.

Nothing is told to the mixture about edges or regions, only rows (row, column, red, green, blue). Painted is the mean
colour given the place, E[colour | place]: the colours are masked and filled in, exactly. With few components it is a
stained-glass window; components with a matrix each lean along the edges, which those with variances alone cannot.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_sample_image

from ppgen import plots
from ppgen.inference import EM, impute, train
from ppgen.models import GaussianMixture


def main(quick: bool, out: Path) -> None:
    every = 16 if quick else 4
    photograph = torch.tensor(load_sample_image("flower.jpg"))[::every, 100:527:every] / 255
    height, width, _ = photograph.shape
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)) / height
    pixels = torch.cat([places, photograph.flatten(0, 1)], 1)
    place_only = (torch.arange(5) < 2).expand_as(pixels)

    pictures = {"the photograph": photograph}
    for covariance, num_components in (("spherical", 100), ("full", 10), ("full", 100)):
        gmm = GaussianMixture(num_components, 5, covariance, reg_covar=1e-5)
        step = EM(gmm, tolerance=1e-3, seed=0)
        # a quarter of the pixels in a batch is stepwise EM: four updates in each pass over them
        options = {"epochs": 2 if quick else 30, "batch_size": len(pixels) // 4 + 1}
        history = train(step, pixels, **options, seed=0, progress=False)
        name = f"{num_components} components, {covariance}"
        print(f"{name:26} log p(x) {gmm.score(pixels):6.3f}   BIC {gmm.bic(pixels):9.0f}   {len(history.loss)} epochs")
        pictures[name] = impute(gmm, pixels, mask=place_only)[:, 2:].reshape(height, width, 3)
    plots.sheet({name: p.permute(2, 0, 1)[None] for name, p in pictures.items()}, out, columns=2, per_row=1)
    print(f"{len(pictures)} pictures in {out}")


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "gaussian_mixture.png"))
