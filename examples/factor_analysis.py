"""Factor analysis of digits with holes: what was not seen is integrated out, in training too.

Half of the pixels are hidden at random. What EM learns from the rest is compared with what it learns from complete
digits and from holes filled by each pixel's mean, by the likelihood of new, complete digits; then the holes of new
digits are filled.
"""

import sys
from pathlib import Path

import torch

from ppgen import data, models, plots
from ppgen.inference import EM, impute, log_likelihood, train


def main(quick: bool, out: Path) -> None:
    digits = data.load("digits", binarize="none")
    x, x_test = (images.flatten(1) / digits.test.max() for images in (digits.train, digits.test))
    x, x_test = x[: 300 if quick else None], x_test[: 50 if quick else None]
    generator = torch.Generator().manual_seed(0)
    x, x_test = (rows + 0.02 * torch.randn(rows.shape, generator=generator) for rows in (x, x_test))  # 17 grey levels
    seen, seen_test = (torch.rand(rows.shape, generator=generator) > 0.5 for rows in (x, x_test))
    mean = (x * seen).sum(0) / seen.sum(0).clamp(min=1)

    def learn(kind: type[models.FactorAnalysis], *batch: torch.Tensor) -> models.FactorAnalysis:
        model = kind(64, 8)
        train(EM(model, tolerance=1e-4), batch, epochs=20 if quick else 500, batch_size=len(x), progress=False)
        return model

    for kind in (models.ProbabilisticPCA, models.FactorAnalysis):
        trained = {
            "complete digits": learn(kind, x),
            "digits with holes": learn(kind, torch.where(seen, x, 0.0), seen),
            "holes filled by means": learn(kind, torch.where(seen, x, mean)),
        }
        for name, model in trained.items():
            print(f"{kind.__name__}, {name}: log p(x) = {model.score(x_test):.2f} nats")
    holes = trained["digits with holes"]
    print("one sample is exact:", log_likelihood(holes, x_test[:5], mask=seen_test[:5], num_samples=1).values.float())
    print("              exactly:", holes.log_prob(x_test[:5], seen_test[:5]).detach())

    show = slice(0, 25)
    filled = {
        "half of the pixels": torch.where(seen_test, x_test, 0.0)[show],
        "the rest by means": torch.where(seen_test, x_test, mean)[show],
    }
    for name in ("digits with holes", "complete digits"):
        missing = impute(trained[name], x_test[show], mask=seen_test[show], num_samples=500)
        error = (missing - x_test[show])[~seen_test[show]].square().mean().sqrt()
        print(f"filled by what was learned from {name}: root mean squared error {error:.3f}")
        filled[f"learned from {name}"] = missing
    filled["the digits"] = x_test[show]
    plots.sheet({name: rows.reshape(-1, 1, 8, 8) for name, rows in filled.items()}, out, columns=5, per_row=5)


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "factor_analysis.png"))
