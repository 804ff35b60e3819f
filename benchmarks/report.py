"""The tables of README.md from the files of results, so that no number is typed by hand.

    python benchmarks/report.py                        writes them into README.md, between its two marks
    python benchmarks/report.py --results runs/bench   prints them for results that lie elsewhere

A goal whose file or cell is missing is a row that says "not measured".
"""

from __future__ import annotations

import argparse
import json
import operator
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from reproduced import insert

HERE = Path(__file__).parent
MARKS = "<!-- results -->", "<!-- end of results -->"
NOT_MEASURED = "not measured"
AT_LEAST, AT_MOST = ("≥", operator.ge), ("≤", operator.le)


class Results:
    """The cells of each file, the latest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machines: set[str] = set()

    def file(self, name: str) -> Any:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else {"cells": []}

    def cell(self, name: str, **wanted: Any) -> Any:
        """The latest cell with these settings; a LookupError if there is none."""
        found = self.file(name)
        cells = found if isinstance(found, list) else found["cells"]
        for cell in reversed(cells):
            if wanted.items() <= cell.items():
                self._note({} if isinstance(found, list) else found, cell)
                return cell
        raise LookupError(f"{name}: no cell {wanted}")

    def _note(self, *about: dict[str, Any]) -> None:
        said = {key: value for each in about for key, value in each.items() if key in ("machine", "versions")}
        if "versions" in said:
            versions = ", ".join(f"{package} {version}" for package, version in said["versions"].items())
            self.machines.add(f"{said['machine']}; {versions}")


def training(network: str, threads: int, device: str = "cpu") -> Callable[[Results], Any]:
    return lambda r: r.cell("training", network=network, device=device, threads=threads)


def em(r: Results) -> dict[str, float]:
    cells = r.file("em")["cells"]
    worst = min(cells, key=lambda cell: cell["ratio"], default={"model": None})
    return r.cell("em", model=worst["model"])


def pixelcnn(network: str, images: int, r: Results) -> float:
    ratio: float = r.cell("pixelcnn_sampling", network=network, images=images, size=28)["ratio"]
    return ratio


reference_1, reference_4 = training("reference", 1), training("reference", 4)
cuda = training("reference", 1, "cuda")
# (what, how many times or what share, the goal, where it stands)
GOALS: list[tuple[str, tuple[str, Callable[[Any, Any], bool]], float, Callable[[Results], Any]]] = [
    ("training step / hand-written loop, 4 threads", AT_MOST, 0.80, lambda r: reference_4(r)["to_hand"]["ours"]),
    ("training step / hand-written loop, 1 thread", AT_MOST, 0.96, lambda r: reference_1(r)["to_hand"]["ours"]),
    ("`pyro.infer.SVI` / training step, 4 threads", AT_LEAST, 2.2, lambda r: reference_4(r)["to_pyro"]),
    ("`pyro.infer.SVI` / training step, 1 thread", AT_LEAST, 2.2, lambda r: reference_1(r)["to_pyro"]),
    ("the same, tiny network, 1 thread", AT_LEAST, 4, lambda r: training("tiny", 1)(r)["to_pyro"]),
    ("first compiled step ready, seconds", AT_MOST, 10, lambda r: reference_1(r)["first_step_seconds"]),
    ("`pyro.infer.SVI` / training step, one GPU", AT_LEAST, 10, lambda r: cuda(r)["to_pyro"]),
    ("training step / hand-written CUDA graph, one GPU", AT_MOST, 1.3, lambda r: cuda(r)["to_graphed"]),
    (
        "share of the matrix product's peak, log-likelihood, 1 thread",
        AT_LEAST,
        0.65,
        lambda r: r.cell("likelihood", device="cpu", threads=1)["share_of_peak"]["compiled"],
    ),
    (
        "pythae's `get_nll` / `log_likelihood`, 1 thread",
        AT_LEAST,
        20,
        lambda r: r.cell("likelihood", device="cpu", threads=1)["times_faster_than"]["pythae"],
    ),
    ("scikit-learn / EM, the least of five models", AT_LEAST, 1, lambda r: em(r)["ratio"]),
    (
        "VampPrior's density against the direct form, largest error in nats",
        AT_MOST,
        1e-3,
        lambda r: max(r.cell("vamp_prior", num_components=500)["largest_error_nats"].values()),
    ),
]
for network, images in (("GatedPixelCNN", 1), ("GatedPixelCNN", 16), ("PixelCNN", 1), ("PixelCNN", 16)):
    several = f"{images} images" if images > 1 else "one image"
    what = f"{network}'s whole network per pixel / by columns, {several} of 28 × 28"
    GOALS.append((what, AT_LEAST, 30, partial(pixelcnn, network, images)))
# Without a goal in numbers.
OTHERS: list[tuple[str, Callable[[Results], Any]]] = [
    ("torch's direct form / VampPrior's density, K = 500", lambda r: r.cell("vamp_prior", num_components=500)["ratio"]),
]
PARTS = ("1 thread", reference_1), ("4 threads", reference_4)


def value_of(found: Any) -> tuple[float, str]:
    """A number, and how it is written: with its quartiles where it has them."""
    if isinstance(found, dict):
        return found["ratio"], f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
    return float(found), f"{found:.1e}" if 0 < found < 1e-2 else f"{found:.2f}".rstrip("0").rstrip(".")


def row(results: Results, look: Callable[[Results], Any]) -> tuple[float | None, str]:
    try:
        return value_of(look(results))
    except (LookupError, TypeError):
        return None, NOT_MEASURED


def goals(results: Results) -> list[str]:
    lines = ["| what | goal | result (quartiles) | met |", "|---|---|---|---|"]
    for what, (sign, holds), goal, look in GOALS:
        number, text = row(results, look)
        met = "–" if number is None else "yes" if holds(number, goal) else "no"
        lines.append(f"| {what} | {sign} {goal:g} | {text} | {met} |")
    lines += [f"| {what} | | {row(results, look)[1]} | |" for what, look in OTHERS]
    return lines


def sides(results: Results) -> list[str]:
    """All sides of the training step, and the pieces that ours consists of."""
    cells = {}
    for name, look in PARTS:
        try:
            cells[name] = {side: r["ratio"] for side, r in look(results)["to_hand"].items()}
        except LookupError:
            continue
    if not cells:
        return [f"Training: {NOT_MEASURED}."]
    lines = ["| time / hand-written loop's | " + " | ".join(cells) + " |", "|---|" + "---|" * len(cells)]
    for side in ("hand", "ours", "ours, eager", "pyro.infer.SVI", "pythae"):
        lines.append(f"| {side} | " + " | ".join(_ratio(c.get(side)) for c in cells.values()) + " |")
    pieces: dict[str, Callable[[dict[str, float]], float]] = {
        "matrix products": lambda c: c["products"],
        "+ elementwise operations and reductions": lambda c: c["part: loss and gradients"] - c["products"],
        "(of these noise)": lambda c: c["part: noise"],
        "+ optimiser": lambda c: c["part: optimiser"],
        "+ Python, and what caches lose between the pieces": lambda c: (
            c["ours"] - c["part: loss and gradients"] - c["part: optimiser"]
        ),
        "= ours": lambda c: c["ours"],
    }
    lines += ["", "| of which | " + " | ".join(cells) + " |", "|---|" + "---|" * len(cells)]
    lines += [
        f"| {piece} | " + " | ".join(_ratio(of(c)) for c in cells.values()) + " |" for piece, of in pieces.items()
    ]
    return lines


def _ratio(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"


def growth(results: Results) -> list[str]:
    lines = ["| cost, as one setting grows | exponent |", "|---|---|"]
    lines += [f"| {c['panel']}: {c['curve']} | {c['exponent']:.2f} |" for c in results.file("growth")["cells"]]
    return lines


def samples(results: Results) -> list[str]:
    """What a classifier says of samples of MNIST, and of MNIST itself."""
    cells = results.file("mnist_samples")["cells"]
    if not cells:
        return [f"Samples of MNIST: {NOT_MEASURED}."]
    lines = ["| samples of MNIST | sure above 0.9 | rarest class | Fréchet | epochs | minutes of one core |"]
    lines.append("|---|---|---|---|---|---|")
    for c in cells:
        results._note(c)
        what = c["model"] if c["model"] != "test data" else f"test data, {BINARIZED[c['binarization']]}"
        epochs = " + ".join(str(n) for name, n in c.get("training", {}).items() if "epochs" in name)
        shares = f"| {what} | {c['confident']:.1%} | {c['smallest_class_share']:.1%}"
        lines.append(f"{shares} | {c.get('Fréchet_distance', '')} | {epochs} | {c.get('minutes_of_processor', '')} |")
    return lines


def precisions(results: Results) -> list[str]:
    """What lower precision in training does to the test data's likelihood: of each setting the latest."""
    cells = {(c["precision"], c["device"], c["data"], c["epochs"]): c for c in results.file("precision")["cells"]}
    lines = [
        "| matrix products in training | log p(x) − float32's, nats | seeds | float32's deviation | time / float32's |"
    ]
    lines.append("|---|---|---|---|---|")
    for (precision, device, name, epochs), c in cells.items():
        if precision == "float32":
            continue
        results._note(c)
        gap = f"{c['difference_nats']:+.2f} ± {c['standard_error']:.2f}"
        times = f"{c['time_ratio'][0]:.2f} to {c['time_ratio'][-1]:.2f}"
        what = f"{precision}, {name}, {epochs} epochs, {device}"
        lines.append(f"| {what} | {gap} | {len(c['seeds'])} | {c['deviation_of_float32']:.2f} | {times} |")
    if not any(device == "cuda" for _, device, _, _ in cells):
        lines.append(f"| tf32 and bf16, one GPU | {NOT_MEASURED} | | | |")
    return lines


BINARIZED = {"none": "grey levels", "dynamic": "binarised"}


def report(folder: Path) -> str:
    results = Results(folder)
    tables = [goals(results), sides(results), growth(results), precisions(results), samples(results)]
    machines = ["Measured on:", "", *(f"- {machine}" for machine in sorted(results.machines))]
    return "\n\n".join("\n".join(lines) for lines in (*tables, machines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="a folder of results to print, instead of writing README.md")
    args = parser.parse_args()
    text = report(args.results or HERE / "results")
    if args.results:
        print(text)
        return
    insert(text, HERE / "README.md", MARKS)


if __name__ == "__main__":
    main()
