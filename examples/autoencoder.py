"""Linear, dense and convolutional autoencoders, with codes of two and of eight numbers.

All three are the same pair with other networks. The linear one can do no better than principal component analysis,
whose error is printed beside it.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch.nn.functional import pad

from ppgen import data, decoders, models, nn
from ppgen.inference import encode, fit, reconstruct

EPOCHS = {"digits": 300, "mnist": 5}
KINDS = ("linear", "dense", "convolutional")


def build(kind: str, shape: tuple[int, ...], latent_dim: int) -> models.Autoencoder:
    if kind == "linear":
        encoder, net = nn.MLP(shape, latent_dim), nn.MLP(latent_dim, shape)
    elif kind == "dense":
        encoder, net = nn.MLP(shape, 256, 64, latent_dim), nn.MLP(latent_dim, 64, 256, shape)
    else:
        encoder = nn.ConvNet(shape, latent_dim, channels=(16, 32), hidden=(64,), kernel_size=3)
        net = nn.DeconvNet(latent_dim, shape, channels=(32, 16), hidden=(64,), kernel_size=3)
    return models.Autoencoder(encoder, decoders.Normal(net, scale=0.2))  # a fixed scale: squared errors


def main(quick: bool, out: Path, name: str = "digits") -> None:
    grey = data.load(name, binarize="none")
    x, watched, test = (
        (p[:300] if quick else p[:]) / (grey.num_levels - 1) for p in (grey.train, grey.validation, grey.test)
    )
    labels = grey.test_labels[: len(test)]
    shown = torch.stack([test[labels == digit][0] for digit in range(10)])
    figure = Figure(figsize=(10, 5), layout="constrained")
    scatters, pictures = figure.subplots(2, 3, height_ratios=[3, 1])
    for kind, scatter, axes in zip(KINDS, scatters, pictures, strict=True):
        strips, error = [shown], {}
        for latent_dim in (2, 8):
            torch.manual_seed(0)
            ae = build(kind, grey.event_shape, latent_dim)
            fit(ae, x, epochs=2 if quick else EPOCHS[name], validation=watched, patience=30, seed=0)
            error[latent_dim] = (test - reconstruct(ae, test)).square().mean().item()
            strips.append(reconstruct(ae, shown))
            if latent_dim == 2:
                codes = encode(ae, test[:2000]).numpy()
                scatter.scatter(codes[:, 0], codes[:, 1], c=labels[:2000], cmap="tab10", s=8)
        scatter.set_title(f"{kind}: codes of two numbers, by class", fontsize=9)
        scatter.set(xticks=[], yticks=[])
        framed = [torch.cat([pad(digit, (1, 1, 1, 1), value=1.0) for digit in strip[:, 0]], -1) for strip in strips]
        axes.imshow(torch.cat(framed).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[(i + 0.5) * len(framed[0]) for i in range(3)], yticklabels=["data", "2", "8"])
        print(f"{kind}: mean squared error", ", ".join(f"{e:.4f} of {d}" for d, e in error.items()))
        if kind == "linear":
            for d in error:
                pca, rows = PCA(d).fit(x.flatten(1).numpy()), test.flatten(1).numpy()
                rest = rows - pca.inverse_transform(pca.transform(rows))
                print(f"  principal component analysis: {(rest**2).mean():.4f} of {d}")
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Linear, dense and convolutional autoencoders.")
    parser.add_argument("out", type=Path, nargs="?", default=Path("autoencoder.png"))
    parser.add_argument("--data", choices=EPOCHS, default="digits")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    main(options.quick, options.out, options.data)
