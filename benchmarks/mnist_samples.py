"""What a classifier says of samples of MNIST, after as much training as one core affords: models by name, one by one.

A convolutional classifier of at least 98 % test accuracy looks at 1,000 samples of each model: how many it is sure of
(a probability above 0.9), and how many are of each class. The same figures of test data stand beside them. Likelihood
models see binarised digits or grey levels, as their decoder needs, and so does their classifier; GANs see grey levels.

    python benchmarks/mnist_samples.py --models acgan,gan --out benchmarks/results/mnist_samples.json

The goal is 80 % sure and every class at 3 % or more. Published figures took GPUs, here the minutes are part of the
result: those of the processor, on one thread. Pictures lie beside the results.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from record import Record

from ppgen import data, plots
from ppgen.catalogue import MODELS, Recipe
from ppgen.inference import sample
from ppgen.judge import class_shares, sample_report, train_classifier


class Case(NamedTuple):
    """How a model is built and trained."""

    binarize: str
    settings: dict[str, Any]
    training: dict[str, Any]


CASES = {
    "acgan": Case("none", {}, {"epochs": 3}),
    "gan": Case("none", {}, {"epochs": 4}),
    "wgan": Case("none", {}, {"epochs": 5}),
    "wgan-gp": Case("none", {}, {"epochs": 8}),
    "vqvae": Case("none", {"decoder": "logistic"}, {"epochs": 2, "prior_epochs": 3, "batch_size": 32}),
    "pixelcnn": Case("dynamic", {"num_layers": 4, "filters": 24}, {"epochs": 1, "batch_size": 16}),
}


def judged(name: str, case: Case, loaded: Any, classifier: Any, num: int, pictures: Path | None) -> dict[str, Any]:
    """One model, trained and looked at."""
    recipe = Recipe(name, tuple(loaded.event_shape), loaded.num_levels, 10, case.settings)
    torch.manual_seed(0)
    pair = recipe.build()
    batch, watched = (
        recipe.batch(x, y)
        for x, y in ((loaded.train, loaded.train_labels), (loaded.validation[:1000], loaded.validation_labels[:1000]))
    )
    began, began_wall = time.process_time(), time.perf_counter()
    MODELS[name].train(pair, batch, watched, **case.training, seed=0, progress=False)
    minutes, wall = (time.process_time() - began) / 60, (time.perf_counter() - began_wall) / 60
    drawn = sample(pair, num, *recipe.context(num), seed=0)
    if pictures:
        plots.images(drawn[torch.randperm(num)[:64]] / (loaded.num_levels - 1), pictures / f"mnist_{name}.png")
    shares = class_shares(classifier, drawn.to(loaded.test.dtype))
    report = sample_report(loaded.test[:num].to(drawn.dtype), drawn, classifier=classifier)
    return {
        **figures(shares),
        "Fréchet_distance": round(float(report.scores["Fréchet distance"]), 1),
        "minutes_of_processor": round(minutes, 1),
        "minutes": round(wall, 1),
        "parameters": sum(p.numel() for p in pair.parameters()),
        "settings": recipe.settings,
        "training": case.training,
    }


def figures(shares: Any) -> dict[str, Any]:
    return {
        "confident": round(shares.confident, 4),
        "class_shares": [round(share, 4) for share in shares.shares.tolist()],
        "smallest_class_share": round(shares.smallest, 4),
        "num_samples": shares.num_samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(CASES), help="some of them, separated by commas")
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, and one epoch")
    parser.add_argument("--out", type=Path, help="a JSON file of the results; a model that is in it is left out")
    args = parser.parse_args()
    if unknown := set(args.models.split(",")) - set(CASES):
        raise SystemExit(f"--models {', '.join(sorted(unknown))}: known are {', '.join(CASES)}.")
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    digits = "digits" if args.quick else "mnist"
    record = Record(args.out, {"data": digits, "goal": {"confident": 0.8, "smallest_class_share": 0.03}})
    judges: dict[str, Any] = {}
    try:
        for name in args.models.split(","):
            if record.has(model=name):
                continue
            case = CASES[name]
            loaded = data.load(digits, binarize=case.binarize)
            if case.binarize not in judges:
                judge = train_classifier(
                    loaded.train, loaded.train_labels, levels=loaded.num_levels, epochs=3, progress=False
                )
                judges[case.binarize] = judge, judge.accuracy(loaded.test, loaded.test_labels)
                if not record.has(model="test data", binarization=case.binarize):
                    found = figures(class_shares(judge, loaded.test))
                    record.add(model="test data", binarization=case.binarize, **found)
            classifier, accuracy = judges[case.binarize]
            if args.quick:
                case = case._replace(training={n: min(v, 1) if "epochs" in n else v for n, v in case.training.items()})
            result = judged(name, case, loaded, classifier, args.num_samples, args.out and args.out.parent)
            record.add(model=name, binarization=case.binarize, classifier_accuracy=accuracy, **result)
            print(
                f"{name:<9} {result['confident']:.1%} sure, rarest class {result['smallest_class_share']:.1%}, Fréchet "
                f"{result['Fréchet_distance']}, {result['minutes_of_processor']} minutes of the processor "
                f"(classifier: {accuracy:.2%} of the test data right)",
                flush=True,
            )
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    main()
