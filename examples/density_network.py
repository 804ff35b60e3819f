"""Where the density network stops working: proposals from the prior against an encoder, as the latent grows.

One decoder is trained in two ways at each size of the latent: as a density network, by the Monte-Carlo log-likelihood
of 50 draws from the prior, and as a VAE. The decoder of the density network is then given an encoder of its own, to
tell whether it is the decoder that is worse or only the estimate: it is the decoder, which learns nothing from more
than a few latents, since of 50 guesses hardly one comes near a datum. Data: ``--data mnist`` in place of digits.
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ppgen import data, decoders, models, nn, posteriors, priors
from ppgen.inference import fit, iwae, log_likelihood, sample

LATENT_DIMS, NUM_SAMPLES = (2, 5, 10, 20), 5_000
NAMES = ("density network", "its decoder, with an encoder", "VAE")


def pairs(latent_dim: int, x: torch.Tensor, validation: torch.Tensor, quick: bool) -> tuple[torch.nn.Module, ...]:
    """The three of them, trained; named as in NAMES."""
    shape = tuple(x.shape[1:])

    def train(pair, num_particles: int):
        options = {"epochs": 1 if quick else 100, "patience": 10, "seed": 0, "progress": False}
        adam = torch.optim.Adam([p for p in pair.parameters() if p.requires_grad], 3e-3)
        fit(pair, x, loss=iwae(num_particles), validation=validation, optimizer=adam, **options)
        return pair

    def encoder():
        return posteriors.DiagNormal(nn.MLP(shape, 64, 64, 2 * latent_dim))

    def decoder():
        return decoders.Normal(nn.MLP(latent_dim, 64, 64, shape), scale=0.3, learn_scale=True)

    torch.manual_seed(0)
    prior = priors.StandardNormal(latent_dim)
    network = train(models.DensityNetwork(prior, decoder()), 50)
    vae = train(models.VAE(prior, decoder(), encoder()), 10)
    network.decoder.requires_grad_(False)
    return network, train(models.VAE(prior, network.decoder, encoder()), 10), vae


def main(quick: bool, out: Path, name: str = "digits") -> None:
    digits = data.load(name, binarize="none")
    splits = (digits.train[: 200 if quick else None], digits.validation, digits.test[:500])
    x, validation, x_test = (images / digits.test.max() for images in splits)
    S = 500 if quick else NUM_SAMPLES
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    axes = figure.subplot_mosaic([["likelihood", "ess", 2, 20, "vae"]], width_ratios=[1.4, 1.4, 1, 1, 1])
    found = {pair: ([], []) for pair in NAMES}
    for latent_dim in LATENT_DIMS:
        trained = pairs(latent_dim, x, validation, quick)
        for pair, (values, sizes), called in zip(trained, found.values(), NAMES, strict=True):
            estimate = log_likelihood(pair, x_test, num_samples=S)
            values.append(estimate.mean)
            sizes.append(estimate.ess.median().item())
            print(f"{latent_dim} latents, {called}: ESS {sizes[-1]:.1f}, {estimate}")
        shown = {latent_dim: trained[0]} | ({"vae": trained[2]} if latent_dim == LATENT_DIMS[-1] else {})
        for place, pair in shown.items():
            if place in axes:
                draws = sample(pair, 32, mean=True, seed=0)
                draws = torch.nn.functional.pad(draws.squeeze(1), (1, 1, 1, 1), value=1.0).unflatten(0, (8, 4))
                sheet = draws.transpose(1, 2).flatten(0, 1).flatten(1).numpy()
                axes[place].imshow(sheet, cmap="gray", vmin=0, vmax=1)
                kind = "VAE" if place == "vae" else "density network"
                axes[place].set_title(f"{kind},\n{latent_dim} latents", fontsize=10)
                axes[place].set_axis_off()
    for place, index, label in (("likelihood", 0, "log p(x), nats"), ("ess", 1, f"median ESS of {S} draws")):
        for called, lists in found.items():
            axes[place].plot(LATENT_DIMS, lists[index], "o-", label=called)
        axes[place].set(title=label, xlabel="latent dimensions", xticks=LATENT_DIMS)
    axes["ess"].set_yscale("log")
    axes["likelihood"].legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    path = Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "density_network.png")
    main("--quick" in sys.argv, path, "mnist" if "mnist" in sys.argv else "digits")
