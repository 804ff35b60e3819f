"""What a representation learned without labels is worth to a classifier: test error on MNIST, few labels and many.

    python benchmarks/features.py --labels 100,1000,50000

linear      logistic regression on the representation (scikit-learn's, as it comes): the pixels, their leading principal
            components, or what `encode` gives: the mean of q(z | x), an autoencoder's code
network     for the pixels the encoder's network and a linear layer, trained from random weights; for a pair the same
            network, started from the pair's encoder

Everything is trained on the same 50,000 images: representations without labels, on images that are binarised anew at
every read; classifiers on the grey images that have a label, the same number of each class (all, where they are
50,000). Each number is a mean over --draws choices of the labelled images and starts of the classifier; the pairs are
trained once. Cells are written as they are finished, and those that --out already holds with the same settings are not
run again.
"""

import argparse
import copy
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import Record
from semi_supervised import NUM_CLASSES, balanced
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from ppgen import data, decoders, models, nn, posteriors, priors
from ppgen.data import DynamicBinarization
from ppgen.inference import encode, fit

RESULTS = Path(__file__).parent / "results" / "features.json"
SETTINGS = ["epochs", "hidden", "latent_dim", "pseudo_inputs", "steps", "draws", "seed"]


def posterior(data_dim: int, args: argparse.Namespace) -> posteriors.DiagNormal:
    return posteriors.DiagNormal(nn.MLP(data_dim, args.hidden, args.hidden, 2 * args.latent_dim))


def decoder(data_dim: int, args: argparse.Namespace) -> decoders.Bernoulli:
    return decoders.Bernoulli(nn.MLP(args.latent_dim, args.hidden, args.hidden, data_dim))


def vae(grey: Tensor, args: argparse.Namespace) -> models.VAE:
    data_dim = grey.shape[-1]
    return models.VAE(priors.StandardNormal(args.latent_dim), decoder(data_dim, args), posterior(data_dim, args))


def vampprior(grey: Tensor, args: argparse.Namespace) -> models.VAE:
    q = posterior(grey.shape[-1], args)
    return models.VAE(priors.VampPrior(q, grey[: args.pseudo_inputs]), decoder(grey.shape[-1], args), q)


def autoencoder(grey: Tensor, args: argparse.Namespace) -> models.Autoencoder:
    encoder = nn.MLP(grey.shape[-1], args.hidden, args.hidden, args.latent_dim)
    return models.Autoencoder(encoder, decoder(grey.shape[-1], args))


# A representation more is a line more: a function that builds a pair, and the part of it that encodes if that is new.
Encoded = models.VAE | models.Autoencoder
PAIRS: dict[str, Callable[[Tensor, argparse.Namespace], Encoded]] = {
    "autoencoder": autoencoder,
    "vae": vae,
    "vampprior": vampprior,
}


def encoder_of(pair: Encoded) -> torch.nn.Module:
    return pair.encoder if isinstance(pair, models.Autoencoder) else pair.posterior


class Classifier(torch.nn.Module):
    """The mean of an encoder's distribution, or its code, and a linear layer."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.output = torch.nn.LazyLinear(NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder(x)
        return self.output(code if isinstance(code, Tensor) else code.mean)


def trained_network(classifier: Classifier, x: Tensor, y: Tensor, steps: int) -> Classifier:
    """The classifier after so many steps of Adam on random batches of 100."""
    classifier(x[:1])
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3, fused=True)
    for _ in range(steps):
        rows = torch.randint(len(y), (100,))
        optimizer.zero_grad()
        cross_entropy(classifier(x[rows]), y[rows]).backward()
        optimizer.step()
    return classifier


def run(args: argparse.Namespace) -> Record:
    images = data.load("digits" if args.quick else "mnist", binarize="none")
    top = images.num_levels - 1
    x, x_test = (part.flatten(1).float() / top for part in (images.train, images.test))
    y, y_test = images.train_labels, images.test_labels

    @functools.cache
    def trained(name: str) -> tuple[Encoded, float]:
        torch.manual_seed(args.seed)
        began, pair = time.perf_counter(), PAIRS[name](x, args)
        fit(pair, DynamicBinarization(x), epochs=args.epochs, batch_size=200, seed=args.seed, progress=False)
        return pair, time.perf_counter() - began

    @functools.cache
    def features(name: str) -> tuple[Tensor, Tensor]:
        if name == "pixels":
            return x, x_test
        if name == "pca":
            components = PCA(args.latent_dim, random_state=args.seed).fit(x.numpy())
            return torch.as_tensor(components.transform(x.numpy())), torch.as_tensor(components.transform(x_test))
        pair = trained(name)[0]
        return encode(pair, x), encode(pair, x_test)

    def linear(name: str, rows: Tensor) -> Tensor:
        train, test = features(name)
        machine = LogisticRegression(max_iter=200).fit(train[rows].numpy(), y[rows].numpy())
        return torch.as_tensor(machine.predict(test.numpy()))

    def network(name: str, rows: Tensor) -> Tensor:
        start = copy.deepcopy(encoder_of(trained(name)[0])) if name in PAIRS else posterior(x.shape[-1], args)
        classifier = trained_network(Classifier(start), x[rows], y[rows], args.steps)
        with torch.no_grad():
            return classifier(x_test).argmax(-1)

    record = Record(args.out, {"error": "of the test images, in %: the mean over draws of the labelled images"})
    settings = {"data": images.name, **{name: getattr(args, name) for name in SETTINGS}}
    for name in ("pixels", "pca", *PAIRS):
        for kind, predict in {"linear": linear, "network": network}.items():
            if (name, kind) == ("pca", "network"):
                continue  # a network of linear layers
            for num_labels in args.labels:
                if record.has(features=name, classifier=kind, labels=num_labels, **settings):
                    continue
                before = {"seconds_of_pair": round(trained(name)[1], 1)} if name in PAIRS else {}
                began, errors = time.perf_counter(), []
                whole = num_labels >= len(y)
                draws = 1 if whole else args.draws
                for draw in range(draws):
                    torch.manual_seed(args.seed + draw)
                    rows = torch.arange(len(y)) if whole else balanced(y, num_labels, args.seed + draw)
                    errors.append(round(100 * (predict(name, rows) != y_test).double().mean().item(), 4))
                cell = {"features": name, "classifier": kind, "labels": num_labels, **settings}
                seconds = round(time.perf_counter() - began, 1)
                print(f"{name:<13}{kind:<9}{num_labels:>6} labels: {errors} in {seconds:.0f} s", flush=True)
                record.add(**cell, error=round(sum(errors) / draws, 4), errors=errors, seconds=seconds, **before)
    return record


def table(cells: list[dict[str, Any]]) -> str:
    """Errors in %, a row a representation and classifier, a column a number of labels; ± half the range over draws."""
    counts = sorted({cell["labels"] for cell in cells})
    lines = ["error in %".ljust(24) + "".join(f"{n:>16}" for n in counts) + "  labels"]
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for cell in cells:
        spread = (max(cell["errors"]) - min(cell["errors"])) / 2
        text = f"{cell['error']:.2f}" + (f" ± {spread:.2f}" if spread else "")
        rows.setdefault((cell["features"], cell["classifier"]), {})[cell["labels"]] = text
    for (name, kind), row in rows.items():
        lines.append(f"{name:<13}{kind:<11}" + "".join(f"{row.get(n, ''):>16}" for n in counts))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=lambda text: [int(n) for n in text.split(",")], default=[100, 1000, 50000])
    parser.add_argument("--epochs", type=int, default=10, help="of each pair")
    parser.add_argument("--hidden", type=int, default=300)
    parser.add_argument("--latent-dim", type=int, default=40)
    parser.add_argument("--pseudo-inputs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=2000, help="of a network, in batches of 100")
    parser.add_argument("--draws", type=int, default=3, help="of the labelled images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, few steps; written only to --out")
    parser.add_argument("--out", type=Path, help="of the cells; by default results/features.json beside this script")
    args = parser.parse_args()
    if args.quick:
        args.epochs, args.hidden, args.latent_dim, args.pseudo_inputs, args.steps = 2, 32, 5, 20, 20
        args.labels = [100, 1297]
    elif args.out is None:
        args.out = RESULTS
    torch.set_num_threads(args.threads)
    print(table(run(args).cells))


if __name__ == "__main__":
    main()
