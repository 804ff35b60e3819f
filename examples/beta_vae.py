"""The beta-VAE: what a heavier KL term makes of the coordinates of the latent, measured and seen.

The data have known factors (shape, scale, rotation, x, y), so that codes can be scored by how well each coordinate
goes with one of them. In the picture, each row moves one coordinate of an image's code from -2 to 2 and holds the rest.
The heavier the KL term, the fewer coordinates are used and the more each has one factor to itself (x, y, then scale);
the price is what no coordinate holds any more (shape and rotation), which informativeness shows.
"""

import sys
from pathlib import Path

import torch
from sklearn.decomposition import PCA

from ppgen import data, decoders, models, nn, plots, posteriors, priors
from ppgen.disentanglement import disentanglement
from ppgen.inference import decode, elbo, encode, fit, latent_report

LATENT_DIM, WIDTH, SHAPE = 8, 128, (1, 32, 32)


def main(quick: bool, out: Path) -> None:
    x, factors = data.factorised_shapes()  # the whole grid
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: 1000 if quick else None]
    x, factors = x[rows], factors[rows]
    codes = {
        "noise": torch.randn(len(x), LATENT_DIM, generator=torch.Generator().manual_seed(0)),
        "PCA": torch.as_tensor(PCA(LATENT_DIM, random_state=0).fit_transform(x.flatten(1).numpy())),
    }
    traversals = {"data": x[:64]}
    for beta in (1, 4, 8):
        torch.manual_seed(0)
        vae = models.VAE(
            priors.StandardNormal(LATENT_DIM),
            decoders.Bernoulli(nn.MLP(LATENT_DIM, WIDTH, WIDTH, SHAPE)),
            posteriors.DiagNormal(nn.MLP(SHAPE, WIDTH, WIDTH, 2 * LATENT_DIM)),
        )
        loss, optimizer = elbo(beta=beta, analytic_kl=True), torch.optim.Adam(vae.parameters(), lr=3e-3)
        fit(vae, x, loss=loss, optimizer=optimizer, epochs=1 if quick else 40, seed=0, progress=False)
        name = f"beta = {beta}"
        report = latent_report(vae, x[:1000])
        print(
            f"{name}: KL {report.kl['z']:.2f} nats, {report.active_units['z']} of {LATENT_DIM} coordinates active",
            flush=True,
        )
        codes[name] = encode(vae, x)

        used = codes[name].var(0).argsort(descending=True)  # the most used in the first row
        moved = codes[name][:1].repeat(LATENT_DIM * 8, 1).unflatten(0, (LATENT_DIM, 8))
        moved[torch.arange(LATENT_DIM), :, used] = torch.linspace(-2, 2, 8)
        traversals[f"{name}, a row a coordinate"] = decode(vae, moved.flatten(0, 1))

    scores = {name: disentanglement(z, factors) for name, z in codes.items()}
    print(" " * 16 + "".join(f"{name:>10}" for name in scores))
    for measure in scores["noise"]:
        print(f"{measure:<16}" + "".join(f"{found[measure]:10.3f}" for found in scores.values()))
    plots.sheet(traversals, out, columns=2, per_row=8)
    print(f"traversals of every coordinate in {out}")


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "beta_vae.png"))
