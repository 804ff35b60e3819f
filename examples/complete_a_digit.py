"""Complete a digit from one, two or three of its quadrants: a plain network against a conditional VAE.

The benchmark of Pyro's tutorial on conditional VAEs (https://pyro.ai/examples/cvae.html), after Sohn, Lee & Yan (2015,
https://papers.nips.cc/paper/5775). y are the grey values that are given: the lower left quadrant, the left half, or all
but the lower right. x are the missing pixels. The network predicts each of them by itself, so that its guess is a blur
of all digits that fit; the conditional VAE draws one of these digits at a time. Its prior p(z | y) sees the guess.

The tutorial scores grey pixels as if they were binary: the mean score over binary draws of them. Here x are such draws,
anew in each epoch, so that p(x | y) is a probability. For the network both scores are the same, up to the noise of one
draw; for the VAE, whose ELBO the tutorial reports, its score bounds this one, which is estimated by importance sampling
(the ELBO stands beside it). Two more differences: the tutorial's decoder sees y through z alone, this one is the
paper's p(x | z, y); and the tutorial trains on 60,000 images and stops early by the 10,000 of the test, which it then
reports, where here 10,000 of the 60,000 are kept for that. Sizes, optimiser, batches and patience (three epochs, of 50
at most) are the tutorial's.

Digits of scikit-learn by default; for MNIST, 10 to 20 minutes: python complete_a_digit.py --data mnist --epochs 20
"""

import argparse
import json
import platform
import time
from pathlib import Path

import pyro
import torch

from ppgen import data, decoders, models, nn, plots, posteriors, priors
from ppgen.inference import elbo, fit, log_likelihood, sample

SETTINGS = {
    "digits": {"epochs": 300, "patience": 10, "batch_size": 100, "hidden": 128, "latent_dim": 8, "num_samples": 1000},
    "mnist": {"epochs": 50, "patience": 3, "batch_size": 128, "hidden": 500, "latent_dim": 200, "num_samples": 200},
}
TUTORIAL = {"network": [100.4, 61.9, 25.4], "CVAE, ELBO": [71.8, 51.0, 24.2], "gap": [28.6, 10.9, 1.2]}  # on MNIST

VERSIONS = {"python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__}


class WithGuess(torch.nn.Module):
    """A network of y and of what another one, which stays as it is, makes of y."""

    def __init__(self, guess, net):
        super().__init__()
        self.guess, self.net = guess.requires_grad_(False), net

    def forward(self, y):
        return self.net(y, self.guess(y).sigmoid())


def quadrants(number, side):
    """Which pixels are given."""
    given, half = torch.zeros(side, side, dtype=torch.bool), side // 2
    given[half:, :half] = True
    if number > 1:
        given[:half, :half] = True
    if number > 2:
        given[:half, half:] = True
    return given


def main(quick: bool, out: Path, name: str = "digits", epochs: int | None = None, results: Path | None = None) -> None:
    digits, seed = data.load(name, binarize="none"), 0
    settings = SETTINGS[name] | ({"epochs": 2, "num_samples": 100} if quick else {}) | {"seed": seed}
    settings |= {"epochs": epochs} if epochs else {}
    options = {key: settings[key] for key in ("epochs", "patience", "batch_size", "seed")} | {"progress": False}
    hidden, d = settings["hidden"], settings["latent_dim"]
    grey = [part[:, 0] / (digits.num_levels - 1) for part in (digits.train, digits.validation, digits.test)]
    reached = {
        score: [] for score in ("network", "CVAE, ELBO", "CVAE", "gap", "± s.e.", "reliable", "epochs", "seconds")
    }
    sheet = {}
    for number in (1, 2, 3):
        began, given = time.perf_counter(), quadrants(number, grey[0].shape[-1])
        torch.manual_seed(seed)
        y, y_validation, y_test = (part[:, given] for part in grey)
        x, *held_out = (part[:, ~given] for part in grey)
        x, x_validation, x_test = data.DynamicBinarization(x), *(torch.bernoulli(part) for part in held_out)
        here, missing = y.shape[1], x.shape[1]

        guess = nn.MLP(here, hidden, hidden, missing)
        network = models.ExplicitDensity(decoders.Bernoulli(guess))
        fit(network, (x, y), validation=(x_validation, y_validation), **options)

        cvae = models.VAE(
            priors.DiagNormal(d, WithGuess(guess, nn.MLP(here + missing, hidden, hidden, 2 * d))),
            decoders.Bernoulli(nn.MLP(d + here, hidden, hidden, missing)),
            posteriors.DiagNormal(nn.MLP(missing + here, hidden, hidden, 2 * d)),
        )
        history = fit(cvae, (x, y), loss=elbo(analytic_kl=True), validation=(x_validation, y_validation), **options)

        baseline = log_likelihood(network, x_test, y_test, num_samples=1)
        estimate = log_likelihood(cvae, x_test, y_test, num_samples=settings["num_samples"])
        gain = estimate.values - baseline.values
        figures = [-baseline.mean, -estimate.elbo.mean(), -estimate.mean, gain.mean(), gain.std() / len(gain) ** 0.5]
        seconds = time.perf_counter() - began
        figures += [estimate.reliable_fraction, len(history.loss), seconds]
        for score, figure in zip(reached, figures, strict=True):
            reached[score].append(round(float(figure), 3))
        print(f"given {number} of 4, {seconds:.0f} s; conditional VAE: {estimate}", flush=True)
        if results is not None:
            found = {"settings": settings | {"data": name, "threads": torch.get_num_threads()}, "versions": VERSIONS}
            found |= {"reached": reached, "tutorial": TUTORIAL}
            results.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")

        pictures = []
        for i in range(8):
            with torch.no_grad():
                completions = [0.5, grey[2][i][~given], guess(y_test[i]).sigmoid()]
            completions += sample(cvae, 5, y_test[i : i + 1], mean=True, seed=seed)
            for missing_pixels in completions:
                picture = torch.empty(given.shape)
                picture[given], picture[~given] = y_test[i], missing_pixels
                pictures.append(picture[None])
        sheet[f"{number} given | truth | network | 5 × CVAE"] = torch.stack(pictures)

    print("−log p(x | y) in nats, quadrants given:  1       2       3")
    rows = reached | ({f"tutorial's {score}": row for score, row in TUTORIAL.items()} if name == "mnist" else {})
    for score, row in rows.items():
        print(f"{score:<36}" + "".join(f"{figure:8.2f}" for figure in row))
    plots.sheet(sheet, out, columns=3, per_row=8)
    print(f"given pixels, truth, the network's guess and draws of the conditional VAE in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Complete a digit from its quadrants.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", choices=SETTINGS, default="digits")
    parser.add_argument("--epochs", type=int, help="at most so many, of each model")
    parser.add_argument("--json", type=Path, help="where to write settings and figures")
    parser.add_argument("out", nargs="?", type=Path, default=Path("complete_a_digit.png"))
    arguments = parser.parse_args()
    main(arguments.quick, arguments.out, arguments.data, arguments.epochs, arguments.json)
