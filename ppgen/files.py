"""Files that are whole or not there, and known again by their digests."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import ppgen

__all__ = [
    "MANIFEST",
    "check_manifest",
    "json_bytes",
    "json_text",
    "parse_json",
    "read_json",
    "versions",
    "write_bytes",
    "write_csv",
    "write_json",
    "write_manifest",
]

MANIFEST = "manifest.json"


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: to a temporary name, synced, then renamed."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The content of a JSON file."""
    return (json_text(value) + "\n").encode()


def json_text(value: Any) -> str:
    """A value as JSON, which has no NaN and no infinity: they become null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> None:
    """Writes rows as a table, whole or not at all; a value that has no column is left out."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is none; the message names the file.
    """
    return parse_json(path.read_bytes(), path)


def parse_json(content: bytes, path: Path) -> Any:
    """What is written in the bytes of a JSON file.

    Raises:
        ValueError: they are none; the message names the file.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # or nested so deep that reading it would end the process
        raise ValueError(f"{path} is not a JSON file: {error}.") from error


def versions() -> dict[str, Any]:
    """What a result depends on beside its seed."""
    return {
        "ppgen": ppgen.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def write_manifest(folder: Path, files: Mapping[str, bytes], schema: int) -> None:
    """Notes the SHA-256 of a folder's files, its schema and the versions, last of all that is written there."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_json(folder / MANIFEST, {"schema": schema, **versions(), "files": digests})


def check_manifest(folder: Path, names: Sequence[str], schema: int) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of a folder and its manifest, once each is known to be the one that was written.

    Raises:
        ValueError: a file is missing, damaged, a link, or of another schema; the message names it.
    """
    manifest = read_json(_regular(folder, MANIFEST))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{folder / MANIFEST} is not the manifest of a folder of ppgen.")
    if manifest.get("schema") != schema:
        raise ValueError(
            f"{folder / MANIFEST} has schema {manifest.get('schema')!r}; this version of ppgen reads {schema}: take "
            f"the version that wrote it ({manifest.get('ppgen')})."
        )
    contents = {}
    for name in names:
        contents[name] = _regular(folder, name).read_bytes()
        if hashlib.sha256(contents[name]).hexdigest() != manifest["files"].get(name):
            raise ValueError(
                f"{folder / name} is not the file that was written there (its SHA-256 is not the one in {MANIFEST}): "
                "it was changed or damaged, or stems from another folder. Take it from a copy."
            )
    return contents, manifest


def _regular(folder: Path, name: str) -> Path:
    path = folder / name
    if path.is_symlink():
        raise ValueError(f"{path} is a link, which may lead out of the folder: put the file itself there.")
    if not path.is_file():
        raise ValueError(f"{folder} has no file {name}: it is incomplete. Take it from a copy.")
    return path
