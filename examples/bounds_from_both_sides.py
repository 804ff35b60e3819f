"""Whether a log-likelihood can be believed: importance sampling, annealed importance sampling, and bounds.

Every estimate of log p(x) is a lower bound in expectation, and nothing about one says how low. On data that the model
itself drew there is an upper bound, too: chains that go back from an exact latent. Where both meet, the truth is
between them. From the guide the way is short; from the prior it is long, and needs no guide at all.

Digits of scikit-learn by default; for MNIST, an hour: python bounds_from_both_sides.py --data mnist
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ppgen import data, decoders, models, nn, posteriors, priors
from ppgen.inference import ais, bdmc, fit, log_likelihood, repaired_log_likelihood

SETTINGS = {"digits": (150, 128, 8), "mnist": (30, 300, 40)}  # epochs, hidden units, coordinates of z


def main(quick: bool, out: Path, name: str = "digits") -> None:
    digits = data.load(name)
    epochs, hidden, d = SETTINGS[name]
    torch.manual_seed(0)
    vae = models.VAE(
        priors.StandardNormal(d),
        decoders.Bernoulli(nn.MLP(d, hidden, hidden, digits.image_shape)),
        posteriors.DiagNormal(nn.MLP(digits.image_shape, hidden, hidden, 2 * d)),
    )
    fit(vae, digits.train, epochs=2 if quick else epochs, seed=0, progress=False)

    n, samples, chains = (10, 250, 8) if quick else (100, 5000, 16)
    ladder = (3, 6) if quick else (10, 30, 100)  # temperatures
    found = {
        s: [bdmc(vae, n, start=s, num_temperatures=t, num_chains=chains) for t in ladder] for s in ("guide", "prior")
    }
    best = found["guide"][-1]
    print(f"{'log p(x), nats a datum':<38}      test digits  the model's own")
    for label, estimate in {
        f"importance sampling, S = {samples}": lambda x: log_likelihood(vae, x, num_samples=samples),
        "the same, guide widened": lambda x: repaired_log_likelihood(vae, x, num_samples=samples),
        "the same, guide refined and widened": lambda x: repaired_log_likelihood(
            vae, x, num_samples=samples, num_steps=10 if quick else 100
        ),
        f"annealed from the guide, T = {ladder[-1]}": lambda x: ais(
            vae, x, num_temperatures=ladder[-1], num_chains=chains
        ),
    }.items():
        test, own = (estimate(x) for x in (digits.test[:n], *best.data))
        numbers = (f"{e.mean:9.3f} ± {e.mean_mc_standard_error:.3f}" for e in (test, own))
        print(f"{label:<38}", *numbers)
    print(f"{'upper bound':<38}{'none':>10}{best.upper.mean():18.3f} ± {best.upper_standard_error.norm() / n:.3f}")
    print(f"{'gap of the bounds':<38}{'none':>10}{best.gap:18.3f} ± {best.gap_standard_error:.3f}")

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for (start, bounds), color in zip(found.items(), ("C0", "C1"), strict=True):
        lower, upper = (
            [side.mean().item() for side in sides] for sides in zip(*((b.lower, b.upper) for b in bounds), strict=True)
        )
        axes.plot(ladder, upper, "v-", color=color, label=f"upper bound, from the {start}")
        axes.plot(ladder, lower, "^-", color=color, mfc="white", label=f"lower bound, from the {start}")
        axes.fill_between(ladder, lower, upper, color=color, alpha=0.15)
    sampled = log_likelihood(vae, *best.data, num_samples=samples).mean
    axes.axhline(sampled, color="gray", linestyle=":", label=f"importance sampling, S = {samples}")
    axes.set_xscale("log")
    axes.set_xticks(ladder, [str(t) for t in ladder])
    axes.set_xlabel("temperatures")
    axes.set_ylabel("mean log p(x), nats")
    axes.set_title(f"{n} digits drawn from the model", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=150)
    print(f"the bounds closing in, in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Bound the likelihood of a VAE from both sides.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", choices=SETTINGS, default="digits")
    parser.add_argument("out", nargs="?", type=Path, default=Path("bounds_from_both_sides.png"))
    arguments = parser.parse_args()
    main(arguments.quick, arguments.out, arguments.data)
