"""The published table of dynamically binarised MNIST, under its own protocol (protocol.py), a run a row.

    python benchmarks/reproduce.py --list                           what there is, and how far each row is
    python benchmarks/reproduce.py --rows vae-standard,vae-vamp     trains, evaluates, rebuilds the README's table
    python benchmarks/reproduce.py --rows vae-vamp --evaluate       a row as it is now, trained to its end or not
    python benchmarks/reproduce.py --table                          rebuilds the table from the files, and nothing else

Training goes on where it stopped: checkpoints lie in OUT/ROW-SEED, so that a long run can be cut (Ctrl-C, or timeout 2h
in front of the command) and started again by the same command. Each evaluated run is a file RESULTS/ROW-SEED.json, and
the table is made of these: a row without one says "not run", one that was cut before its early stopping "not
converged". The log-likelihood of each test image lies in RESULTS/values, where runs on the same images find each other
for paired differences.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import protocol
import torch
from protocol import QUICK, Settings, of, one_layer, two_layers
from record import VERSIONS, alone_in, machine, write, write_values
from reproduced import MARKS, NOT_RUN, insert, table

from ppgen import posteriors
from ppgen.decoders import bits_per_dim
from ppgen.inference import dreg, elbo, fit, iwae, latent_report, log_likelihood
from ppgen.inference.programs.networks import usable_device
from ppgen.inference.training.checkpoint import Checkpoints

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "reproduce"
README = HERE.parent / "README.md"

PRIORS = {
    "standard": protocol.standard,
    "mixture": protocol.mixture,
    "vamp": protocol.vamp,
    "flow": protocol.flow,
}
POSTERIORS = {
    "diagonal": protocol.diagonal,
    "full": of(posteriors.FullNormal),
    "householder": of(posteriors.Householder, {"num_reflections": 10}),
    "planar": of(posteriors.Planar, {"num_transforms": 10}),
    "sylvester": of(posteriors.Sylvester, {"num_transforms": 4}),
    "iaf": of(posteriors.IAF, num_transforms=2, hidden=(300,)),
    "spline": of(posteriors.Spline, num_transforms=2, hidden=(300,)),
}


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        model: what it is, in words.
        build: makes the pair of the data and the settings.
        prior, posterior, objective: by name.
        loss: makes the objective of the settings.
        data: the name of the data.
        published: −log p(x), its standard error, and where it was read.
        band: how far ours may be from it before a bug is looked for.
        num_samples: S, where the likelihood is exact with fewer than the protocol's.
    """

    model: str
    build: Callable[[Any, Settings], Any]
    prior: str = "standard"
    posterior: str = "diagonal"
    objective: str = "ELBO"
    loss: Callable[[Settings], Any] = protocol.objective
    data: str = "mnist"
    published: tuple[float, float, str] | None = None
    band: float | None = None
    num_samples: int | None = None


def vae(prior: str = "standard", posterior: str = "diagonal", **rest: Any) -> Row:
    build = partial(one_layer, prior=PRIORS[prior], posterior=POSTERIORS[posterior])
    return Row("VAE, one layer", build, prior, posterior, **rest)


def hvae(prior: str, convolutional: bool, **rest: Any) -> Row:
    build = partial(two_layers, prior=PRIORS[prior], convolutional=convolutional)
    return Row("convHVAE, two layers" if convolutional else "HVAE, two layers", build, prior, **rest)


def weighted(kind: Callable[[int], Any], k: int) -> dict[str, Any]:
    """An importance-weighted objective, which has no KL term to warm up."""
    return {"objective": f"{'IWAE' if kind is iwae else 'DReG'}, k = {k}", "loss": lambda s: kind(k)}


RERUN = "the rerun in Exemplar VAE (Norouzi, Fleet & Norouzi, 2020)"
LIBRARY = "pytorch-generative's own runs, under another protocol"
ROWS = {
    "vae-standard": vae(published=(84.45, 0.12, RERUN), band=0.35),
    "vae-vamp": vae("vamp", published=(82.43, 0.06, RERUN), band=0.35),
    "vae-mixture": vae("mixture"),
    "vae-flow": vae("flow"),
    "vae-full": vae(posterior="full"),
    "vae-householder": vae(posterior="householder"),
    "vae-planar": vae(posterior="planar"),
    "vae-sylvester": vae(posterior="sylvester"),
    "vae-iaf": vae(posterior="iaf"),
    "vae-spline": vae(posterior="spline"),
    "iwae-5": vae(**weighted(iwae, 5)),
    "iwae-50": vae(**weighted(iwae, 50)),
    "vae-flow-iaf": vae("flow", "iaf"),
    "vae-flow-sylvester": vae("flow", "sylvester"),
    "vae-vamp-iaf": vae("vamp", "iaf"),
    "vae-flow-iaf-dreg": vae("flow", "iaf", **weighted(dreg, 5)),
    "hvae-standard": hvae("standard", False, published=(82.39, 0.11, RERUN)),
    "hvae-vamp": hvae("vamp", False, published=(81.56, 0.09, RERUN)),
    "convhvae-standard": hvae("standard", True, published=(80.52, 0.28, RERUN)),
    "convhvae-vamp": hvae("vamp", True, published=(79.67, 0.09, RERUN)),
    "pixelcnn": Row(
        "gated PixelCNN", protocol.pixelcnn, "–", "–", "likelihood", lambda s: elbo(),
        published=(81.50, 0.0, LIBRARY), num_samples=1,
    ),
    "pixelvae": Row("PixelVAE", partial(protocol.pixelvae, prior=PRIORS["standard"])),
    "frey-standard": vae(data="freyfaces"),
    "frey-vamp": vae("vamp", data="freyfaces"),
}  # fmt: skip


class Place(NamedTuple):
    """Where a run keeps what it has: its checkpoints, its result, and the log-likelihood of each datum."""

    out: Path
    results: Path
    name: str
    seed: int

    @property
    def folder(self) -> Path:
        return self.out / f"{self.name}-{self.seed}"

    @property
    def result(self) -> Path:
        return self.results / f"{self.name}-{self.seed}.json"

    @property
    def values(self) -> Path:
        return self.results / "values" / f"{self.name}-{self.seed}.npy"


def built(row: Row, seed: int, settings: Settings, quick: bool) -> tuple[Any, Any]:
    """The data and the pair, with the parameters that this seed starts from, on a GPU if there is one."""
    x = protocol.load(row.data, quick)
    torch.manual_seed(seed)
    return x, row.build(x, settings).to(usable_device("auto"))


def run(row: Row, place: Place, settings: Settings, quick: bool, epochs: int | None = None) -> dict[str, Any]:
    """Trains a row, from where it was, to the protocol's end or for so many epochs, and evaluates it."""
    x, pair = built(row, place.seed, settings, quick)
    history = fit(
        pair,
        x.train,
        loss=row.loss(settings),
        epochs=epochs or settings.epochs,
        batch_size=settings.batch_size,
        validation=x.validation,
        patience=settings.patience,
        optimizer=protocol.optimizer(settings),
        compile=not quick,
        seed=place.seed,
        checkpoint=place.folder,
    )
    return evaluate(row, place, settings, x, pair, vars(history), history.stopped_early)


def run_so_far(row: Row, place: Place, settings: Settings, quick: bool) -> dict[str, Any]:
    """Evaluates the best parameters that the checkpoint of a row holds."""
    state = Checkpoints(place.folder).read()
    if state is None:
        raise FileNotFoundError(
            f"{place.folder} holds no checkpoint of {place.name}: train it first, without --evaluate."
        )
    x, pair = built(row, place.seed, settings, quick)
    pair.load_state_dict((state["place"]["best_state"] or state["pair"])[0])
    return evaluate(row, place, settings, x, pair, state["place"]["history"], state["place"]["ended"])


def evaluate(
    row: Row, place: Place, settings: Settings, x: Any, pair: Any, history: dict[str, Any], ended: bool
) -> dict[str, Any]:
    """The likelihood of the test data and what the latents do, written to the row's file; ended: by early stopping."""
    began = time.perf_counter()
    estimate = log_likelihood(pair, x.test, num_samples=row.num_samples or settings.num_samples)
    report = latent_report(pair, x.test) if row.num_samples is None else None
    epochs, best = len(history["loss"]), history["best_epoch"]
    result = {
        "row": place.name,
        "model": row.model,
        "prior": row.prior,
        "posterior": row.posterior,
        "objective": row.objective,
        "data": f"{x.name}, binarization {x.binarization}, split {x.split}",
        "seed": place.seed,
        **estimate.summary(),
        "kl": report and report.kl,
        "active_units": report and report.active_units,
        "epochs": epochs,
        "best_epoch": best,
        "converged": ended or epochs >= settings.epochs,
        "validation": None if best is None else history["validation"][best],
        "compiled": history["compiled"],
        "seconds": round(sum(history["seconds"])),
        "seconds_of_evaluation": round(time.perf_counter() - began),
        "num_parameters": sum(p.numel() for p in pair.parameters()),
        "settings": settings._asdict(),
        "test": estimate.data,
        "device": _device(pair),
        "machine": machine(),
        "versions": VERSIONS,
    }
    if x.num_levels and x.num_levels > 2:
        result["bits_per_dim"] = bits_per_dim(estimate.values, x.event_shape).mean().item()
    place.results.mkdir(parents=True, exist_ok=True)
    with alone_in(place.results):
        write_values(place.values, estimate.values.float().numpy())
        write(place.result, result)
    return result


def _device(pair: Any) -> str:
    device = next(pair.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def pair_up(results: Path) -> None:
    """Notes in each run's file how far it is from the others on the same test data, datum by datum."""
    with alone_in(results):
        runs = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
        values = {stem: np.load(path) for stem in runs if (path := results / "values" / f"{stem}.npy").exists()}
        for stem, run in runs.items():
            alike = [other for other in runs if other != stem and runs[other]["test"] == run["test"]]
            pairs = {other: _pair(runs, values, stem, other) for other in alike}
            paired = {other: pair for other, pair in pairs.items() if pair}
            if paired != run.get("paired"):
                write(results / f"{stem}.json", run | {"paired": paired})


def _pair(runs: dict[str, Any], values: dict[str, Any], stem: str, other: str) -> dict[str, float] | None:
    """A paired difference: from the values, or the one that the file has, unless a run was evaluated again since."""
    found = runs[stem].get("paired", {}).get(other)
    if stem in values and other in values:
        difference = values[stem].astype(np.float64) - values[other]
        error = difference.std(ddof=1) / sqrt(len(difference))
        found = {"difference": difference.mean(), "standard_error": error}
    means = runs[stem]["log_likelihood"] - runs[other]["log_likelihood"]
    return found if found and abs(found["difference"] - means) < 1e-3 else None


def state_of(place: Place) -> str:
    """How far a row is, in words."""
    if place.result.exists():
        result = json.loads(place.result.read_text())
        said = f"{-result['log_likelihood']:.2f} nats after {result['epochs']} epochs"
        return said if result["converged"] else f"{said}, not converged"
    state = Checkpoints(place.folder).read() if place.folder.exists() else None
    if state is None:
        return NOT_RUN
    validation = state["place"]["history"]["validation"]
    return f"in training: {len(validation)} epochs, validation {validation[-1]:.2f}" if validation else "in training"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="names with commas between them (--list has them), or all")
    parser.add_argument("--list", action="store_true", help="the rows, and how far each is")
    parser.add_argument("--evaluate", action="store_true", help="evaluate checkpoints as they are")
    parser.add_argument("--table", action="store_true", help="only rebuild the table")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="checkpoints")
    parser.add_argument("--results", type=Path, help="a folder for the JSON files; README.md is then left alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="stop after so many, before the protocol's end")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small networks on scikit-learn's digits, for tests")
    args = parser.parse_args()
    results = args.results or (args.out / "results" if args.quick else RESULTS)
    settings = QUICK if args.quick else Settings()
    names = list(ROWS) if args.rows == "all" or args.list else [name for name in args.rows.split(",") if name]
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no row is called {', '.join(unknown)}: there are {', '.join(ROWS)}.")
    if not (names or args.table):
        parser.error("say which --rows to run, or --list them, or --table.")
    torch.set_num_threads(args.threads)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)  # a line an epoch, by ppgen
    for name in names:
        place = Place(args.out, results, name, args.seed)
        if not args.list:
            go = run_so_far if args.evaluate else partial(run, epochs=args.epochs)
            go(ROWS[name], place, settings, args.quick)
        print(f"{name}: {state_of(place)}", flush=True)
    if not args.list:
        results.mkdir(parents=True, exist_ok=True)
        pair_up(results)
        text = table(ROWS, results)
        print(text)
        if results == RESULTS:
            insert(text, README, MARKS)


if __name__ == "__main__":
    main()
