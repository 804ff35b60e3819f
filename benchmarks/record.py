"""A JSON file of measured cells: each is written when it is finished, and none is measured twice."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


class Record:
    """The cells in a file, or in memory alone if there is no file."""

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self.cells: list[dict[str, Any]] = json.loads(path.read_text())["cells"] if path and path.exists() else []

    def has(self, **settings: Any) -> bool:
        """Whether a cell of these settings has been measured."""
        return any(settings.items() <= cell.items() for cell in self.cells)

    def add(self, **cell: Any) -> None:
        """One more cell, with the versions and the kind of machine that it was measured on."""
        self.cells.append(cell | {"machine": machine(), "versions": versions()})
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.about | {"cells": self.cells}, indent=1) + "\n")
            partial.replace(self.path)


def machine() -> str:
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads on {os.cpu_count()} shared cores"


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "pyro-ppl", "scikit-learn")}
    return {"python": platform.python_version(), **packages}
