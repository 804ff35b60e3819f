"""EM of Gaussian mixtures and of factor analysis against scikit-learn: the same data, start and number of iterations.

    python benchmarks/em.py --threads 1

100,000 rows of 20 numbers, ten components (or factors), float64. Ours and scikit-learn's take turns, and the median of
the ratios of neighbours counts, so that a busy machine disturbs both alike. A ratio above 1 means that ours is faster.
Cells are written as they are finished, to results/em.json beside this script unless --out names another file.

Both do the same E and M steps of a mixture, so the two log-likelihoods agree. scikit-learn's step of factor analysis is
another one, a singular value decomposition of all data, which is a little ahead after so many steps and has the same
optimum.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from record import VERSIONS, machine, write
from sklearn.decomposition import FactorAnalysis as ScikitFactors
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as ScikitMixture
from threadpoolctl import threadpool_limits

from ppgen import models
from ppgen.inference import EM

RESULTS = Path(__file__).parent / "results" / "em.json"
Timed = Callable[[], tuple[float, float]]  # gives seconds, and the mean log-likelihood that was reached
KINDS = ("full", "tied", "diag", "spherical")


def clusters(num_rows: int, dim: int, num_components: int) -> np.ndarray:
    """Gaussian clusters of different shapes that overlap somewhat."""
    generator = np.random.default_rng(0)
    x = np.empty((num_rows, dim))
    for rows in np.array_split(np.arange(num_rows), num_components):
        loc, shape = 2 * generator.normal(size=dim), generator.normal(size=(dim, dim)) / dim**0.5
        x[rows] = loc + generator.normal(size=(len(rows), dim)) @ shape + 0.3 * generator.normal(size=(len(rows), dim))
    return generator.permutation(x)


def mixture(kind: str, x: np.ndarray, num_components: int, iterations: int) -> tuple[Timed, Timed]:
    generator = np.random.default_rng(1)
    loc = x[generator.choice(len(x), num_components, replace=False)]
    weights = np.full(num_components, 1 / num_components)
    covariance = np.cov(x.T)
    variances = np.diag(covariance)
    form = {
        "full": np.stack([covariance] * num_components),
        "tied": covariance,
        "diag": np.stack([variances] * num_components),
        "spherical": np.full(num_components, variances.mean()),
    }[kind]
    precisions = np.linalg.inv(form) if kind in ("full", "tied") else 1 / form

    def theirs() -> tuple[float, float]:
        start = {"weights_init": weights, "means_init": loc, "precisions_init": precisions}
        model = ScikitMixture(num_components, covariance_type=kind, tol=0.0, max_iter=iterations, **start)
        began = time.perf_counter()
        model.fit(x)
        return time.perf_counter() - began, model.score(x)

    def ours() -> tuple[float, float]:
        rows = torch.as_tensor(x)
        model = models.GaussianMixture(num_components, x.shape[1], kind).double()
        model.set_parameters(weights, loc, form)
        step = EM(model, num_restarts=0)
        began = time.perf_counter()
        for _ in range(iterations):
            step.step(rows)
        step.evaluate(rows)  # scikit-learn's fit, too, ends with an E-step
        return time.perf_counter() - began, model.score(rows)

    return theirs, ours


def factors(x: np.ndarray, latent_dim: int, iterations: int) -> tuple[Timed, Timed]:
    def theirs() -> tuple[float, float]:
        model = ScikitFactors(latent_dim, tol=0.0, max_iter=iterations, svd_method="randomized", random_state=0)
        began = time.perf_counter()
        model.fit(x)
        return time.perf_counter() - began, model.score(x)

    def ours() -> tuple[float, float]:
        rows = torch.as_tensor(x)
        model = models.FactorAnalysis(x.shape[1], latent_dim).double()
        step = EM(model)
        began = time.perf_counter()
        for _ in range(iterations):
            step.step(rows)
        return time.perf_counter() - began, model.score(rows)

    return theirs, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=20)
    parser.add_argument("--components", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(args.threads)
    x = clusters(args.rows, args.dim, args.components)
    cases = {f"Gaussian mixture, {kind}": mixture(kind, x, args.components, args.iterations) for kind in KINDS}
    cases["factor analysis"] = factors(x, args.components, args.iterations)
    settings = {"rows": args.rows, "dim": args.dim, "components": args.components, "iterations": args.iterations}
    about = {
        "what": "EM against scikit-learn, float64, same data and number of iterations; ratio > 1: ours is faster",
        "settings": settings | {"repeats": args.repeats, "threads": args.threads},
        "machine": machine(),
        "versions": VERSIONS,
    }
    cells = []
    with threadpool_limits(args.threads):
        for name, (scikit, own) in cases.items():
            runs = [(scikit(), own()) for _ in range(args.repeats)]
            seconds = [statistics.median(run[i][0] for run in runs) for i in (0, 1)]
            cell = {
                "model": name,
                "ratio": round(statistics.median(theirs[0] / ours[0] for theirs, ours in runs), 2),
                "seconds_scikit_learn": round(seconds[0], 3),
                "seconds_ours": round(seconds[1], 3),
                "log_likelihood_scikit_learn": runs[-1][0][1],
                "log_likelihood_ours": runs[-1][1][1],
            }
            cells.append(cell)
            print(
                f"{name:28} {cell['ratio']:5.2f} times as fast as scikit-learn"
                f"   ({seconds[1]:.2f} s against {seconds[0]:.2f} s; log-likelihood "
                f"{cell['log_likelihood_ours']:.6f} against {cell['log_likelihood_scikit_learn']:.6f})",
                flush=True,
            )
            write(args.out, about | {"cells": cells})


if __name__ == "__main__":
    main()
