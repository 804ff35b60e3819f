"""Test error of semi-supervised VAEs on MNIST with few labels: M1, M2 and M1+M2 (Kingma et al., 2014).

    python benchmarks/semi_supervised.py --labels 100,600,1000 --models m1,m2,m1+m2

pixels  a support-vector machine on the labelled images alone, to compare with
m1      the same on the representations of a VAE that was trained without labels (the paper's is transductive: it sees
        the unlabelled representations, too)
m2      a semi-supervised VAE of the images
m1+m2   a semi-supervised VAE of the representations

All 50,000 training images are binarised anew at every read. The same number of labels of each class is kept, by a seed.
Labelled images are repeated until they are a share (--share) of an epoch's rows, so that every batch of M2 holds some;
the weight of the classification loss of a labelled row is --alpha over that share. The paper has an alpha of 0.1, for
trainings of thousands of epochs; the values here were chosen on validation images with 100 labels, for a few epochs.
M2 is slow: a public implementation at the paper's settings (https://github.com/jonemeth/generative-models) logs an
error of validation images of 24 % after 50,000 steps and 10 % after 150,000.
Cells are written as they are finished, and those that --out already holds with the same settings are not run again.

References:
    Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling, 2014),
    https://arxiv.org/abs/1406.5298
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import Record
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from ppgen import data, decoders, models, nn, posteriors, priors
from ppgen.data import DynamicBinarization
from ppgen.inference import classify, encode, fit, semi_supervised

NUM_CLASSES = 10
RESULTS = Path(__file__).parent / "results" / "semi_supervised.json"
# Table 1 of the paper, errors in %; its M1 is followed by a transductive support-vector machine.
PAPER = {
    "m1": {100: 11.82, 600: 5.72, 1000: 4.24},
    "m2": {100: 11.97, 600: 4.94, 1000: 3.60},
    "m1+m2": {100: 3.33, 600: 2.59, 1000: 2.40},
}


class JoinedLayer(torch.nn.Module):
    """A hidden layer of x and the class that reads x once, however many classes are enumerated."""

    def __init__(self, data_dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.of_x = torch.nn.Linear(data_dim, hidden)
        self.of_y = torch.nn.Linear(NUM_CLASSES, hidden, bias=False)
        self.output = torch.nn.Linear(hidden, out)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.output((self.of_x(x) + self.of_y(y)).relu())


def m1(data_dim: int, args: argparse.Namespace) -> models.VAE:
    return models.VAE(
        priors.StandardNormal(args.latent_dim),
        decoders.Bernoulli(nn.MLP(args.latent_dim, args.hidden, args.hidden, data_dim)),
        posteriors.DiagNormal(nn.MLP(data_dim, args.hidden, args.hidden, 2 * args.latent_dim)),
    )


def m2(data_dim: int, decoder: torch.nn.Module, args: argparse.Namespace) -> models.SemiSupervisedVAE:
    return models.SemiSupervisedVAE(
        priors.StandardNormal(args.latent_dim),
        decoder,
        posteriors.DiagNormal(JoinedLayer(data_dim, args.hidden, 2 * args.latent_dim), args.latent_dim),
        classifier=nn.MLP(data_dim, args.hidden, NUM_CLASSES),
        num_classes=NUM_CLASSES,
    )


def m2_of_images(data_dim: int, args: argparse.Namespace) -> models.SemiSupervisedVAE:
    net = nn.MLP(args.latent_dim + NUM_CLASSES, args.hidden, data_dim)
    return m2(data_dim, decoders.Bernoulli(net), args)


def m1_and_m2(vae: models.VAE, args: argparse.Namespace) -> models.StackedSemiSupervisedVAE:
    net = nn.MLP(args.latent_dim + NUM_CLASSES, args.hidden, 2 * args.latent_dim)
    return models.StackedSemiSupervisedVAE(vae, m2(args.latent_dim, decoders.Normal(net), args))


def balanced(y: torch.Tensor, num_labels: int, seed: int) -> torch.Tensor:
    """The rows that keep their labels: as many of each class."""
    if num_labels % NUM_CLASSES:
        raise SystemExit(f"--labels {num_labels}: the number must be a multiple of {NUM_CLASSES}, as many a class.")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[y[order] == c][: num_labels // NUM_CLASSES] for c in range(NUM_CLASSES)])


def mixed(
    x: DynamicBinarization, y: torch.Tensor, kept: torch.Tensor, share: float
) -> tuple[DynamicBinarization, torch.Tensor]:
    """All rows, those in ``kept`` with their labels and so often that they are the given share of all."""
    others = torch.ones(len(y), dtype=torch.bool).index_fill(0, kept, False).nonzero().squeeze(-1)
    times = max(1, round(share / (1 - share) * len(others) / len(kept)))
    labels = torch.cat([torch.full((len(others),), -1), y[kept].repeat(times)])
    return DynamicBinarization(x.probs[torch.cat([others, kept.repeat(times)])]), labels


def settings_of(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """What the error of a model depends on beside the labels."""
    settings: dict[str, Any] = {"seed": args.seed}
    if model == "pixels":
        return settings
    settings |= {"batch_size": args.batch_size[model], "hidden": args.hidden, "latent_dim": args.latent_dim}
    settings["lr"] = args.lr[model]
    settings["epochs"] = {part: args.epochs[part] for part in {"m1+m2": ["m1", "m1+m2"]}.get(model, [model])}
    if model in args.alpha:
        settings |= {"alpha": args.alpha[model], "share": args.share[model]}
    return settings


def run(args: argparse.Namespace) -> Record:
    digits = data.load("digits" if args.quick else "mnist", binarize="dynamic")
    x, y = DynamicBinarization(digits.train.probs.flatten(1)), digits.train_labels
    x_test, y_test = digits.test.flatten(1), digits.test_labels
    data_dim = x.shape[1]

    def train(model: str, pair: Any, rows: Any, loss: Any = None) -> None:
        optimizer = functools.partial(torch.optim.Adam, lr=args.lr[model], fused=True)
        schedule = {"epochs": args.epochs[model], "batch_size": args.batch_size[model], "seed": args.seed}
        fit(pair, rows, loss=loss, optimizer=optimizer, progress=False, **schedule)

    @functools.cache
    def trained_m1() -> tuple[models.VAE, float]:
        torch.manual_seed(args.seed)
        began, vae = time.perf_counter(), m1(data_dim, args)
        train("m1", vae, x)
        return vae.requires_grad_(False), time.perf_counter() - began

    def svm(features: torch.Tensor, labels: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
        machine = make_pipeline(StandardScaler(), SVC(C=10)).fit(features.numpy(), labels.numpy())
        return torch.as_tensor(machine.predict(test.numpy()))

    def predictions(model: str, num_labels: int) -> torch.Tensor:
        """Classes of the test images."""
        kept = balanced(y, num_labels, args.seed)
        torch.manual_seed(args.seed)
        if model in ("pixels", "m1"):
            repeated = kept.repeat(10)  # ten draws of each
            train_images = x[repeated]
            if model == "pixels":
                return svm(train_images, y[repeated], x_test)
            vae = trained_m1()[0]
            return svm(encode(vae, train_images), y[repeated], encode(vae, x_test))
        pair = m2_of_images(data_dim, args) if model == "m2" else m1_and_m2(trained_m1()[0], args)
        share = args.share[model]
        train(model, pair, mixed(x, y, kept, share), semi_supervised(args.alpha[model] / share))
        return classify(pair, x_test).argmax(-1)

    record = Record(args.out, {"error": "of the test images, in %", "paper": PAPER})
    for model in args.models:
        settings = {"data": digits.name, **settings_of(model, args)}
        for num_labels in args.labels:
            if record.has(model=model, labels=num_labels, **settings):
                continue
            before = {"seconds_of_m1": round(trained_m1()[1], 1)} if "m1" in model else {}
            began = time.perf_counter()
            classes = predictions(model, num_labels)
            seconds = round(time.perf_counter() - began, 1)
            error = round(100 * (classes != y_test).double().mean().item(), 4)
            print(f"{model:<8}{num_labels:>6} labels: {error:6.2f} % in {seconds:.0f} s", flush=True)
            record.add(model=model, labels=num_labels, **settings, error=error, seconds=seconds, **before)
    return record


def table(cells: list[dict[str, Any]]) -> str:
    """Errors in %, and on MNIST the paper's and by how much ours is above them."""
    lines = [f"{'':<8}{'labels':>8}{'error, %':>10}{'paper':>8}{'above':>8}   trained for"]
    for cell in sorted(cells, key=lambda cell: (["pixels", *PAPER].index(cell["model"]), cell["labels"])):
        line = f"{cell['model']:<8}{cell['labels']:>8}{cell['error']:>10.2f}"
        paper = PAPER.get(cell["model"], {}).get(cell["labels"]) if cell["data"] == "mnist" else None
        line += " " * 16 if paper is None else f"{paper:>8.2f}{cell['error'] - paper:>+8.2f}"
        epochs = "".join(f"{part}: {n} epochs, " for part, n in cell.get("epochs", {}).items())
        lines.append(f"{line}   {epochs}seed {cell['seed']}, {cell['seconds']:.0f} s")
    return "\n".join(lines)


def main() -> None:
    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(kind: type) -> Callable[[str], list[Any]]:
        return lambda text: [kind(word) for word in words(text)]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=numbers(int), default=[100, 600, 1000])
    parser.add_argument("--models", type=words, default=["m1", "m2", "m1+m2", "pixels"])
    parser.add_argument("--epochs", type=numbers(int), default=[20, 3, 6], help="of m1, m2 and m1+m2")
    parser.add_argument("--batch-size", type=numbers(int), default=[200, 50, 200], help="of m1, m2 and m1+m2")
    parser.add_argument("--hidden", type=int, default=300)
    parser.add_argument("--latent-dim", type=int, default=50)
    parser.add_argument("--alpha", type=numbers(float), default=[50.0, 1.0], help="of m2 and m1+m2; the paper has 0.1")
    parser.add_argument(
        "--share", type=numbers(float), default=[0.2, 0.1], help="of labelled rows in an epoch, of m2 and m1+m2"
    )
    parser.add_argument("--lr", type=numbers(float), default=[1e-3, 3e-3, 1e-3], help="of m1, m2 and m1+m2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="scikit-learn's digits and two epochs; written only to --out"
    )
    parser.add_argument(
        "--out", type=Path, help="of the cells; by default results/semi_supervised.json beside this script"
    )
    args = parser.parse_args()
    if unknown := set(args.models) - {"pixels", *PAPER}:
        raise SystemExit(f"--models {', '.join(sorted(unknown))}: known are pixels, m1, m2 and m1+m2.")
    if args.quick:
        args.epochs, args.hidden, args.latent_dim = [2, 2, 2], 32, 5
    elif args.out is None:
        args.out = RESULTS
    for name in ("epochs", "batch_size", "lr"):
        setattr(args, name, dict(zip(PAPER, getattr(args, name), strict=True)))
    for name in ("alpha", "share"):
        setattr(args, name, dict(zip(("m2", "m1+m2"), getattr(args, name), strict=True)))
    torch.set_num_threads(args.threads)
    print(table(run(args).cells))


if __name__ == "__main__":
    main()
