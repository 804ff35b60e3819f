"""Incomplete and damaged data: train on what was observed, fill in what was not, clean what was spoilt.

Half of the pixels of every training image are missing, others in each, and no image is complete. The missing ones are
integrated out of p(x | z), and the posterior sees zeros in their place and, as more channels, where they are. In the
test the same share is missing, or all of the lower half (which the training never showed), or noise covers everything.
The objective is MIWAE's (Mattei & Frellsen, 2019, https://arxiv.org/abs/1812.02633), importance-weighted.

Digits of scikit-learn by default; for MNIST, some minutes: python missing_data.py --data mnist
"""

import argparse
from pathlib import Path

import torch
from sklearn.impute import KNNImputer

from ppgen import data, decoders, models, nn, plots, posteriors, priors
from ppgen.inference import denoise, fit, impute, iwae

SETTINGS = {"digits": (80, 128, 10), "mnist": (10, 400, 32)}  # epochs, hidden units, coordinates of z


def main(quick: bool, out: Path, name: str = "digits") -> None:
    digits = data.load(name, binarize="none")
    epochs, hidden, d = SETTINGS[name]
    x, x_test = (part / (digits.num_levels - 1) for part in (digits.train, digits.test[:300]))
    torch.manual_seed(0)
    mask = torch.rand(x.shape) < 0.5  # True where a pixel was observed
    x = torch.where(mask, x, torch.nan)

    channels, *size = digits.image_shape
    vae = models.VAE(
        priors.StandardNormal(d),
        decoders.Normal(nn.GatedMLP(d, hidden, hidden, digits.image_shape), 0.3, learn_scale=True),
        posteriors.DiagNormal(nn.GatedMLP((2 * channels, *size), hidden, hidden, 2 * d)),
        sees_mask=True,
    )
    fit(vae, x, mask=mask, loss=iwae(10), epochs=2 if quick else epochs, seed=0, progress=False)

    def rmse(guess, where):
        return (guess - x_test)[where].square().mean().sqrt().item()

    mean = x.nanmean(0).expand_as(x_test)
    neighbours = KNNImputer(n_neighbors=10).fit(x[:2000].flatten(1))
    lower = torch.ones_like(x_test, dtype=torch.bool)
    lower[..., size[0] // 2 :, :] = False
    num_samples = 50 if quick else 1000
    columns, noisy = [], (x_test + 0.3 * torch.randn_like(x_test)).clamp(0, 1)
    print("RMSE of missing pixels     mean  10 neighbours    VAE")
    for kind, seen in {"half of them, at random": torch.rand(x_test.shape) < 0.5, "the lower half": lower}.items():
        incomplete = torch.where(seen, x_test, torch.nan)
        near = torch.as_tensor(neighbours.transform(incomplete.flatten(1))).reshape(x_test.shape)
        filled = impute(vae, incomplete, mask=seen, num_samples=num_samples)
        drawn = impute(vae, incomplete, mask=seen, num_samples=num_samples, mean=False)
        row = [rmse(guess, ~seen) for guess in (mean, near, filled)]
        print(f"{kind:<24}{row[0]:7.3f}{row[1]:15.3f}{row[2]:7.3f}")
        columns += [torch.where(seen, x_test, 0.5), filled, drawn, x_test]
    cleaned, everywhere = denoise(vae, noisy, num_samples=num_samples), torch.ones_like(lower)
    print(f"RMSE of noisy pixels {rmse(noisy, everywhere):.3f}, cleaned {rmse(cleaned, everywhere):.3f}")

    rows = torch.stack([*columns, noisy, cleaned, x_test], 1)[:12].flatten(0, 1)
    plots.images(rows, out, columns=11, title="missing | imputed | drawn | truth (twice), noisy | cleaned | truth")
    print(f"damaged digits, what the VAE makes of them, and the truth in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fill in and clean digits.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", choices=SETTINGS, default="digits")
    parser.add_argument("out", nargs="?", type=Path, default=Path("missing_data.png"))
    arguments = parser.parse_args()
    main(arguments.quick, arguments.out, arguments.data)
