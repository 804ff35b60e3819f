"""What an objective is: ``loss(model, guide, *batch) -> scalar``, minimised, in nats per datum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppgen.inference.losses.schedules import check_schedules
from ppgen.inference.programs.identity import ByIdentity
from ppgen.inference.programs.structure import Structure, measure
from ppgen.inference.programs.traces import Program, frame_of_data, length_of_batch, observing, proposing
from ppgen.inference.programs.turns import in_turn

__all__ = ["DataSize", "Loss", "Measured", "as_loss"]

Loss = Callable[..., Tensor]


class Measured:
    """The structure of a pair, from one first run of each form of batch: a loss sees two programs, and asks once."""

    def __init__(self) -> None:
        self.known: ByIdentity[ByIdentity[dict[Any, Structure]]] = ByIdentity(lambda: ByIdentity(dict))

    def __call__(self, model: Program, guide: Program, *batch: Any) -> Structure:
        # Bound methods are made anew at each access: they are known by what they belong to, and by their names.
        owner, proposer = (getattr(program, "__self__", program) for program in (model, guide))
        names = tuple(getattr(program, "__name__", None) for program in (model, guide))
        # And by the form of the batch: without its labels, say, a site is a latent that was observed with them.
        form = tuple(member.dim() if isinstance(member, Tensor) else type(member) for member in batch)
        known = self.known[owner][proposer]
        if (key := (names, form)) not in known:
            known[key] = measure(model, guide, *batch)
        return known[key]

    def __deepcopy__(self, memo: Any) -> Measured:
        return Measured()


class DataSize(Messenger):
    """What a sum over the data plate is divided by: its full size, as the programs that run inside state it.

    Every batch is asked: that a plate is as long as one batch does not say how long it is at the next.
    """

    def __init__(self, batch: Sequence[Any]) -> None:
        super().__init__()
        self.length = length_of_batch(batch)
        self.sizes: dict[bool, set[int]] = {True: set(), False: set()}

    @property
    def size(self) -> int:
        """The size; the batch's length where there is no plate, or one that was given no size."""
        # Latents that all data share may have a plate of their own on that axis.
        return max(self.sizes[True] or self.sizes[False], default=self.length or 1)

    def _pyro_post_sample(self, msg: Any) -> None:
        frame = None if site_is_subsample(msg) or (msg["infer"] or {}).get("_deterministic") else frame_of_data(msg)
        if frame is not None and (size := frame.full_size or frame.size) > 0:
            self.sizes[bool(msg["is_observed"])].add(size)


def as_loss(loss: Any) -> Loss:
    """A loss per datum from one of ours, a function ``(model, guide, *batch) -> scalar``, or a Pyro ELBO.

    Raises:
        TypeError: the loss is neither, the class of one, or a Pyro ELBO without ``differentiable_loss``.
        ValueError: a function with a schedule that training would not advance.
    """
    if isinstance(loss, type):
        raise TypeError(f"loss is the class {loss.__name__}: call it, as in elbo(), iwae(50) or Trace_ELBO().")
    if hasattr(loss, "loss_and_grads"):
        if not hasattr(loss, "differentiable_loss"):
            raise TypeError(
                f"{type(loss).__name__} has no differentiable_loss, so no torch optimiser can use it: take elbo() or "
                "iwae(k) from ppgen.inference, or pyro.infer.Trace_ELBO()."
            )
        return _PyroLoss(loss)
    if not callable(loss):
        raise TypeError(f"loss must be a function (model, guide, *batch) -> scalar or a Pyro ELBO, got {loss!r}.")
    check_schedules(loss)
    return loss


class _PyroLoss:
    """A Pyro ELBO, which sums over the data plate's full size, as a loss per datum."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self._measured = Measured()

    @in_turn
    def __call__(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        structure = self._measured(model, guide, *batch)  # also for what it refuses
        model, guide = observing(model), proposing(guide, structure.observed)
        wanted = torch.is_grad_enabled()
        with torch.enable_grad(), DataSize(batch) as data:  # TraceEnum_ELBO refuses to work without, in validation, too
            total = self.objective.differentiable_loss(model, guide, *batch)
        loss = total / data.size
        return loss if wanted else loss.detach()

    def __repr__(self) -> str:
        own = ("max_plate_nesting", "max_iarange_nesting")  # which runs set
        settings = {n: v for n, v in vars(self.objective).items() if n not in own}
        plain = {n: v for n, v in settings.items() if isinstance(v, bool | int | float | str)}
        return f"{type(self.objective).__name__}({', '.join(f'{n}={v!r}' for n, v in sorted(plain.items()))})"
