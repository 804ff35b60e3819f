"""Digits on demand: an AC-GAN of DCGAN's bodies, its draws judged by a classifier that is trained on the same data."""

import sys
from pathlib import Path

import torch

from ppgen import data, judge, models, nn, plots, priors
from ppgen.inference import Adversarial, sample, train


def main(quick: bool, out: Path) -> None:
    name = sys.argv[sys.argv.index("--data") + 1] if "--data" in sys.argv else "digits"
    digits = data.load(name, binarize="none")
    levels, shape = digits.num_levels, digits.event_shape
    channels = (64, 32)
    torch.manual_seed(0)
    gan = models.ACGAN(
        priors.StandardNormal(32),
        nn.DCGANGenerator(32, shape, channels=channels, context_dim=10),
        nn.DCGANDiscriminator(shape, 1 + 10, channels=channels[::-1]),
        num_classes=10,
        levels=levels,
    )
    epochs = (2 if quick else 150) if name == "digits" else 4
    history = train(Adversarial(gan), (digits.train, digits.train_labels), epochs=epochs, batch_size=100, seed=0)
    print({monitor: round(values[-1], 3) for monitor, values in history.monitors.items()})

    classifier = judge.train_classifier(
        digits.train, digits.train_labels, levels=levels, epochs=(2 if quick else 30) if name == "digits" else 3
    )
    print(f"the classifier is right about {classifier.accuracy(digits.test, digits.test_labels):.1%} of the test data")
    drawn = sample(gan, 1000, torch.arange(1000) % 10, seed=0)
    print(judge.sample_report(digits.test, drawn.to(digits.test.dtype), classifier=classifier))
    print(f"drawn as asked for: {classifier.accuracy(drawn, torch.arange(1000) % 10):.1%}")

    rows = drawn[:100].unflatten(0, (10, 10)).transpose(0, 1).flatten(0, 1)
    plots.images(rows / (levels - 1), out, columns=10, title="a row a class")


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "gan_digits.png"))
