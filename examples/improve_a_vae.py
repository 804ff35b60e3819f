"""A VAE can be improved in three places: the posterior, the decoder, the prior. One change at a time, with its number.

The data are the 17 grey levels of scikit-learn's digits, each model is scored by importance sampling, and the figures
are differences to the first model, paired datum by datum. Log-likelihoods of levels are exact probabilities, so models
with different decoders may be compared.
"""

import sys
from pathlib import Path

import torch

from ppgen import data, plots
from ppgen.catalogue import Recipe
from ppgen.compare import compare
from ppgen.decoders import bits_per_dim
from ppgen.inference import elbo, fit, warmup

STEPS = {
    "a plain VAE": {},
    "a better posterior: IAF": {"posterior": "iaf"},
    "a better decoder: mixture of logistics": {"decoder": "logistic-mixture"},
    "a better prior: VampPrior": {"prior": "vamp"},
    "decoder and prior": {"decoder": "logistic-mixture", "prior": "vamp"},
}


def main(quick: bool, out: Path) -> None:
    digits = data.load("digits", binarize="none")
    pairs = {}
    for name, change in STEPS.items():
        parts = {"decoder": "logistic", **change}
        sizes = {"latent_dim": 8, "num_components": 50, "hidden": (64,)}
        recipe = Recipe("vae", digits.event_shape, digits.num_levels, settings=parts | sizes)
        torch.manual_seed(0)
        pairs[name] = recipe.build(digits.train[:50])
        fit(
            pairs[name],
            digits.train,
            loss=elbo(beta=warmup(10)),
            epochs=12 if quick else 150,
            validation=digits.validation,
            patience=1 if quick else 25,
            optimizer=lambda p: torch.optim.Adam(p, lr=3e-3),
            seed=0,
            progress=False,
        )
    test = digits.test[:50] if quick else digits.test
    result = compare(pairs, test, num_samples=50 if quick else 1000)
    plain = result.estimates["a plain VAE"].values
    for name, estimate in result.estimates.items():
        gain = estimate.values - plain
        error = gain.std() / len(gain) ** 0.5
        bits = float(bits_per_dim(estimate.values, digits.event_shape).mean())
        print(f"{name:<40} {estimate.mean:8.2f} nats, {bits:.3f} bits/dim, gain {gain.mean():6.2f} ± {error:.2f}")
    print(result.verdict())
    plots.comparison(result.rows, out)


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "improve_a_vae.png"))
