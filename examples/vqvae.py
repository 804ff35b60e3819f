"""A VQ-VAE: images as small grids of codes, and what a prior over the codes is worth.

The codes say where things are, and any grid of codes is decoded to something; but only a prior that was fitted to them,
here a PixelCNN, knows which grids are digits. It takes the place of the uniform prior, and nothing else changes.
"""

import argparse
from pathlib import Path

import torch

from ppgen import data, decoders, models, nn, plots
from ppgen.inference import encode, fit, log_likelihood, reconstruct, sample

# Of each data set: the size of the grid, the codes, hidden channels, epochs of the VQ-VAE and of its prior.
SIZES = {"digits": (4, 32, 32, 80, 40), "mnist": (7, 64, 32, 6, 12)}


def main(quick: bool, out: Path, name: str = "digits") -> None:
    grey = data.load(name, binarize="none")
    side, num_codes, channels, epochs, prior_epochs = SIZES[name]
    epochs, prior_epochs = (1, 1) if quick else (epochs, prior_epochs)
    x, watched, levels = grey.train[:500] if quick else grey.train, grey.validation[:2000], grey.num_levels
    grid, shape = (16, side, side), grey.event_shape

    torch.manual_seed(0)
    output = decoders.DiscretizedLogistic.outputs_shape(shape)
    vqvae = models.VQVAE(
        nn.ResidualConvNet(shape, grid, channels=channels, levels=levels),
        nn.VectorQuantizer(num_codes, 16),
        decoders.DiscretizedLogistic(nn.ResidualConvNet(grid, output, channels=channels), levels),
    )
    history = fit(vqvae, x, epochs=epochs, validation=watched, seed=0)
    print(f"{history.monitors['perplexity'][-1]:.1f} of {num_codes} codes in use")
    test = grey.test[:1000]
    print("uniform prior:", log_likelihood(vqvae, test, num_samples=1))
    uniform = sample(vqvae, 36, mean=True, seed=0)

    codes = (1, side, side)
    network = nn.GatedPixelCNN(codes, (num_codes, side, side), categories=num_codes, num_layers=5, first_kernel_size=5)
    prior = decoders.Autoregressive(decoders.Categorical(network, num_codes), event_shape=(side, side))
    z, z_watched = encode(vqvae, x), encode(vqvae, watched)
    fit(models.ExplicitDensity(prior), z, epochs=prior_epochs, validation=z_watched, patience=5, seed=0)
    vqvae.prior = prior
    print("fitted prior:", log_likelihood(vqvae, test, num_samples=1))

    shown, top = test[:36], levels - 1
    groups = {
        "data": shown / top,
        "their codes, as shades": encode(vqvae, shown).unsqueeze(1) / (num_codes - 1),
        "reconstructions": reconstruct(vqvae, shown) / top,
        "samples, uniform prior": uniform / top,
        "samples, fitted prior": sample(vqvae, 36, mean=True, seed=0) / top,
    }
    plots.sheet(groups, out, columns=5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Digits as grids of codes, and a prior over the codes.")
    parser.add_argument("out", type=Path, nargs="?", default=Path("vqvae.png"))
    parser.add_argument("--data", choices=SIZES, default="digits")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    main(options.quick, options.out, options.data)
