"""From grey to colour: x is a patch of a photograph in colour, y the same patch in grey; both are images.

A grey patch has many colourings. A network that predicts one of them predicts their average, which is pale; the
conditional VAE draws one after the other. Patches are of the two photographs that come with scikit-learn, those of the
test from a strip that no training patch touches. Their colours come in kinds (sky, roofs, petals, leaves), and so the
prior p(z | y) is a mixture.
"""

import sys
from pathlib import Path

import torch

from ppgen import data, decoders, models, nn, plots, posteriors, priors
from ppgen.inference import elbo, fit, log_likelihood, sample, warmup

SIDE, D, HIDDEN = 12, 4, 128
COLOUR, GREY = (3, SIDE, SIDE), (1, SIDE, SIDE)
LUMA = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)  # of red, green and blue (ITU-R BT.601)


class Tinted(torch.nn.Module):
    """A colour picture from a grey one and what a network adds to it."""

    def __init__(self, net):
        super().__init__()
        self.net, self.out_shape = net, COLOUR

    def forward(self, *context):
        return context[-1] + self.net(*context)


def main(quick: bool, out: Path) -> None:
    patches, n = data.load("patches"), 500 if quick else 8000
    middle = slice((32 - SIDE) // 2, (32 + SIDE) // 2)
    x, x_test = (part[..., middle, middle] / 255 for part in (patches.train[:n], patches.test[:400]))
    y, y_test = ((LUMA * part).sum(1, keepdim=True) for part in (x, x_test))
    options = {"epochs": 2 if quick else 25, "seed": 0, "progress": False}

    torch.manual_seed(0)
    network = models.ExplicitDensity(
        decoders.Normal(Tinted(nn.GatedMLP(GREY, HIDDEN, HIDDEN, COLOUR)), 0.1, learn_scale=True)
    )
    fit(network, (x, y), **options)
    cvae = models.VAE(
        priors.MixtureOfGaussians(8, D, nn.GatedMLP(GREY, HIDDEN, 8 * (2 * D + 1))),  # p(z | y)
        decoders.Normal(Tinted(nn.GatedBranches([D, GREY], HIDDEN, HIDDEN, COLOUR)), 0.1, learn_scale=True),
        posteriors.DiagNormal(nn.GatedBranches([COLOUR, GREY], HIDDEN, 2 * D)),  # q(z | x, y)
    )
    fit(cvae, (x, y), loss=elbo(beta=warmup(5)), **options)

    baseline = log_likelihood(network, x_test, y_test, num_samples=1)
    estimate = log_likelihood(cvae, x_test, y_test, num_samples=50 if quick else 250)
    print(f"log p(x | y) of a patch of {x[0].numel()} numbers:")
    print(f"  network {baseline.mean:8.1f} nats\n  CVAE    {estimate.mean:8.1f} nats: {estimate}")

    shown = slice(0, len(x_test), len(x_test) // 12)
    columns = [y_test[shown].expand(-1, 3, -1, -1), sample(network, len(y_test[shown]), y_test[shown], mean=True)]
    columns += [sample(cvae, len(y_test[shown]), y_test[shown], mean=True, seed=seed) for seed in range(6)]
    rows = torch.stack([*columns, x_test[shown]], 1).flatten(0, 1)
    plots.images(rows, out, columns=9, title="grey | network | 6 × conditional VAE | truth")
    print(f"grey patches, the network's colours, six drawn colourings and the truth in {out}")


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "grey_to_colour.png"))
