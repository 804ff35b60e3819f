"""Adversarial training: two networks in turns, each with an optimiser of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ppgen.inference.losses.adversarial import AdversarialLoss, nonsaturating
from ppgen.inference.programs.modes import buffers_of
from ppgen.inference.programs.networks import device_of
from ppgen.inference.programs.traces import device_batch
from ppgen.inference.programs.turns import in_turn
from ppgen.inference.training.optimizers import OptimizerFactory, check_holds, check_step, laid_out, load_optimizer
from ppgen.numbers import positive_integer

__all__ = ["Adversarial"]

MEMORY = 50  # steps over which the monitors are averaged


class Adversarial:
    """A step of adversarial training: ``train(Adversarial(gan, loss), data, epochs=...)``.

    Every call of :meth:`step` is one update of the discriminator, on a batch of its own; every ``critic_steps``-th call
    ends with an update of everything else (the generator, a learned prior, a posterior). While one side moves the other
    stands still. An update whose loss or gradient is not finite is not made: the run ends with an error that names the
    step and the network, and the model is as it was before that update, its buffers included.

    :attr:`monitors` holds running means over some fifty steps, and ``train`` keeps their values after each epoch in
    ``History.monitors``: ``critic_estimate`` (the divergence between data and draws as the critic sees it),
    ``discriminator_accuracy`` (the share of rows told right: 0.5 where it cannot tell), ``critic_loss``,
    ``generator_loss``, ``critic_gradient_norm`` and ``generator_gradient_norm`` (over all parameters of a side), and
    what the model adds. The loss of a step is the critic's.

    References:
        Generative Adversarial Nets (Goodfellow et al., 2014), https://arxiv.org/abs/1406.2661
        Wasserstein GAN (Arjovsky, Chintala & Bottou, 2017), https://arxiv.org/abs/1701.07875

    Args:
        gan: a module with a submodule ``discriminator``, ``critic_loss(loss, *batch)`` and ``generator_loss(loss,
            *batch)``, each of which returns what that side minimises and a dictionary of what to watch.
        loss: :func:`~ppgen.inference.adversarial.nonsaturating` (the default), another of that file's, or
            an :class:`~ppgen.inference.adversarial.AdversarialLoss` of your own.
        critic_steps: updates of the discriminator for each of the generator; what the loss brings if not given.
        critic_optimizer: a torch optimiser over the discriminator's parameters, or a function of parameters that makes
            one; what the loss brings if not given.
        generator_optimizer: the same for everything else.

    Raises:
        TypeError: the model, the loss or an optimiser is not one.
        ValueError: a side without parameters, or a bad number of steps.

    Example:
        >>> from ppgen import models, nn, priors
        >>> from ppgen.inference import sample, train
        >>> from ppgen.inference import adversarial
        >>> gan = models.GAN(priors.StandardNormal(2), nn.MLP(2, 16, 64), nn.MLP(64, 16, 1))
        >>> history = train(Adversarial(gan, adversarial.wasserstein_gp()), torch.randn(500, 64), epochs=2, seed=0)
        >>> len(history.monitors["critic_estimate"])
        2
        >>> sample(gan, 5).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        gan: Any,
        loss: AdversarialLoss | None = None,
        *,
        critic_steps: int | None = None,
        critic_optimizer: torch.optim.Optimizer | OptimizerFactory | None = None,
        generator_optimizer: torch.optim.Optimizer | OptimizerFactory | None = None,
    ) -> None:
        discriminator = getattr(gan, "discriminator", None)
        turns = all(callable(getattr(gan, name, None)) for name in ("critic_loss", "generator_loss"))
        if not (turns and isinstance(gan, nn.Module) and isinstance(discriminator, nn.Module)):
            raise TypeError(
                "Adversarial trains a module with a submodule discriminator, critic_loss(loss, *batch) and "
                f"generator_loss(loss, *batch), such as models.GAN; got {type(gan).__name__}."
            )
        self.loss = nonsaturating() if loss is None else loss
        if not isinstance(self.loss, AdversarialLoss):
            raise TypeError(
                f"loss must be an AdversarialLoss, such as adversarial.wasserstein_gp(), got {loss!r}: call the "
                "function, if it is one of those that make a loss."
            )
        self.pair: Any = gan
        self.critic_steps = positive_integer(
            "critic_steps", self.loss.critic_steps if critic_steps is None else critic_steps
        )
        critic = {id(p) for p in discriminator.parameters()}
        sides = {
            "discriminator": [(n, p) for n, p in gan.named_parameters() if p.requires_grad and id(p) in critic],
            "generator": [(n, p) for n, p in gan.named_parameters() if p.requires_grad and id(p) not in critic],
        }
        for name, parameters in sides.items():
            if not parameters:
                raise ValueError(f"The {name} of {type(gan).__name__} has no parameters to train.")
        self._parameters = sides
        self.optimizers = {
            "discriminator": self._optimizer("critic_optimizer", critic_optimizer, sides["discriminator"]),
            "generator": self._optimizer("generator_optimizer", generator_optimizer, sides["generator"]),
        }
        self.num_steps = 0
        self.monitors: dict[str, Tensor] = {}
        self._seen: dict[str, int] = {}

    def _optimizer(self, name: str, given: Any, parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        optimizer = given or self.loss.optimizer
        if not isinstance(optimizer, torch.optim.Optimizer):
            optimizer = optimizer([p for _, p in parameters]) if callable(optimizer) else None
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"{name} must be a torch optimiser or a function of parameters that makes one, got {given!r}."
            )
        check_step(optimizer, name)
        side = "discriminator" if name == "critic_optimizer" else "generator"
        check_holds(optimizer, name, [p for _, p in parameters], side)
        return optimizer

    @in_turn
    def step(self, *batch: Any) -> Tensor:
        """One update of the discriminator, and of the generator if it is its turn; the discriminator's loss before it.

        Raises:
            FloatingPointError: a loss or a gradient is not finite; the model is as it was before that update.
        """
        batch = device_batch(self.pair, batch)
        self.num_steps += 1
        loss = self._update("discriminator", "critic", self.pair.critic_loss, batch)
        self.loss.constrain(self.pair.discriminator)
        if self.num_steps % self.critic_steps == 0:
            self._update("generator", "generator", self.pair.generator_loss, batch)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """What training has made beside the model's own state: the optimisers', the turns, the monitors."""
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "num_steps": self.num_steps, "monitors": self.monitors, "seen": self._seen, "objective": self._objective,
        }  # fmt: skip

    @property
    def _objective(self) -> str:
        """The loss by its name, and how often each network has its turn."""
        return f"{self.loss.name or 'unnamed'}, critic_steps={self.critic_steps}"

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        if state.get("objective", self._objective) != self._objective:
            raise ValueError(f"its loss was {state['objective']}, and here it is {self._objective}")
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, state["optimizers"][name])
        device = device_of(self.pair)
        self.monitors = {name: value.to(device) for name, value in state["monitors"].items()}
        if any(value.numel() != 1 for value in self.monitors.values()) or min(state["seen"].values(), default=0) < 0:
            raise ValueError("its monitors are not numbers")
        self.num_steps, self._seen = int(state["num_steps"]), {name: int(n) for name, n in state["seen"].items()}

    def _update(self, network: str, side: str, turn: Callable[..., Any], batch: Any) -> Tensor:
        buffers = buffers_of(self.pair)  # a forward pass changes batch norms' and spectral norms'
        loss, watched = turn(self.loss, *batch)
        parameters = self._parameters[network]
        gradients = torch.autograd.grad(loss, [p for _, p in parameters], allow_unused=True)
        norm = get_total_norm([g for g in gradients if g is not None])
        if not (loss.isfinite() and norm.isfinite()):
            with torch.no_grad():
                for buffer in buffers:
                    buffer.give_back()
            raise FloatingPointError(self._explain(network, loss, gradients))
        self.optimizers[network].zero_grad()
        for (_, parameter), gradient in zip(parameters, gradients, strict=True):
            parameter.grad = laid_out(gradient, parameter)
        self.optimizers[network].step()
        self.optimizers[network].zero_grad(set_to_none=True)
        self._watch({f"{side}_loss": loss.detach(), f"{side}_gradient_norm": norm, **watched})
        return loss.detach()

    def _watch(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            count = self._seen[name] = self._seen.get(name, 0) + 1
            self.monitors[name] = torch.lerp(self.monitors.get(name, value), value, 1 / min(count, MEMORY))

    def _explain(self, network: str, loss: Tensor, gradients: Any) -> str:
        named = zip(self._parameters[network], gradients, strict=True)
        bad = [name for (name, _), gradient in named if gradient is not None and not gradient.isfinite().all()]
        what = f"the {network}'s loss is {loss.item()}"
        if loss.isfinite():
            what = f"the {network}'s gradient is not finite" + (f", first at {bad[0]}" if bad else " in norm")
        return (
            f"Step {self.num_steps:,}: {what}. That update was not made, and the model is as it was before it. Likely "
            "causes: a learning rate too large, a critic whose slope is not bounded (adversarial.wasserstein_gp and "
            "nn.spectrally_normalized bound it), or data of an unexpected range."
        )
