"""A run on disk: a folder from which its model can be built again."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ppgen
from ppgen.catalogue import Recipe
from ppgen.errors import first_line
from ppgen.files import MANIFEST, check_manifest, json_bytes, parse_json, write_bytes, write_manifest
from ppgen.inference import History

__all__ = ["Run", "begin_run", "load_run", "read_config", "save_run"]

SCHEMA = 3
CONFIG, MODEL, HISTORY = "config.json", "model.safetensors", "history.json"
EVALUATION, JUDGEMENT, CHECK = "evaluation.json", "judgement.json", "check.json"  # what commands say of a model
LARGEST = 2**20  # bytes of a configuration


def begin_run(folder: Path, recipe: Recipe, *, data: dict[str, Any], training: dict[str, Any]) -> None:
    """Writes what a run is going to be, ``config.json``, from which training can be continued.

    Of several processes that begin a run in the same folder one does, and the others are refused.

    Args:
        folder: made if it is not there.
        recipe: what its model is built from.
        data: name, binarisation and split of its data.
        training: the settings of its training.

    Raises:
        ValueError: there is a ``config.json`` in it already.
    """
    content, path = _config(recipe, data, training), folder / CONFIG
    folder.mkdir(parents=True, exist_ok=True)
    try:
        path.touch(exist_ok=False)  # looking whether it is there would let two through at once
    except FileExistsError as error:
        raise ValueError(
            f"{folder} already holds a run, maybe one that has just begun: choose another folder, or remove that one."
        ) from error
    try:
        write_bytes(path, content)
    except BaseException:
        path.unlink()
        raise


def save_run(
    folder: Path, pair: nn.Module, recipe: Recipe, *, data: dict[str, Any], training: dict[str, Any], history: History
) -> None:
    """Writes a run: ``config.json``, ``model.safetensors``, ``history.json``, and their SHA-256 in ``manifest.json``.

    What commands have measured of an earlier model in the folder is removed.

    Args:
        folder: made if it is not there.
        pair: the trained model.
        recipe: what it was built from.
        data: name, binarisation and split of its data.
        training: the settings of its training.
        history: its losses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{MODEL}.") as temporary:
        save_model(pair, f"{temporary}/{MODEL}")
        model = Path(temporary, MODEL).read_bytes()
    files = {MODEL: model, HISTORY: json_bytes(asdict(history)), CONFIG: _config(recipe, data, training)}
    for name in (MANIFEST, EVALUATION, JUDGEMENT, CHECK):  # of the same run after fewer epochs
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_bytes(folder / name, content)
    write_manifest(folder, files, SCHEMA)


def _config(recipe: Recipe, data: dict[str, Any], training: dict[str, Any]) -> bytes:
    about = {"schema": SCHEMA, "ppgen": ppgen.__version__, "recipe": asdict(recipe), "data": data, "training": training}
    return json_bytes(about)


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
    for name in (CONFIG, MODEL, MANIFEST):
        if not (folder / name).is_file():
            begun = (
                f"its training has not ended (`ppgen train --resume {folder}`)"
                if (folder / CONFIG).exists()
                else ("`ppgen train` makes one")
            )
            raise FileNotFoundError(f"{folder} is not a run: it has no {name}; {begun}.")
    recipe, config = read_config(folder, allow)
    check_manifest(folder, (CONFIG, MODEL, HISTORY), SCHEMA)
    pair = _built(recipe, folder)
    try:
        load_model(pair, folder / MODEL)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / MODEL} does not hold the parameters of this run: {first_line(error)}") from error
    return Run(pair.eval(), recipe, config)


def read_config(folder: Path, allow: Sequence[str] = ()) -> tuple[Recipe, dict[str, Any]]:
    """What ``config.json`` says of a run, finished or not.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, of another version, or names an import path that is not allowed.
    """
    path = folder / CONFIG
    if path.is_symlink():
        raise ValueError(f"{path} is a link, which may lead out of the folder: put the file itself there.")
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run: it has no {CONFIG}. `ppgen train` makes one.")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, which no configuration of a run has.")
    config = parse_json(path.read_bytes(), path)
    try:
        schema, content = config["schema"], dict(config["recipe"])
        about = (dict(config["data"]), dict(config["training"]))
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
    if foreign := [name for name in recipe.imports if name not in allow]:
        raise ValueError(
            f"The run {folder} was made with {', '.join(foreign)}, and importing that runs its code: if you trust it, "
            f"allow it by name ({allow_options(foreign)})."
        )
    return recipe, {**config, "data": about[0], "training": about[1]}


def allow_options(names: Sequence[str]) -> str:
    """What allows names, as it is typed."""
    return " ".join(f"--allow {quote(name)}" for name in names)


class _Limited(TorchDispatchMode):
    """Refuses tensors larger than a number of bytes, before anything is written into them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() > self.most:
                raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is more than {MODEL} can hold")
        return out


def _built(recipe: Recipe, folder: Path) -> Any:
    """The recipe's model; one larger than the file of its parameters ends in words, not in a full memory."""
    try:
        with _Limited(16 * (folder / MODEL).stat().st_size + 2**24):  # masks of networks are made of larger integers
            return recipe.build()
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: its recipe cannot be built: {error}") from error
