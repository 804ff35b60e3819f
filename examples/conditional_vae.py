"""A conditional VAE: a batch is (x, y), and every part that takes a context gets y.

y is the class of a digit. z is independent of it, so that z holds what is left, the hand that wrote it: a row of the
picture is one z for all ten classes. And p(x | y) makes a classifier, by Bayes' rule.

Digits of scikit-learn by default; for MNIST, some minutes: python conditional_vae.py --data mnist
"""

import argparse
from pathlib import Path

import torch
from torch.nn.functional import one_hot

from ppgen import data, decoders, models, nn, plots, posteriors, priors
from ppgen.inference import decode, elbo, fit, log_likelihood

SETTINGS = {"digits": (200, 128, 6), "mnist": (30, 400, 20)}  # epochs, hidden units, coordinates of z


def main(quick: bool, out: Path, name: str = "digits") -> None:
    digits = data.load(name)
    epochs, hidden, d = SETTINGS[name]
    y, y_test = (one_hot(labels, 10).float() for labels in (digits.train_labels, digits.test_labels))
    torch.manual_seed(0)
    cvae = models.VAE(
        priors.StandardNormal(d),
        decoders.Bernoulli(nn.GatedMLP(d, hidden, hidden, digits.image_shape, context_dim=10)),  # p(x | z, y)
        posteriors.DiagNormal(nn.GatedMLP(digits.image_shape, hidden, hidden, 2 * d, context_dim=10)),  # q(z | x, y)
    )
    fit(cvae, (digits.train, y), loss=elbo(analytic_kl=True), epochs=2 if quick else epochs, seed=0, progress=False)
    print("log p(x | y):", log_likelihood(cvae, digits.test, y_test, num_samples=100 if quick else 1000))

    x, labels = digits.test[:300], digits.test_labels[:300]
    classes = torch.eye(10)
    scores = [log_likelihood(cvae, x, c.expand(len(x), 10), num_samples=10 if quick else 100).values for c in classes]
    right = (torch.stack(scores).argmax(0) == labels).double().mean()
    print(f"the class by Bayes' rule, argmax log p(x | y) of equally frequent ones: {right:.1%} of {len(x)} are right")

    styles = torch.randn(10, d).repeat_interleave(10, 0)
    pictures = decode(cvae, styles, classes.repeat(10, 1))
    plots.images(pictures, out, columns=10, title="a column a class, a row a style (one z for all classes)")
    print(f"{len(pictures)} pictures in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw digits of a given class.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", choices=SETTINGS, default="digits")
    parser.add_argument("out", nargs="?", type=Path, default=Path("conditional_vae.png"))
    arguments = parser.parse_args()
    main(arguments.quick, arguments.out, arguments.data)
