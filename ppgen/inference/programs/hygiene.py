"""What makes a likelihood wrong in silence: found at a first run, and named."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributions as td
from torch.nn.modules.module import register_module_forward_pre_hook

from ppgen.distributions import ContinuousBernoulli
from ppgen.errors import first_line
from ppgen.inference.programs.identity import ByIdentity
from ppgen.inference.programs.modes import unmoved
from ppgen.inference.programs.networks import device_of, modules_of
from ppgen.inference.programs.refusals import check_data_plate
from ppgen.inference.programs.seeds import seeded
from ppgen.inference.programs.traces import device_batch, innermost, run, sites

__all__ = ["check_last_batch", "warn_of_probabilities", "warn_of_train_mode", "watching_modes"]

log = logging.getLogger(__name__)

# Layers that compute something else in train mode.
MODAL = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
# Fewer logits than these may all lie in [0, 1] by chance.
ENOUGH, ENOUGH_OF_EVENT = 64, 8

_said: ByIdentity[set[str]] = ByIdentity(set)


def _warn_once(pair: Any, message: str) -> None:
    """A warning in the log, once for a pair."""
    if message not in _said[pair]:
        _said[pair].add(message)
        log.warning(message)


def warn_of_train_mode(pair: Any) -> None:
    """Warns of layers that are in train mode while nothing is trained.

    Dropout adds noise to the decoder, and batch normalisation lets one datum's likelihood depend on the others'.
    """
    names = [
        f"{name or type(module).__name__} ({type(module).__name__})"
        for owner in modules_of(pair)
        for name, module in owner.named_modules()
        if module.training and isinstance(module, MODAL)
    ]
    if names:
        _warn_once(
            pair,
            f"Weights without gradients in train mode: {', '.join(names)} of this {type(pair).__name__} behave as in "
            "training, so these are not the weights of the model that is meant. Call .eval() first.",
        )


@contextmanager
def watching_modes(pair: Any) -> Iterator[None]:
    """Warns of layers that run in train mode inside although the pair is in eval mode: it does not know them."""
    found: dict[str, None] = {}

    def look(module: nn.Module, _: Any) -> None:
        if module.training and isinstance(module, MODAL):
            found[repr(module)] = None

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
    if found:
        _warn_once(
            pair,
            f"Scored in train mode: {', '.join(found)} ran as in training, since this {type(pair).__name__} does not "
            "know the network it belongs to (it is in a list or a dictionary, say) and could not put it into eval "
            "mode. Call its .eval(), or hand it over by name: Custom(model, guide, net=net).",
        )


def warn_of_probabilities(pair: Any, found: dict[str, Any]) -> None:
    """Warns of observed sites whose logits all look like probabilities: those of a net that ends in a sigmoid."""
    for name, site in found.items():
        base = innermost(site["fn"]) if site["is_observed"] else None
        if base is None:
            continue
        squashed = [
            f"{path} is a {type(module).__name__}"
            for owner in modules_of(pair)
            for path, module in owner.named_modules()
            if isinstance(module, nn.Sigmoid | nn.Softmax)
        ]
        if not _look_like_probabilities(base, surely=bool(squashed)):
            continue
        _warn_once(
            pair,
            f"The logits of the observed site {name!r}, {type(base).__name__}, look like probabilities: all of a batch "
            f"lie in [0, 1]{' (' + ', '.join(squashed) + ')' if squashed else ''}. A sigmoid or softmax at the end of "
            f"the decoder's net would be applied twice. Leave it out, or give {type(base).__name__}(probs=...).",
        )


def _look_like_probabilities(base: Any, surely: bool) -> bool:
    """Whether all lie in [0, 1]; unless a sigmoid is in sight, from end to end of it: a fresh net's may lie inside."""
    given_logits = base.__dict__.get("logits")
    if not isinstance(given_logits, Tensor) or getattr(base, "_param", given_logits) is not given_logits:
        return False
    logits: Tensor = given_logits
    if isinstance(base, td.Bernoulli | td.ContinuousBernoulli | td.Binomial | ContinuousBernoulli):
        if logits.numel() < ENOUGH or logits.shape[-1:].numel() < ENOUGH_OF_EVENT:
            return False
        low, high = torch.aminmax(logits)
        # Not all the same, as of a last layer that starts at zero.
        return bool(0 <= low < high <= 1 and (surely or (low < 0.05 and high > 0.95)))
    if isinstance(base, td.Categorical) and logits.numel() >= ENOUGH and logits.shape[-1] > 2:
        # Logits are stored up to a constant: the one with which they add up to 1 shows what was given.
        given = logits + (1 - logits.sum(-1, keepdim=True)) / logits.shape[-1]
        return bool(given.min() >= -1e-6 and given.max() > 0.5 + 1 / logits.shape[-1])
    return False


def check_last_batch(pair: Any, rows: Any, batch_size: int) -> None:
    """Makes sure that the pair can be trained on the last batch of an epoch, if that is a single row.

    Batch normalisation cannot, nor a program that squeezes its data, which takes the row's pixels for rows.

    Args:
        pair: in train mode.
        rows: of all data: ``rows(slice)`` is a batch of some.
        batch_size: how many the other batches have.

    Raises:
        ValueError: it cannot; it would be found only after the other batches were trained on.
    """
    if len(rows) % batch_size != 1:
        return
    batch = device_batch(pair, rows(slice(0, 1)))
    try:
        with torch.no_grad(), seeded(None, device_of(pair)), unmoved(pair):
            model_trace, _ = run(pair.model, pair.guide, batch)
        check_data_plate(sites(model_trace), batch)
    except ValueError as error:
        raise ValueError(
            f"The last batch of an epoch has 1 row (of {len(rows)} rows in batches of batch_size={batch_size}), and "
            f"the pair cannot be trained on one: choose another batch_size. ({first_line(error)})"
        ) from error
