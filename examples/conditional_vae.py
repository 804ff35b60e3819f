"""A conditional VAE: a batch is (x, y), and every part that takes a context gets y."""

import sys
from pathlib import Path

import torch
from torch.nn.functional import one_hot

from ppgen import data, decoders, models, nn, plots, posteriors, priors
from ppgen.inference import fit, log_likelihood, sample


def main(quick: bool, out: Path) -> None:
    digits = data.load("digits", binarize="fixed")
    x, y = (images.flatten(1) for images in (digits.train, digits.test)), (digits.train_labels, digits.test_labels)
    (x_train, x_test), (y_train, y_test) = x, (one_hot(labels, 10).float() for labels in y)
    torch.manual_seed(0)
    cvae = models.VAE(
        priors.StandardNormal(4),
        decoders.Bernoulli(nn.GatedMLP(4 + 10, 128, 64)),  # p(x | z, y)
        posteriors.DiagNormal(nn.GatedMLP(64 + 10, 128, 8)),  # q(z | x, y)
    )
    fit(cvae, (x_train, y_train), epochs=2 if quick else 100, seed=0, progress=False)
    print("log p(x | y):", log_likelihood(cvae, x_test, y_test, num_samples=100 if quick else 1000))

    classes = torch.eye(10).repeat_interleave(8, 0)  # eight of each
    pictures = sample(cvae, 80, classes, mean=True, seed=0).reshape(-1, 1, 8, 8)
    plots.images(pictures, out, columns=8, title="a row a class")
    print(f"{len(pictures)} pictures in {out}")


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "conditional_vae.png"))
