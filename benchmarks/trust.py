"""A trained VAE's log-likelihood from all sides, in one table: importance sampling, annealing, bounds that meet.

    ppgen train vae --data mnist --epochs 20 --out runs/vae
    python benchmarks/trust.py runs/vae

Test data have estimates, all of them lower bounds in expectation. Data that the model itself drew have an upper bound,
too, and the truth lies in the gap: there it can be seen how far each estimate falls short.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from record import Record

from ppgen.cli.source import data_of
from ppgen.inference import ais, bdmc, log_likelihood, repaired_log_likelihood
from ppgen.runs import load_run

RESULTS = Path(__file__).parent / "results" / "trust.json"


def main(run: Path, n: int, samples: int, temperatures: int, chains: int, out: Path | None) -> None:
    pair, recipe, config = load_run(run)
    source = config["data"]["name"]
    test = data_of(run, recipe, config, None, allow=[source]).test[:n]
    bounds = bdmc(pair, n, start="guide", num_temperatures=temperatures, num_chains=chains)
    estimates = {
        f"importance sampling, S = {samples}": lambda x: log_likelihood(pair, x, num_samples=samples),
        "the same, guide widened": lambda x: repaired_log_likelihood(pair, x, num_samples=samples),
        "the same, refined and widened": lambda x: repaired_log_likelihood(pair, x, num_samples=samples, num_steps=100),
        f"annealed from the guide, T = {temperatures}": lambda x: ais(
            pair, x, num_temperatures=temperatures, num_chains=chains
        ),
    }
    record = Record(out, {"what": "log p(x) of a VAE, nats a datum, on test data and on data that the model drew"})
    settings = {"data": source, "epochs": config["training"]["epochs"], "num_data": n, **recipe.settings}
    print(f"{'log p(x), nats a datum':<38}{'test data':>22}{'reliable':>10}{'data of the model':>24}{'reliable':>10}")
    for name, estimate in estimates.items():
        found = {"test": estimate(test), "own": estimate(*bounds.data)}
        cells = "".join(
            f"{e.mean:>14.3f} ± {e.mean_mc_standard_error:.3f}{e.reliable_fraction:>10.0%}" for e in found.values()
        )
        print(f"{name:<38}{cells}", flush=True)
        figures = {f"{where}_{key}": value for where, e in found.items() for key, value in e.summary().items()}
        record.add(estimate=name, **{k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}, **figures)
    lower, upper = bounds.lower.mean().item(), bounds.upper.mean().item()
    print(f"{'bounds':<38}{'only lower':>14}{'':>18}{lower:>14.3f} to {upper:.3f}")
    print(f"gap of the bounds {bounds.gap:.3f} ± {bounds.gap_standard_error:.3f} nats")
    record.add(estimate="bounds", num_data=n, lower=lower, upper=upper, gap=float(bounds.gap))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A VAE's log-likelihood from all sides.")
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/vae"))
    parser.add_argument("--num-data", type=int, default=100)
    parser.add_argument("--num-samples", type=int, default=5000)
    parser.add_argument("--temperatures", type=int, default=60)
    parser.add_argument("--chains", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(options.run, options.num_data, options.num_samples, options.temperatures, options.chains, options.out)
