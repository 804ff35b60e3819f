"""Which of its sites a model observes, where it was run without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro import poutine

from ppgen.inference.programs.modes import unmoved
from ppgen.inference.programs.networks import device_of
from ppgen.inference.programs.seeds import seeded
from ppgen.inference.programs.traces import Program, as_data, is_factor, sites

__all__ = ["observation_of"]


def observation_of(model: Program, drawn: dict[str, Any], context: Sequence[Any]) -> str:
    """The site that takes the data: the one that is observed once the model is given what it drew itself.

    A model that takes none of its draws for data is believed if it has one site, or one that it calls ``x``.

    Args:
        model: takes the data first.
        drawn: the sites of a run without data.
        context: what the model was given beside the data.

    Raises:
        ValueError: several sites share the data, or none takes them.
    """
    free = [name for name, site in drawn.items() if not site["is_observed"] and not is_factor(site)]
    if len(free) < 2:
        return free[0] if free else list(drawn)[-1]
    owner = getattr(model, "__self__", model)
    for name in sorted(reversed(free), key=lambda name: name != "x"):
        value = drawn[name]["value"]
        if not isinstance(value, torch.Tensor) or not value.dim():
            continue
        try:
            with torch.no_grad(), seeded(None, device_of(owner)), unmoved(owner), pyro.validation_enabled(False):
                trace = poutine.trace(model).get_trace(as_data(drawn[name], value), *context)
        except Exception:  # it is not of the form that the data have
            continue
        if taken := [name for name, site in sites(trace).items() if site["is_observed"] and name in free]:
            if len(taken) > 1:
                raise ValueError(
                    f"The model observes its data at {len(taken)} sites, {taken}, and one is expected here: score them "
                    "at one site (a distribution of a vector, .to_event(1)), or draw all of them by "
                    "pyro.infer.Predictive."
                )
            return taken[0]
    if "x" not in free:
        raise ValueError(
            f"The model takes no draw of one of its sites for its data, {free}, so that none of them is known for the "
            "observation: score the data at one site (a vector's by .to_event(1)), or call it 'x'."
        )
    return "x"
