"""What matrix products of lower precision in training do to the result, and to the time that it takes.

    python benchmarks/precision.py                  MNIST, dynamically binarised
    python benchmarks/precision.py --device cuda    where tf32 is another choice
    python benchmarks/precision.py --data digits --epochs 2 --seeds 2

One VAE (784-300-300-40 on MNIST) is trained from each seed once in each precision: the same first parameters, the same
order of batches. All are evaluated in float32, on the same test data with the same noise, and differences are taken
datum by datum: in nats, below zero where the lower precision is worse. How far float32's own runs lie apart from seed
to seed stands beside them. The time is that of the median epoch over float32's from the same seed.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from record import Record

from ppgen import data, decoders, models, nn, posteriors, priors
from ppgen.compare import compare
from ppgen.inference import fit

RESULTS = Path(__file__).parent / "results" / "precision.json"
PRECISIONS = {"cpu": ("float32", "bf16"), "cuda": ("float32", "tf32", "bf16")}


def vae(event_shape: tuple[int, ...]) -> models.VAE:
    return models.VAE(
        priors.StandardNormal(40),
        decoders.Bernoulli(nn.MLP(40, 300, 300, event_shape)),
        posteriors.DiagNormal(nn.MLP(event_shape, 300, 300, 80)),
    )


def trained(loaded: Any, precision: str, seed: int, args: argparse.Namespace) -> tuple[models.VAE, float]:
    """The pair after so many epochs, and the seconds of the median one."""
    torch.manual_seed(seed)
    pair = vae(loaded.event_shape).to(args.device)
    history = fit(
        pair, loaded.train, epochs=args.epochs, batch_size=100, seed=seed, compile=True, precision=precision,
        progress=False,
    )  # fmt: skip
    return pair, statistics.median(history.seconds[1:])  # the first one compiles


def measure(loaded: Any, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A seed's cells: each precision against float32."""
    runs = {name: trained(loaded, name, seed, args) for name in PRECISIONS[args.device]}
    found = compare({name: pair for name, (pair, _) in runs.items()}, loaded.test[: args.data_count], num_samples=500)
    cells = []
    for name, (_, seconds) in runs.items():
        gap = found.difference(name, "float32")
        cells.append(
            {
                "precision": name,
                "log_likelihood": round(found.estimates[name].mean, 3),
                "difference_nats": round(gap.mean, 3),
                "standard_error": round(gap.standard_error, 3),
                "time_ratio": round(seconds / runs["float32"][1], 3),
            }
        )
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", help="a data set's name")
    parser.add_argument("--data-count", type=int, default=2000, help="test data that are evaluated")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=tuple(PRECISIONS), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.epochs < 2:
        raise SystemExit(f"--epochs {args.epochs}: at least 2, since the first one compiles and is not timed.")
    if args.seeds < 2:
        raise SystemExit(f"--seeds {args.seeds}: at least 2, or nothing says how far two runs lie apart.")
    if args.device == "cuda" and not torch.cuda.is_available():
        print("cuda: not measured (torch sees no GPU)")
        return
    torch.set_num_threads(args.threads)
    about = (
        "training with matrix products of lower precision: the test data's log-likelihood against float32's, in nats"
    )
    record = Record(args.out, {"what": about})
    settings = {"data": args.data, "device": args.device, "epochs": args.epochs, "data_count": args.data_count}
    loaded = data.load(args.data, binarize="dynamic")
    own: dict[str, list[dict[str, Any]]] = {name: [] for name in PRECISIONS[args.device]}
    for seed in range(args.seeds):
        for cell in measure(loaded, seed, args):
            own[cell["precision"]].append(cell)
            gap = f"{cell['difference_nats']:+.3f} ± {cell['standard_error']:.3f} nats"
            found = f"{cell['log_likelihood']:.2f} ({gap}), {cell['time_ratio']:.2f} of the time"
            print(f"seed {seed}, {cell['precision']}: {found}", flush=True)
    spread = round(statistics.stdev(cell["log_likelihood"] for cell in own["float32"]), 3)
    for name, cells in own.items():
        gaps = [cell["difference_nats"] for cell in cells]
        record.add(
            **settings,
            precision=name,
            threads=torch.get_num_threads(),
            seeds=cells,
            difference_nats=round(statistics.mean(gaps), 3),
            standard_error=round(statistics.stdev(gaps) / len(gaps) ** 0.5, 3),
            deviation_of_float32=spread,
            time_ratio=sorted(cell["time_ratio"] for cell in cells),
        )


if __name__ == "__main__":
    main()
