"""The lossy autoencoder's warning: a decoder that sees the whole image needs no latent, and leaves it unused.

Three VAEs of digits with a PixelCNN as the decoder. The first sees all earlier pixels: its likelihood is good, and its
latent says little about the digit. Nats of KL that cost nothing ("free bits"), or a PixelCNN that sees only the nearest
pixels, give it more to say. In the picture a row is a digit, then draws of p(x | z) for its latent: where the latent is
ignored they are any digits, and where it is not they are that digit.
"""

import functools
import sys
from pathlib import Path

import torch

from ppgen import data, decoders, models, nn, plots, posteriors, priors
from ppgen.inference import decode, elbo, encode, fit, latent_report, log_likelihood, mutual_information

SHAPE, LEVELS, DIM = (1, 8, 8), 17, 8


def pixel_vae(**field) -> models.VAE:
    out_shape = decoders.Categorical.outputs_shape(SHAPE, LEVELS)
    net = nn.GatedPixelCNN(SHAPE, out_shape, channels=24, levels=LEVELS, context_shapes=[(8, 8, 8)], **field)
    features = nn.DeconvNet(DIM, (8, 8, 8), channels=(16,), hidden=(64,), kernel_size=3)  # z as a map
    return models.VAE(
        priors.StandardNormal(DIM),
        decoders.Autoregressive(decoders.Categorical(net, LEVELS), features=features),
        posteriors.DiagNormal(nn.GatedMLP(SHAPE, 128, 128, 2 * DIM, levels=LEVELS)),
    )


def main(quick: bool, out: Path) -> None:
    digits = data.load("digits", binarize="none")
    x_train, x_test = (digits.train[:100], digits.test[:20]) if quick else (digits.train, digits.test)
    small = {"num_layers": 1, "first_kernel_size": 3}
    cases = {
        "sees all, ELBO": ({"num_layers": 4}, elbo()),
        "sees all, 6 nats free": ({"num_layers": 4}, elbo(free_bits=6.0)),
        "sees neighbours, ELBO": (small, elbo()),
    }
    x = x_test[:8]
    groups = {}
    for name, (field, loss) in cases.items():
        torch.manual_seed(0)
        vae = pixel_vae(**field)
        adam = functools.partial(torch.optim.Adam, lr=2e-3)
        fit(vae, x_train, loss=loss, epochs=1 if quick else 40, batch_size=50, optimizer=adam, seed=0)
        estimate = log_likelihood(vae, x_test, num_samples=10 if quick else 200)
        report, information = latent_report(vae, x_test), mutual_information(vae, x_test)
        print(
            f"{name:<22} log p(x) {estimate.mean:7.2f}, KL {report.kl['z']:5.2f} nats, active units "
            f"{report.active_units['z']} of {DIM}, I(x; z) {information:.2f} nats",
            flush=True,
        )
        draws = decode(vae, encode(vae, x).repeat_interleave(7, 0), mean=False, seed=0).unflatten(0, (8, 7))
        groups[name] = torch.cat([x[:, None], draws], 1).flatten(0, 1) / (LEVELS - 1)
    plots.sheet(groups, out, columns=3, per_row=8)
    print(f"digits (left) and draws from their latents in {out}")


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "pixelvae.png"))
