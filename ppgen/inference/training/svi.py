"""Stochastic variational inference: one step on any pair, any loss, one torch optimiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppgen.inference.execution.cuda_graphs import Replayed
from ppgen.inference.execution.distributed import averaged, broadcast, current
from ppgen.inference.losses.elbo import elbo
from ppgen.inference.losses.loss import as_loss
from ppgen.inference.losses.schedules import schedules, unannealed
from ppgen.inference.programs.modes import Buffer, buffers_in, buffers_of, evaluating, unmoved
from ppgen.inference.programs.networks import modules_of
from ppgen.inference.programs.parameters import showing, trained_parameters
from ppgen.inference.programs.refusals import check_pair
from ppgen.inference.programs.seeds import seeded
from ppgen.inference.programs.traces import device_batch, device_of_batch, log_prob, num_rows, run, sites
from ppgen.inference.programs.turns import in_turn
from ppgen.inference.training.compiled import Compiled, Gradients, gradients
from ppgen.inference.training.optimizers import (
    OptimizerFactory,
    adam,
    check_holds,
    check_step,
    laid_out,
    load_optimizer,
)
from ppgen.inference.training.precision import precision
from ppgen.inference.training.reached import KnownParameters, check_reached, fault
from ppgen.pair import Pair

__all__ = ["SVI"]

PRECISIONS = {"float32": 1e-3, "tf32": 1e-2, "bf16": 0.1}  # and how far apart two ways to round may come out


class SVI:
    """One optimisation step of a pair on a batch: ``SVI(pair, loss, optimizer).step(*batch) -> loss``.

    It trains what requires a gradient at its first step: after something was unfrozen, take a new one.

    Args:
        pair: anything with ``.model`` and ``.guide``.
        loss: ``(model, guide, *batch) -> scalar``, one of this library's, or a Pyro ELBO.
        optimizer: a torch optimiser, or a function of the parameters that makes one; fused Adam at 1e-3 by default.
        compile: whether loss and gradients are compiled at the first step, which takes seconds, for faster steps
            after it. What cannot be compiled runs in eager, and is said once, through ``logging``.
        precision: of matrix products in training: ``"float32"``; ``"tf32"``, which GPUs have, with 10 bits of mantissa;
            or ``"bf16"``, by autocast, with 7. Draws, densities, parameters, optimiser and evaluation stay in float32.

    Attributes:
        compiled: whether steps run compiled code.

    Raises:
        TypeError: the pair, the loss or the optimiser is not one.

    Example:
        >>> from ppgen import decoders, models, nn, posteriors, priors
        >>> vae = models.VAE(
        ...     priors.StandardNormal(2),
        ...     decoders.Bernoulli(nn.MLP(2, 64)),
        ...     posteriors.DiagNormal(nn.MLP(64, 4)),
        ... )
        >>> loss = SVI(vae).step(torch.zeros(5, 64))
        >>> loss.shape
        torch.Size([])
    """

    def __init__(
        self,
        pair: Pair,
        loss: Any = None,
        optimizer: torch.optim.Optimizer | OptimizerFactory | None = None,
        *,
        compile: bool = False,
        precision: str = "float32",
    ) -> None:
        check_pair(pair)
        known = isinstance(optimizer, torch.optim.Optimizer) or callable(optimizer)
        if isinstance(optimizer, pyro.optim.PyroOptim) or not (optimizer is None or known):
            raise TypeError(f"optimizer must be a torch optimiser or a function of the parameters, got {optimizer!r}.")
        self.pair = pair
        self.loss = as_loss(elbo() if loss is None else loss)
        self.schedules = schedules(self.loss)
        self._optimizer = optimizer
        self.optimizer: torch.optim.Optimizer | None = None
        self.parameters: list[Any] = []  # known once a first batch has shown them
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
        self.precision = precision
        self._compile = compile
        self._compiled: Compiled | None = None
        self._replayed: Replayed | None = None
        self._known = KnownParameters()
        self._moving: list[nn.Module] | None = None  # whose buffers a step changes, once the first has shown them

    def prepare(self, *batch: Any) -> None:
        """A first run, which brings lazily made parameters into being, and then the optimiser over all of them."""
        if self.optimizer is not None:
            return
        device = device_of_batch(batch)
        with torch.no_grad(), seeded(None, device), unmoved(self.pair), showing() as shown:
            run(self.pair.model, self.pair.guide, batch)
        self._known.names.update(shown.sites)
        parameters = trained_parameters(self.pair, shown)
        with self._known:
            check_reached(self.pair, self.loss, shown, parameters, lambda: self._trial(batch))
        with torch.no_grad():
            for parameter in parameters:
                if 0 in parameter.stride():  # expanded, as some of Pyro's guides make theirs: no step could be written
                    parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        self.parameters = parameters
        broadcast(self.pair, self.parameters)
        if isinstance(self._optimizer, torch.optim.Optimizer):
            optimizer = self._optimizer
        else:
            optimizer = (self._optimizer or adam)(self.parameters)
        self._check_optimizer(optimizer)
        self.optimizer = optimizer
        self._set_compiled(device)

    def _check_optimizer(self, optimizer: Any) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer gave {type(optimizer).__name__}, where a torch optimiser over the parameters is expected: "
                "lambda parameters: torch.optim.Adam(parameters, lr=1e-3), say."
            )
        check_step(optimizer, "optimizer")
        check_holds(optimizer, "optimizer", self.parameters, "pair")
        for group in optimizer.param_groups:
            if not math.isfinite(lr := float(group["lr"])):
                raise ValueError(f"optimizer has the learning rate lr={lr}: it must be a finite number.")

    def _set_compiled(self, device: torch.device | None) -> None:
        self._compiled, self._replayed = None, None
        if self._compile:
            assert self.optimizer is not None
            self._compiled = Compiled(self.loss, self.pair, self.parameters, PRECISIONS[self.precision])
            ahead = device is not None and device.type == "cuda" and self.optimizer.defaults.get("fused")
            if self.compiled and ahead and current().count == 1:
                self._replayed = Replayed(self._update, self._explain, self.optimizer, self._compiled)

    @property
    def compiled(self) -> bool:
        """Whether steps run compiled code."""
        return self._compiled is not None and self._compiled.reason is None

    @property
    def sites(self) -> list[Tensor]:
        """What is trained and no network of the pair holds: ``pyro.param`` sites in Pyro's own store."""
        of_pair = {id(p) for module in modules_of(self.pair) for p in module.parameters()}
        return [p for p in self.parameters if id(p) not in of_pair]

    @property
    def monitors(self) -> dict[str, float]:
        """What the pair watches while it trains, such as the perplexity of a codebook."""
        # Of the pair itself, or of the one that a pair with a mask is made of.
        parts: list[Any] = [part for module in modules_of(self.pair) for part in module.modules()]
        return next((part.monitors for part in parts if hasattr(part, "monitors")), {})

    @in_turn
    def step(self, *batch: Any) -> Tensor:
        """One update; the loss of this batch (of this process's part of it) before it, detached.

        Raises:
            FloatingPointError: the loss is not finite; the parameters are as they were. On a GPU it may be that of an
                earlier step, whose update was not made; later ones were, and this one was not begun.
            ValueError: a schedule stated in epochs that does not know how many steps one has.
        """
        for schedule in self.schedules:
            schedule.check_length()
        batch = device_batch(self.pair, batch)
        self.prepare(*batch)
        if self._replayed is not None:
            loss = self._replayed(batch)
        else:
            assert self.optimizer is not None
            self.optimizer.zero_grad()  # also of what is frozen; the memory, which caches still hold, serves the next
            before = self._buffers()
            loss, whole, found = self._gradients(batch)
            if not math.isfinite(whole.item()):
                for buffer in before:
                    buffer.give_back()
                raise self._explain(loss, batch)
            self._note_moving(before)
            self._apply(averaged(found, self.parameters, num_rows(batch), self.pair))
        for schedule in self.schedules:
            schedule.advance()
        return loss

    @property
    def is_ahead(self) -> bool:
        """Whether so many updates are ahead of the host, on a GPU, that it is time to :meth:`look` at them."""
        return self._replayed is not None and self._replayed.is_ahead

    def look(self) -> None:
        """Makes sure that the updates so far were made, where they run on a GPU ahead of the host.

        Raises:
            FloatingPointError: the loss or a gradient of one was not finite; that update was skipped.
        """
        if self._replayed is not None:
            self._replayed.look()

    def _gradients(self, batch: Sequence[Any]) -> Gradients:
        if num_rows(batch) == 0 and current().count > 1:  # the others have all of a short batch
            return Gradients(torch.zeros(()), torch.zeros(()), [None] * len(self.parameters))
        # What the first run has validated: from here on a value out of its range is a loss that is not finite, which
        # is said with the step and the site.
        unvalidated = pyro.validation_enabled(False)
        with self._known, unvalidated, precision(self.precision, self.parameters[0].device):
            try:
                if self._compiled is not None:
                    return self._compiled(batch)
                return gradients(self.loss, self.pair, self.parameters, batch)
            except (AssertionError, AttributeError, TypeError, RuntimeError) as error:  # autograd's
                given = None
                with suppress(Exception):  # what is raised in the loss has words of its own
                    given = fault(self._trial(batch))
                if given is None:
                    raise
                raise TypeError(
                    f"loss must give a scalar tensor with a gradient, and {_name(self.loss)} gave {given}."
                ) from error

    def _buffers(self) -> list[Buffer]:
        """The buffers that a step may change (a normalisation's, a codebook's), and their values before it."""
        return buffers_of(self.pair) if self._moving is None else buffers_in(self._moving)

    def _note_moving(self, before: list[Buffer]) -> None:
        """Learns from the first step, which no graph replays, in which modules buffers have to be watched.

        They are all those of a module that moved one: a mean that was zero may have met a batch of mean zero.
        """
        if self._moving is None:
            self._moving = list({id(b.module): b.module for b in before if b.moved}.values())

    def _update(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """An update that skips itself, on the device, if anything in it is not finite."""
        optimizer: Any = self.optimizer
        optimizer.zero_grad()
        before = self._buffers()
        loss, whole, found = self._gradients(batch)
        self._note_moving(before)
        for buffer in before:
            buffer.give_back(unless=whole.isfinite())
        optimizer.found_inf = (~whole.isfinite()).float()  # which fused ones read
        try:
            self._apply(found)
        finally:
            del optimizer.found_inf  # or it would skip whatever else the optimiser is used for
        return loss, whole

    def _apply(self, found: Sequence[Tensor | None]) -> None:
        assert self.optimizer is not None
        for parameter, gradient in zip(self.parameters, found, strict=True):
            parameter.grad = laid_out(gradient, parameter)
        self.optimizer.step()

    def evaluate(self, *batch: Any, seed: int = 0) -> Tensor:
        """The unannealed loss of a batch, in eval mode, without gradients and with fixed noise."""
        batch = device_batch(self.pair, batch)
        with evaluating(self.pair, seed), unannealed(self.loss):
            return self.loss(self.pair.model, self.pair.guide, *batch)

    def state_dict(self) -> dict[str, Any]:
        """What training has made beside the pair's own state: the optimiser's, the loss's, and how steps run."""
        return {
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "loss": self.loss.state_dict() if isinstance(self.loss, nn.Module) else {},
            "objective": _name(self.loss),
            "sites": [p.detach() for p in self.sites],
            "precision": self.precision,
            "compile": self._compile,
            "compiled": None if self._compiled is None else self._compiled.state_dict(),
        }

    def rehearse(self, *batch: Any) -> None:
        """A loss that does not count: Pyro's own draw more at their first batch than at others."""
        self._trial(batch)

    def _trial(self, batch: Sequence[Any]) -> Any:
        with torch.enable_grad(), seeded(None, device_of_batch(batch)), unmoved(self.pair):
            return self.loss(self.pair.model, self.pair.guide, *batch)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave, after :meth:`prepare`; steps run as they did, compiled or not.

        Raises:
            ValueError: the optimiser or the precision is another one.
        """
        if state["precision"] != self.precision:
            raise ValueError(f"precision was {state['precision']!r}, and here it is {self.precision!r}")
        if self.optimizer is None:
            raise ValueError("the step must be prepared by a batch first: step.prepare(*batch)")
        if state.get("objective", _name(self.loss)) != _name(self.loss):
            raise ValueError(f"its loss was {state['objective']}, and here it is {_name(self.loss)}")
        if [p.shape for p in self.sites] != [value.shape for value in state["sites"]]:
            raise ValueError("the sites of its pyro.param statements have other shapes")
        load_optimizer(self.optimizer, state["optimizer"])
        if isinstance(self.loss, nn.Module):
            self.loss.load_state_dict(state["loss"])
        with torch.no_grad():
            for parameter, value in zip(self.sites, state["sites"], strict=True):
                parameter.copy_(value)
        if self._compile != bool(state["compile"]):
            self._compile = bool(state["compile"])
            self._set_compiled(self.parameters[0].device)
        if self._compiled is not None and state["compiled"] is not None:
            self._compiled.load_state_dict(state["compiled"])

    def _explain(self, loss: Tensor, batch: Any, later: int = 0) -> FloatingPointError:
        # Validation would stop at the first bad parameter.
        with torch.no_grad(), pyro.validation_enabled(False), unmoved(self.pair):
            model_trace, guide_trace = run(self.pair.model, self.pair.guide, batch)
            bad = [
                f"{where} {name!r}"
                for where, trace in (("the guide's site", guide_trace), ("the model's site", model_trace))
                for name, site in sites(trace).items()
                if not (site["value"].isfinite().all() and log_prob(site).isfinite().all())
            ]
        cause = f"first at {bad[0]}" if bad else "at no single site of a fresh draw"
        what = f"The loss is {loss.item()}" + (", and its gradient is not finite" if loss.isfinite() else "")
        done = f"Its update was not made, the {later} after it were" if later else "Nothing was updated"
        return FloatingPointError(
            f"{what}, {cause}. {done}. Likely causes: a learning rate too large, "
            "a scale that collapsed to zero, or data of an unexpected range."
        )


def _name(loss: Any) -> str:
    """What a loss is called; of the library's own with their settings."""
    if type(loss).__module__.startswith("ppgen."):
        return " ".join(repr(loss).split())
    return getattr(loss, "__qualname__", type(loss).__qualname__)
