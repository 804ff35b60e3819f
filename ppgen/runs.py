"""A run on disk: a folder from which its model can be built again."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

import ppgen
from ppgen.catalogue import Recipe
from ppgen.inference import History

__all__ = ["Run", "load_run", "save_run", "write_json"]

SCHEMA = 2


def _replace(path: Path, write: Callable[[str], None]) -> None:
    """Writes a file whole or not at all: to a temporary name, synced, then renamed."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    text = json.dumps(value, indent=2) + "\n"

    def write(temporary: str) -> None:
        Path(temporary).write_text(text)

    _replace(path, write)


def save_run(
    folder: Path, pair: nn.Module, recipe: Recipe, *, data: dict[str, Any], training: dict[str, Any], history: History
) -> None:
    """Writes a run: ``config.json``, ``model.safetensors`` and ``history.json``.

    Args:
        folder: made if it is not there.
        pair: the trained model.
        recipe: what it was built from.
        data: name, binarisation and split of its data.
        training: the settings of its training.
        history: its losses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "model.safetensors", lambda temporary: save_model(pair, temporary))
    write_json(folder / "history.json", asdict(history))
    config = {"schema": SCHEMA, "ppgen": ppgen.__version__, "recipe": asdict(recipe), "data": data}
    write_json(folder / "config.json", {**config, "training": training})


class Run(NamedTuple):
    """A run that was read back.

    Attributes:
        pair: the model, in eval mode.
        recipe: what it was built from.
        config: data, training and versions, as ``config.json`` has them.
    """

    pair: Any
    recipe: Recipe
    config: dict[str, Any]


def load_run(folder: Path, allow: Sequence[str] = ()) -> Run:
    """A run's model, its recipe and its configuration. Nothing in the folder is executed.

    Args:
        folder: what :func:`save_run` wrote.
        allow: import paths (``module:Class``) that the run may name: importing a module runs it.

    Raises:
        FileNotFoundError: the folder is not a run.
        ValueError: a file of it is damaged, or of another version.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a run: it has no {name}. `ppgen train` makes one.")
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        schema, content = config["schema"], dict(config["recipe"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a run's configuration: {error!r}.") from error
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has schema {schema!r}; this version of ppgen reads {SCHEMA}: take the version that wrote it "
            f"({config.get('ppgen')})."
        )
    try:
        recipe = Recipe(**content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its recipe cannot be built: {error}") from error
    if foreign := [path for path in recipe.imports if path not in allow]:
        raise ValueError(
            f"The run {folder} was made with {', '.join(foreign)}, and importing that runs its code: if you trust it, "
            f"allow it by name (--allow {','.join(foreign)})."
        )
    pair = recipe.build()
    try:
        load_model(pair, folder / "model.safetensors")
    except (SafetensorError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{folder / 'model.safetensors'} does not hold the parameters of this run: {first}") from error
    return Run(pair.eval(), recipe, config)
