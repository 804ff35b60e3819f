"""The table of reproduce.py from the files of its runs, so that no number in it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ppgen.files import write_bytes

MARKS = "<!-- reproduced -->", "<!-- end of reproduced -->"
NOT_RUN = "not run"


def table(rows: Mapping[str, Any], results: Path) -> str:
    """All rows in Markdown: binary images in nats, grey ones in bits per dimension, then paired differences."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    runs = {stem: run for stem, run in found.items() if run["row"] in rows}
    nats = {name: row for name, row in rows.items() if row.data == "mnist"}
    bits = {name: row for name, row in rows.items() if row.data != "mnist"}
    parts = [
        _table(nats, runs, "−log p(x), nats", _nats),
        _table(bits, runs, "bits per dimension", _bits),
        "\n".join(_beaten(nats, runs)),
        "\n".join(_footnotes(rows, runs)),
    ]
    return "\n\n".join(part for part in parts if part)


def insert(text: str, readme: Path, marks: tuple[str, str]) -> None:
    """Writes a text between the two marks of a file.

    Raises:
        ValueError: the file has no such marks.
    """
    begin, end = marks
    content = readme.read_text(encoding="utf-8")
    if not (0 <= content.find(begin) < content.find(end)):
        raise ValueError(f"{readme} has no place for the text: it must hold {begin} and, behind it, {end}.")
    before, rest = content.split(begin, 1)
    write_bytes(readme, f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}".encode())


def _table(rows: Mapping[str, Any], runs: Mapping[str, Any], unit: str, value: Any) -> str:
    head = ["model", "prior", "posterior", "objective", "published", unit, "errors", "reliable"]
    head += ["−ELBO", "KL, nats", "active", "epochs", "against the published"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        published = "–" if row.published is None else _published(row)
        begin = [row.model, row.prior, row.posterior, row.objective, published]
        own = [run for run in runs.values() if run["row"] == name]
        for run in own:
            begin[0] = row.model if len(own) == 1 else f"{row.model}, seed {run['seed']}"
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
    kl, active = run["kl"] or {}, run["active_units"] or {}
    several = len(kl) > 1
    shown = [
        ", ".join(f"{site} {value}" if several else value for site, value in of.items()) or "–"
        for of in ({site: f"{v:.1f}" for site, v in kl.items()}, {site: str(v) for site, v in active.items()})
    ]
    return [*shown, f"{run['epochs']}"]


def _verdict(row: Any, run: Mapping[str, Any]) -> str:
    if not run["converged"]:
        return f"not converged: {run['epochs']} epochs"
    if row.published is None or not run["data"].startswith(row.data):
        return ""
    away = round(-run["log_likelihood"] - row.published[0], 2)  # as it is shown
    if row.band is None:
        return f"{away:+.2f}"
    return f"{away:+.2f}, {'within' if abs(away) <= row.band else 'OUTSIDE'} ± {row.band:.2f}"


def _beaten(rows: Mapping[str, Any], runs: Mapping[str, Any]) -> Iterable[str]:
    """The best run of one layer: how far from the best published row, and from our runs of those, datum by datum."""
    layer = {name: row for name, row in rows.items() if row.model == "VAE, one layer"}
    own = {
        stem: run
        for stem, run in runs.items()
        if run["row"] in layer and run["converged"] and run["data"].startswith(layer[run["row"]].data)
    }
    best = max(own, key=lambda stem: own[stem]["log_likelihood"], default=None)
    published = [row for row in layer.values() if row.published]
    if best is None or not published:
        return
    run, theirs = own[best], min(published, key=lambda row: row.published[0])
    ours = layer[run["row"]]
    away = -run["log_likelihood"] - theirs.published[0]
    yield (
        f"- The best of one layer that was run to its end, chosen by this very number: `{best}` (prior {ours.prior}, "
        f"posterior {ours.posterior}, {ours.objective}), {abs(away):.2f} nats {'better' if away < 0 else 'worse'} than "
        f"the best published of one layer ({theirs.prior}, {theirs.published[0]:.2f})."
    )
    for stem in own:
        if stem == best or not layer[own[stem]["row"]].published:
            continue
        found = run.get("paired", {}).get(stem)
        if found is None:
            yield f"- `{best}` and `{stem}` cannot be paired: the values of one of them are not here."
            continue
        nats = f"{abs(found['difference']):.2f} ± {found['standard_error']:.2f} nats"
        which = "better" if found["difference"] > 0 else "worse"
        yield f"- `{best}` is {which} than `{stem}` by {nats}, paired image by image."
    if run["is_lower_bound"]:
        yield (
            "- These differences are of bounds, the looser the fewer weights can be trusted; ± is the standard error "
            "over the test images, for one run of each."
        )


def _footnotes(rows: Mapping[str, Any], runs: Mapping[str, Any]) -> Iterable[str]:
    """Where the published numbers were read, where ours were made, how long that took, and what was odd about it."""
    sources: dict[str, list[str]] = {}
    for name, row in rows.items():
        if row.published:
            sources.setdefault(row.published[2], []).append(f"`{name}`")
    for source, names in sources.items():
        yield f"- Published, {', '.join(names)}: {source}."
    places: dict[str, list[str]] = {}
    for stem, run in runs.items():
        place = run["machine"] if run.get("device", "cpu") == "cpu" else f"{run['device']} beside {run['machine']}"
        places.setdefault(place, []).append(f"`{stem}` {run['seconds'] / 3600:.1f} h")
    for place, hours in places.items():
        yield f"- Evaluated on {place}; hours of training: {', '.join(hours)}."
    for data in sorted({run["data"] for run in runs.values()}):
        yield f"- Data: {data}."
    for stem, run in runs.items():
        if note := run.get("note"):
            yield f"- `{stem}`: {note}."
