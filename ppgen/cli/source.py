"""Data in the form that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ppgen import data as datasets
from ppgen.catalogue import DECODERS, MODELS, Recipe, lookup, pseudo_inputs
from ppgen.inference import classify
from ppgen.inference.execution.batches import Rows
from ppgen.inference.execution.fingerprint import fingerprint
from ppgen.inference.programs.seeds import seeded
from ppgen.runs import CONFIG, allow_options


def load(name: str, data_dir: Path | None, binarize: str | None, model: str, decoder: str | None) -> datasets.Dataset:
    """A data set in the form that the model, or its decoder, scores.

    Raises:
        ValueError: the data cannot be brought into that form.
    """
    kind = MODELS[model].kind or DECODERS[lookup("decoder", str(decoder), DECODERS)].kind
    choice = _binarization(binarize)
    if choice is None and kind != "binary":
        choice = "none"  # grey values, which a model that takes any kind makes more of, too
    loaded = datasets.load(name, data_dir=data_dir, binarize=choice)
    if kind == "any":
        return loaded
    if kind == "real" and loaded.kind == "levels" and loaded.num_levels:
        top = loaded.num_levels - 1
        scaled = {part: getattr(loaded, part)[:].float() / top for part in ("train", "validation", "test")}
        loaded = replace(loaded, num_levels=None, **scaled)
    if loaded.kind != kind:
        has = f"{loaded.num_levels} levels" if loaded.kind == "levels" else f"{loaded.kind} values"
        own = MODELS[model].kind  # of a model without a decoder to choose
        if kind == "binary":
            mend = "add --binarize dynamic (pixels become probabilities of a new draw at each use) or --binarize fixed"
        elif choice != "none":
            mend = "leave out --binarize"
        elif own:
            mend = "choose other data, or a model of such data (see `ppgen list`)"
        else:
            fit = ", ".join(name for name, part in DECODERS.items() if part.kind == loaded.kind)
            mend = f"choose another --decoder ({fit})"
        owner = model if own else f"the decoder {decoder}"
        raise ValueError(f"--data {name} has {has}, and {owner} is for {kind} data: {mend}.")
    return loaded


def described(name: str, loaded: datasets.Dataset) -> dict[str, Any]:
    """What a run writes down of its data: where they are, and for a path, of which anything may become, a digest."""
    about: dict[str, Any] = {"name": name, "binarization": loaded.binarization, "split": loaded.split}
    if name not in datasets.describe():
        about |= {"name": str(Path(name).expanduser().absolute()), "digest": _digest(loaded)}
    return about


def _digest(loaded: datasets.Dataset) -> list[str]:
    """Of the data that a run is measured on, with their labels; those that it is trained on are in its checkpoints."""
    parts = ((loaded.validation, loaded.validation_labels), (loaded.test, loaded.test_labels))
    return [each for part in parts for each in fingerprint(Rows([member for member in part if member is not None]))]


def data_of(
    run: Path,
    recipe: Recipe,
    config: dict[str, Any],
    data_dir: Path | None,
    allow: Sequence[str],
    moved: str | None = None,
) -> datasets.Dataset:
    """The data that a run names: a data set, or a file or folder in the run's own folder, or one that is allowed.

    Args:
        run: its folder.
        recipe: what its model is built from.
        config: what its ``config.json`` says.
        data_dir: where files of data sets are.
        allow: names outside its folder that it may lead to.
        moved: where its file or folder is now, if it is elsewhere.

    Raises:
        FileNotFoundError: there is nothing where the run says.
        ValueError: it names none, leads out of its folder, or the data are others than those that it was trained on.
    """
    source = config["data"]
    name, binarization = source.get("name"), source.get("binarization")
    if not isinstance(name, str) or not isinstance(binarization, str):
        raise ValueError(f"{run / CONFIG} does not say which data the run is of: got {source!r}.")
    known = datasets.describe()
    if moved is not None and moved != name and (name in known or moved in known):
        raise ValueError(
            f"--data {moved} is not what the run {run} is of, {name}: --data is for a file or folder that has moved."
        )
    if moved is None and name not in known:
        place = _place(name)
        if not place.exists():
            raise FileNotFoundError(f"The data of the run {run} are not at {name}: say where they are (--data PATH).")
        if place not in map(_place, allow) and not place.is_relative_to(run.resolve()):
            raise ValueError(
                f"The run {run} names data outside its folder, {name!r}: if you trust it to lead there, allow it by "
                f"name ({allow_options([*recipe.imports, name])})."
            )
    name = moved or name
    loaded = load(name, data_dir, binarization, recipe.model, recipe.settings.get("decoder"))
    if "digest" in source and source["digest"] != _digest(loaded):
        raise ValueError(
            f"{name} does not hold the data that the run {run} was made with: its validation or test data are others. "
            "Say where those are (--data PATH)."
        )
    return loaded


def _place(name: str) -> Path:
    return Path(name).expanduser().resolve()


def _binarization(name: str | None) -> Any:
    return None if name is None else lookup("binarisation", name, ("none", "fixed", "dynamic"))


def num_classes(loaded: datasets.Dataset) -> int | None:
    """How many classes data have, where each datum has one and there are two or more."""
    splits = (loaded.train_labels, loaded.validation_labels, loaded.test_labels)  # the first may lack a class
    labels = [each for each in splits if each is not None and each.dim() == 1]
    if not labels:
        return None
    count = len(loaded.class_names) or max(int(each.max()) for each in labels) + 1
    return count if count > 1 else None


def build(recipe: Recipe, loaded: datasets.Dataset, seed: int) -> Any:
    """The recipe's model, its pseudo-inputs started from the data."""
    with seeded(seed):
        vamp = recipe.settings.get("prior") == "vamp"
        return recipe.build(pseudo_inputs(loaded.train, recipe.settings["num_components"], seed) if vamp else None)


def visible(values: Tensor, recipe: Recipe) -> Tensor:
    """Data as brightness in [0, 1], in their own shape."""
    shaped = values.float().reshape(len(values), *recipe.shape)
    return shaped / (recipe.num_levels - 1) if recipe.num_levels else shaped


def error_rate(pair: Any, x: Tensor, y: Tensor | None) -> float:
    """The share of data that a semi-supervised pair puts in another class than their own."""
    assert y is not None  # or the pair would not have been trained
    return (classify(pair, x).argmax(-1) != y).sum().item() / len(x)
