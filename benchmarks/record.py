"""JSON files of what was measured, where, and with what: cells are written one by one, and none is measured twice."""

import fcntl
import io
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ppgen
from ppgen.files import write_bytes

# What the scripts themselves write: it does not make the code another.
WRITTEN = (":(top,exclude)benchmarks/results", ":(top,exclude)README.md")


class Record:
    """The cells in a file, or in memory alone if there is no file. Several processes may add to one file."""

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self._cells: list[dict[str, Any]] = []

    @property
    def cells(self) -> list[dict[str, Any]]:
        """All that has been measured."""
        if self.path and self.path.exists():
            self._cells = json.loads(self.path.read_text())["cells"]
        return self._cells

    def has(self, **settings: Any) -> bool:
        """Whether a cell of these settings has been measured."""
        return any(settings.items() <= cell.items() for cell in self.cells)

    def add(self, **cell: Any) -> None:
        """One more cell, with the versions and the kind of machine that it was measured on."""
        cell |= {"machine": machine(), "versions": VERSIONS}
        if not self.path:
            self._cells = [*self._cells, cell]
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with alone_in(self.path.parent):  # or a cell that another process adds meanwhile would be lost
            write(self.path, self.about | {"cells": [*self.cells, cell]})


def write(path: Path, content: Any) -> None:
    """A JSON file and its folder, the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_values(path: Path, values: np.ndarray) -> None:
    """An array of NumPy's and its folder, the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, values)
    write_bytes(path, content.getvalue())


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other process is in here for this folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which gives the lock back


def machine() -> str:
    return f"{processor()}, {torch.get_num_threads()} threads on {os.cpu_count()} shared cores"


def processor() -> str:
    """The processor's name where the system tells it, and its kind where not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({platform.machine()})"


def commit(folder: Path) -> str:
    """The commit of a clone, "-dirty" if its code has been changed since; the installed version outside of one."""
    with suppress(OSError, subprocess.CalledProcessError):
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", *WRITTEN)
        return _git(folder, "rev-parse", "--short=10", "HEAD") + ("-dirty" if changed else "")
    return version("ppgen")


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", "--no-optional-locks", *command], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


# Of the code that runs: what is committed or changed hours later, when a result is written, is other code.
VERSIONS = {
    "python": platform.python_version(),
    **{name: version(name) for name in ("torch", "pyro-ppl", "zuko", "numpy", "scikit-learn")},
    "ppgen": commit(Path(ppgen.__file__).parent),
}
