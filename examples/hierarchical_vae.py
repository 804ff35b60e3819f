"""Two layers of latents: q(z2 | x) q(z1 | x, z2) against p(z2) p(z1 | z2) p(x | z1, z2), as in the VampPrior paper.

Dense and convolutional networks, a standard prior and a VampPrior on top; ``--data mnist`` takes the paper's 40 + 40
latents. In the last two columns one layer of a digit is kept and the other drawn anew: what stays is what it holds.
"""

import argparse
from pathlib import Path

import torch

from ppgen import data, decoders, models, nn, plots, posteriors, priors
from ppgen.inference import decode, elbo, encode, fit, latent_report, log_likelihood, reconstruct, sample, warmup

SIZES = {"digits": (8, 64, 50), "mnist": (40, 300, 500)}  # of each latent, of hidden layers; pseudo-inputs


def dense(shape: tuple[int, ...], d: int, width: int) -> tuple[torch.nn.Module, ...]:
    q1 = nn.GatedBranches([shape, d], width, width, 2 * d)  # an image and a vector, each with a first layer of its own
    q2 = nn.GatedMLP(shape, width, width, 2 * d)
    return q1, q2, nn.GatedBranches([d, d], width, width, shape)


def convolutional(shape: tuple[int, ...], d: int, width: int) -> tuple[torch.nn.Module, ...]:
    q1 = nn.ConvNet(shape, 2 * d, channels=(16, 32), hidden=(width,), gated=True, context_dim=d)
    q2 = nn.ConvNet(shape, 2 * d, channels=(16, 32), hidden=(), gated=True)
    return q1, q2, nn.DeconvNet(d, shape, channels=(32, 16), hidden=(width,), gated=True, context_dim=d)


def main(quick: bool, out: Path, name: str = "digits", epochs: int = 200) -> None:
    images, (d, width, num_pseudo) = data.load(name), SIZES[name]
    x_train, x_test = images.train[:200] if quick else images.train, images.test[: 50 if quick else 300]
    epochs = 2 if quick else epochs
    sheet = {}
    for networks in (dense, convolutional):
        for vamp in (False, True):
            torch.manual_seed(0)
            net1, net2, net_x = networks(tuple(x_test.shape[1:]), d, width)
            q1, q2 = posteriors.DiagNormal(net1), posteriors.DiagNormal(net2)
            hvae = models.HierarchicalVAE(
                priors.VampPrior(q2, images.train[:num_pseudo]) if vamp else priors.StandardNormal(d),
                [priors.DiagNormal(d, nn.GatedMLP(d, width, width, 2 * d))],  # p(z1 | z2)
                decoders.Bernoulli(net_x),  # p(x | z1, z2)
                [q1, q2],  # q(z1 | x, z2), q(z2 | x)
            )
            fit(hvae, x_train, loss=elbo(beta=warmup(max(1, epochs // 5))), epochs=epochs, seed=0, progress=False)

            kind = f"{networks.__name__}, {'VampPrior' if vamp else 'standard'}"
            kl = latent_report(hvae, x_test).kl
            print(f"{kind}: log p(x) = {log_likelihood(hvae, x_test, num_samples=20 if quick else 500)}")
            print("    KL in nats:", ", ".join(f"{layer} {nats:.2f}" for layer, nats in kl.items()), flush=True)

            shown = x_test[:32].unflatten(0, (4, 8))  # rows of data above rows of reconstructions
            again = reconstruct(hvae, x_test[:32]).unflatten(0, (4, 8))
            sheet[f"{kind}: reconstructions"] = torch.stack([shown, again], 1).flatten(0, 2)
            sheet[f"{kind}: samples"] = sample(hvae, 64, mean=True, seed=0)
            for layer, kept in encode(hvae, x_test[:8].repeat_interleave(8, 0)).items():
                sheet[f"{kind}: {layer} kept"] = decode(hvae, {layer: kept}, seed=0)
    plots.sheet(sheet, out, columns=4, per_row=8)
    print(f"reconstructions, samples, and what each layer holds in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two layers of latents, dense and convolutional.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", choices=SIZES, default="digits")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("out", nargs="?", type=Path, default=Path("hierarchical_vae.png"))
    arguments = parser.parse_args()
    main(arguments.quick, arguments.out, arguments.data, arguments.epochs)
