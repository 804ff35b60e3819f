"""The table of reproduce.py from the files of its runs, so that no number in it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MARKS = "<!-- reproduced -->", "<!-- end of reproduced -->"
NOT_RUN = "not run"


def table(rows: Mapping[str, Any], results: Path) -> str:
    """All rows in Markdown: binary images in nats, grey ones in bits per dimension, then paired differences."""
    runs = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    nats = {name: row for name, row in rows.items() if row.data == "mnist"}
    bits = {name: row for name, row in rows.items() if row.data != "mnist"}
    parts = [
        _table(nats, runs, "−log p(x), nats", _nats),
        _table(bits, runs, "bits per dimension", _bits),
        "\n".join(_beaten(nats, runs)),
        "\n".join(_footnotes([run for run in runs.values() if run["row"] in rows])),
    ]
    return "\n\n".join(part for part in parts if part)


def insert(text: str, readme: Path, marks: tuple[str, str]) -> None:
    """Writes a text between the two marks of a file.

    Raises:
        ValueError: the file has no such marks.
    """
    begin, end = marks
    content = readme.read_text()
    if not (0 <= content.find(begin) < content.find(end)):
        raise ValueError(f"{readme} has no place for the text: it must hold {begin} and, behind it, {end}.")
    before, rest = content.split(begin, 1)
    readme.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def _table(rows: Mapping[str, Any], runs: Mapping[str, Any], unit: str, value: Any) -> str:
    head = ["model", "prior", "posterior", "objective", "published", unit, "errors", "reliable"]
    head += ["−ELBO", "KL", "active", "epochs", ""]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        published = "–" if row.published is None else _published(row)
        begin = [row.model, row.prior, row.posterior, row.objective, published]
        own = [run for run in runs.values() if run["row"] == name]
        for run in own:
            lines.append("| " + " | ".join([*begin, *value(run), *_latent(run), _verdict(row, run)]) + " |")
        if not own:
            lines.append("| " + " | ".join([*begin, NOT_RUN, *[""] * 7]) + " |")
    return "\n".join(lines)


def _published(row: Any) -> str:
    mean, error, _ = row.published
    return f"{mean:.2f} ± {error:.2f}" if error else f"{mean:.2f}"


def _nats(run: Mapping[str, Any]) -> list[str]:
    bound = "≤ " if run["is_lower_bound"] else ""
    errors = f"{run['mc_standard_error']:.3f}, {run['data_standard_error']:.2f}"
    return [f"{bound}{-run['log_likelihood']:.2f}", errors, f"{run['reliable_fraction']:.1%}", f"{-run['elbo']:.2f}"]


def _bits(run: Mapping[str, Any]) -> list[str]:
    scale = run["bits_per_dim"] / -run["log_likelihood"]  # bits per dimension of a nat
    bound = "≤ " if run["is_lower_bound"] else ""
    errors = f"{scale * run['mc_standard_error']:.4f}, {scale * run['data_standard_error']:.3f}"
    reliable = f"{run['reliable_fraction']:.1%}"
    return [f"{bound}{run['bits_per_dim']:.3f}", errors, reliable, f"{-scale * run['elbo']:.3f}"]


def _latent(run: Mapping[str, Any]) -> list[str]:
    kl = "–" if run["kl"] is None else " + ".join(f"{v:.1f}" for v in run["kl"].values())
    active = "–" if run["active_units"] is None else " + ".join(str(v) for v in run["active_units"].values())
    return [kl, active, f"{run['epochs']}"]


def _verdict(row: Any, run: Mapping[str, Any]) -> str:
    if not run["converged"]:
        return f"not converged: {run['epochs']} epochs"
    if row.published is None or not run["data"].startswith(row.data):
        return ""
    away = -run["log_likelihood"] - row.published[0]
    if row.band is None:
        return f"{away:+.2f}"
    return f"{away:+.2f}, {'within' if abs(away) <= row.band else 'OUTSIDE'} ± {row.band:.2f}"


def _beaten(rows: Mapping[str, Any], runs: Mapping[str, Any]) -> Iterable[str]:
    """The best run of one layer: how far from the best published row, and from our runs of those, datum by datum."""
    layer = {name: row for name, row in rows.items() if row.model == "VAE, one layer"}
    own = {stem: run for stem, run in runs.items() if run["row"] in layer}
    best = max(own, key=lambda stem: own[stem]["log_likelihood"], default=None)
    published = [row for row in layer.values() if row.published]
    if best is None or not published:
        return
    run, theirs = own[best], min(published, key=lambda row: row.published[0])
    ours = layer[run["row"]]
    away = -run["log_likelihood"] - theirs.published[0]
    yield (
        f"- Best of one layer so far: `{best}` (prior {ours.prior}, posterior {ours.posterior}, {ours.objective}), "
        f"{away:+.2f} nats from the best published of one layer ({theirs.prior}, {theirs.published[0]:.2f})."
    )
    for stem in own:
        found = run.get("paired", {}).get(stem) if best != stem else None
        if found and layer[own[stem]["row"]].published:
            nats = f"{found['difference']:.2f} ± {found['standard_error']:.2f} nats"
            yield f"- `{best}` is better than `{stem}` by {nats}, paired image by image."


def _footnotes(runs: list[Any]) -> Iterable[str]:
    """Where the runs were made, and how long they took."""
    places: dict[str, list[str]] = {}
    for run in runs:
        place = run["machine"] if run.get("device", "cpu") == "cpu" else f"{run['device']} beside {run['machine']}"
        places.setdefault(place, []).append(f"`{run['row']}-{run['seed']}` {run['seconds'] / 3600:.1f} h")
    for place, hours in places.items():
        yield f"- Evaluated on {place}; hours of training: {', '.join(hours)}."
    for data in sorted({run["data"] for run in runs}):
        yield f"- Data: {data}."
