"""A PixelCNN of grey digits, given the class: exact likelihood, samples pixel by pixel, halves of digits continued.

Digits of scikit-learn, of 17 levels, by default. For MNIST, of 256 levels, a quarter of an hour an epoch on one core:
python pixelcnn.py --data mnist
"""

import argparse
import functools
import time
from pathlib import Path

import torch
from torch.nn.functional import one_hot

from ppgen import data, decoders, models, nn, plots
from ppgen.inference import fit, log_likelihood, sample

SIZES = {"digits": (60, 5, 32), "mnist": (5, 7, 32)}  # epochs, layers, channels


def main(quick: bool, out: Path, name: str = "digits") -> None:
    epochs, layers, channels = (1, 2, 8) if quick else SIZES[name]
    digits = data.load(name, binarize="none")
    levels = digits.num_levels
    y, y_validation, y_test = (
        one_hot(labels, 10).float() for labels in (digits.train_labels, digits.validation_labels, digits.test_labels)
    )
    shape = digits.test.shape[1:]
    torch.manual_seed(0)
    net = nn.GatedPixelCNN(
        shape,
        decoders.Categorical.outputs_shape(shape, levels),
        channels=channels,
        num_layers=layers,
        levels=levels,
        context_shapes=[10],
    )
    pixelcnn = models.ExplicitDensity(decoders.Autoregressive(decoders.Categorical(net, levels)))  # p(x | y)
    fit(
        pixelcnn,
        (digits.train, y),
        validation=(digits.validation, y_validation),
        epochs=epochs,
        patience=None if quick else 5,
        batch_size=50,
        optimizer=functools.partial(torch.optim.Adam, lr=2e-3),
        seed=0,
    )
    estimate = log_likelihood(pixelcnn, digits.test, y_test, num_samples=1)
    bits = decoders.bits_per_dim(estimate.values, shape).mean()
    print(f"log p(x | y) = {estimate.mean:.2f} ± {estimate.data_standard_error:.2f} nats, {bits:.3f} bits a pixel")

    began = time.perf_counter()
    pictures = sample(pixelcnn, 80, torch.eye(10).repeat_interleave(8, 0), seed=0)
    print(f"80 pictures of {shape[1]} × {shape[2]} pixels, one after the other, in {time.perf_counter() - began:.1f} s")
    upper = torch.zeros(shape[1:], dtype=torch.bool)
    upper[: shape[1] // 2] = True
    rows, labels = digits.test[:10].repeat_interleave(8, 0), y_test[:10].repeat_interleave(8, 0)
    torch.manual_seed(0)
    continued = pixelcnn.density(labels).draw(rows.float(), known=upper)
    continued[::8] = digits.test[:10]
    groups = {"samples, a row a class": pictures, "first: data; then: the upper half, continued": continued}
    plots.sheet({name: pictures / (levels - 1) for name, pictures in groups.items()}, out, columns=2, per_row=8)
    print(f"samples and continuations in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A PixelCNN of digits.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", choices=SIZES, default="digits")
    parser.add_argument("out", nargs="?", type=Path, default=Path("pixelcnn.png"))
    arguments = parser.parse_args()
    main(arguments.quick, arguments.out, arguments.data)
