"""Encode an image, change one coordinate of its latent, decode: what that coordinate stands for."""

import sys
from pathlib import Path

import torch

from ppgen import data, decoders, models, nn, plots, posteriors, priors
from ppgen.inference import decode, encode, fit


def main(quick: bool, out: Path) -> None:
    digits = data.load("digits")
    torch.manual_seed(0)
    vae = models.VAE(
        priors.StandardNormal(8),
        decoders.Bernoulli(nn.GatedMLP(8, 128, (1, 8, 8))),
        posteriors.DiagNormal(nn.GatedMLP((1, 8, 8), 128, 16)),
    )
    fit(vae, digits.train, epochs=2 if quick else 200, seed=0, progress=False)

    z = encode(vae, digits.test[:1])
    steps = torch.linspace(-2.5, 2.5, 9)
    edited = z.repeat(8, 9, 1)  # a row a coordinate, a column a step
    for coordinate in range(8):
        edited[coordinate, :, coordinate] = steps
    pictures = decode(vae, edited.flatten(0, 1))
    plots.images(pictures, out, columns=9, title="one digit; each row changes one coordinate of its latent")
    print(f"{len(pictures)} pictures in {out}")


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "edit_an_image.png"))
