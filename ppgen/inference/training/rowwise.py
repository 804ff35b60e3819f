"""What no mini-batch can be trained with: parameters for each row of the data, latents that weigh as if it were all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor

from ppgen.inference.programs.modes import training, unmoved
from ppgen.inference.programs.networks import device_of, modules_of
from ppgen.inference.programs.parameters import showing, trained_parameters
from ppgen.inference.programs.repeated import Given
from ppgen.inference.programs.seeds import seeded
from ppgen.inference.programs.traces import frame_of_data, is_factor, log_prob, num_rows, run, sites

__all__ = ["check_amortised"]


def check_amortised(pair: Any, batch: Sequence[Any]) -> None:
    """Makes sure that nothing belongs to a row of a batch by its place there, or takes a batch for all data.

    Args:
        pair: anything with ``.model`` and ``.guide``.
        batch: one of several.

    Raises:
        ValueError: a parameter has a part for each row, as those of Pyro's ``AutoNormal`` for a latent in the plate of
            the data; or a latent is shared by all data, and a batch of them is not scaled up to all.
    """
    with torch.no_grad(), pyro.validation_enabled(False), training(pair, False), unmoved(pair):
        with seeded(0, device_of(pair)), showing() as shown:
            model_trace, guide_trace = run(pair.model, pair.guide, batch)
        names = {id(p): name for name, p in shown.sites.items()}
        names |= {id(p): name for module in modules_of(pair) for name, p in module.named_parameters()}
        found = sites(model_trace)
        shared = _shared_plates(found)
        bound = [type(guide).__name__ for guide in _autoguides(pair) if _holds_data(guide, found, shared)]
        if not bound and all(isinstance(member, Tensor) and len(member) == len(batch[0]) > 1 for member in batch):
            drawn = [*sites(guide_trace).values(), *(site for site in found.values() if not site["is_observed"])]
            values = {site["name"]: site["value"] for site in drawn if not site["is_observed"]}
            frames = [frame_of_data(site) for site in (*drawn, *found.values())]
            lengths = {len(batch[0]), *(frame.full_size for frame in frames if frame is not None)}
            long = [
                p for p in trained_parameters(pair, shown) if not lengths.isdisjoint(p.shape)
            ]  # of most pairs there is none
            rows = _Rows(pair, values, shared, batch)
            with suppress(Exception):  # a program that takes no other rows or parameters shows nothing
                bound = [repr(names.get(id(p), "")) for p in long if rows.own(p)]
    if unscaled := _unscaled(found, shared, num_rows(batch)):
        raise ValueError(
            f"The latents {unscaled} are shared by all data, and each of several mini-batches, here of "
            f"{num_rows(batch)} rows, would be weighed against their whole prior, as if there were no other data. Say "
            "how many data there are, pyro.plate('data', N, subsample_size=len(x)), which scales a batch up, or give "
            "batch_size=len(data)."
        )
    if bound:
        raise ValueError(
            f"The pair has parameters for each row of the data ({', '.join(bound)}), and mini-batches, here of "
            f"{num_rows(batch)} rows, hold others at each step, so that these would serve whichever rows come by. Give "
            "batch_size=len(data) in one process, so that all rows are one batch and stay in their order, or a guide "
            "that computes its parameters from the row (an amortised one, with a network)."
        )


def _shared_plates(model_sites: dict[str, Any]) -> set[str]:
    """The plates of a model on the axis of the data that nothing observed stands in: a mixture's components, say."""
    frames = [(site["is_observed"], frame_of_data(site)) for site in model_sites.values()]
    of_data = {frame.name for observed, frame in frames if frame is not None and observed}
    return {frame.name for _, frame in frames if frame is not None} - of_data


def _unscaled(model_sites: dict[str, Any], shared: set[str], length: int) -> list[str]:
    """The latents that all data share, where neither they nor the data are scaled by how many there are of those."""

    def is_shared(site: Any) -> bool:
        frame = frame_of_data(site)
        return frame is None or (frame.name in shared and frame.size != length)

    observed = [s for s in model_sites.values() if s["is_observed"] and not is_factor(s) and not is_shared(s)]
    if not observed or any(_is_scaled(site) for site in observed):
        return []
    return [n for n, s in model_sites.items() if not s["is_observed"] and is_shared(s) and not _is_scaled(s)]


def _is_scaled(site: Any) -> bool:
    return isinstance(site["scale"], Tensor) or site["scale"] != 1.0


def _autoguides(pair: Any) -> list[AutoContinuous]:
    """Pyro's guides that have the latents of all rows in one vector."""
    return [part for module in modules_of(pair) for part in module.modules() if isinstance(part, AutoContinuous)]


def _holds_data(guide: AutoContinuous, model_sites: dict[str, Any], shared: set[str]) -> bool:
    """Whether a latent of such a guide has a value for each datum."""
    names = guide.prototype_trace.nodes.keys() & model_sites.keys() if guide.prototype_trace is not None else set()
    latents = [model_sites[name] for name in names if not model_sites[name]["is_observed"]]
    return any((frame := frame_of_data(site)) is not None and frame.name not in shared for site in latents)


class _Rows:
    """What a row of a parameter does to the densities of each datum, at the same draws.

    A parameter for each row is known by this: what it has for the first and the last place of a batch moves the datum
    there and no other, and whichever datum is there: so it is in the batch as it is, and with its rows moved along.
    """

    def __init__(self, pair: Any, values: dict[str, Tensor], shared: set[str], batch: Sequence[Tensor]) -> None:
        self.pair, self.values, self.shared = pair, values, shared
        self.batches = [batch, [member.roll(1, 0) for member in batch]]
        self.last = len(batch[0]) - 1
        # By the length of an axis, which of its places the batch has: those that a plate draws by itself, too.
        self.places = {len(batch[0]): list(range(len(batch[0])))}

    @cached_property
    def before(self) -> list[Tensor]:
        """The densities with the parameters as they are."""
        return [self._densities(batch) for batch in self.batches]

    def own(self, parameter: Tensor) -> bool:
        """Whether the rows of a parameter, on some axis, belong to those of a batch by their places."""
        before = self.before  # which shows the places, too
        return any(
            all(self._moved(before, parameter, axis, self.places[length][i]) == [i] * 2 for i in (0, self.last))
            for axis, length in enumerate(parameter.shape)
            if length in self.places
        )

    def _moved(self, before: list[Tensor], parameter: Tensor, axis: int, place: int) -> list[int | None]:
        """The one datum of each batch that moves with a part of a parameter; None where it is not one."""
        kept = parameter.detach().clone()
        part = parameter.detach().select(axis, place)
        part += torch.linspace(0.1, 0.2, part.numel()).to(part).reshape(part.shape)
        try:
            after = [self._densities(batch) for batch in self.batches]
        finally:
            parameter.copy_(kept)
        found: list[int | None] = []
        for old, new in zip(before, after, strict=True):
            changed = (~torch.isclose(old, new, 1e-5, 1e-6, equal_nan=True)).any(0).nonzero().flatten().tolist()
            found.append(changed[0] if len(changed) == 1 else None)
        return found

    def _densities(self, batch: Sequence[Any]) -> Tensor:
        """The log-densities of each datum, of shape (K, N)."""
        length, scores = self.last + 1, []
        traces: Any
        with seeded(0, device_of(self.pair)), Given(self.values, self.pair.model, 1, length, 0):
            traces = run(self.pair.model, self.pair.guide, batch)
        for trace in traces:
            for site in sites(trace).values():
                frame = frame_of_data(site)
                if frame is not None and frame.name not in self.shared and frame.size in (length, -1):
                    score = log_prob(site)
                    scores.append(score.expand(torch.broadcast_shapes(score.shape, (length,))).reshape(-1, length))
                    if frame.name in trace.nodes and frame.size < (frame.full_size or 0):
                        self.places[frame.full_size] = [int(i) for i in trace.nodes[frame.name]["value"]]
        return torch.cat(scores)
