r"""Distributions of images pixel by pixel: scored in one pass of a network, drawn one pixel after the other."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, validation_enabled
from torch import Tensor
from torch.distributions import Distribution, constraints
from tqdm.auto import tqdm

from ppgen.nn.raster import Computed, Incremental

from .marginal import marginal

# Without gradients, images go through a network in blocks of so many, so that memory does not grow with the draws.
BLOCK = 256


class AutoregressiveImage(TorchDistribution):
    r"""Distribution of an image whose pixels are drawn in raster order, each given those before it.

    .. math:: p(x \mid s) = \prod_{i=1}^{HW} \prod_{c=1}^{C} p(x_{ic} \mid x_{<i}, x_{i,<c}, s)

    ``log_prob`` is one pass of the network over the image. ``sample`` goes pixel by pixel, and computes for each one
    column of the network, whose earlier activations are remembered; ``incremental=False`` runs the whole network for
    every pixel, which draws the same numbers from the same seed and costs H W times as much.

    There is no mean in closed form, and no marginal of some of the pixels.

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016), https://arxiv.org/abs/1601.06759
        Fast Generation for Convolutional Autoregressive Models (Ramachandran et al., 2017),
        https://arxiv.org/abs/1704.06001

    Args:
        output: called as ``output(x, *context)``, the distribution of all pixels given those before them: a decoder of
            images, such as ``decoders.Bernoulli(net)``, of a raster network such as ``nn.GatedPixelCNN``.
        context: what the network takes beside the image, each (\*, \*shape).
        event_shape: of x, if it is another arrangement of the network's (C, H, W): (H, W) for a grid of codes, or a
            vector.
        progress: whether sampling shows a progress bar.

    Shape:
        batch: the contexts' leading axes, event: (C, H, W) or ``event_shape``.

    Example:
        >>> from ppgen import decoders, nn
        >>> net = nn.GatedPixelCNN((1, 5, 5), (1, 5, 5), channels=8, num_layers=2)
        >>> d = AutoregressiveImage(decoders.Bernoulli(net))
        >>> x = d.sample((3,))
        >>> x.shape, d.log_prob(x).shape
        (torch.Size([3, 1, 5, 5]), torch.Size([3]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        output: Any,
        context: Sequence[Tensor] = (),
        event_shape: Sequence[int] | None = None,
        *,
        progress: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.output, self.net = output, output.net
        self.context = tuple(context)
        self.progress = progress
        shape = torch.Size(self.net.in_shape if event_shape is None else event_shape)
        super().__init__(self.net.context.lead(self.context), shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        one = next(self.net.parameters()).new_zeros(self.net.out_shape)
        whole: Any = self.output(Computed(one)).support
        return constraints.independent(whole.base_constraint, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError("An autoregressive distribution has no mean in closed form: average samples instead.")

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> AutoregressiveImage:
        new = AutoregressiveImage(
            self.output, self.context, self.event_shape, progress=self.progress, validate_args=False
        )
        new._batch_shape = torch.Size(batch_shape)
        new._validate_args = self._validate_args
        return new

    def _contexts(self, lead: torch.Size) -> list[Tensor]:
        """The contexts of as many images as there are in ``lead``, each (B, *shape)."""
        shapes = self.net.context.shapes
        return [c.expand(*lead, *s).reshape(-1, *s) for c, s in zip(self.context, shapes, strict=True)]

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.log_prob_of(value, lambda distribution: distribution)

    def log_prob_of(self, value: Tensor, part: Callable[[Any], Any]) -> Tensor:
        """The log-probability of what ``part`` makes of the distribution of all pixels given those before them."""
        lead = torch.broadcast_shapes(self.batch_shape, value.shape[: value.dim() - self.event_dim])
        x = value.expand(*lead, *self.event_shape).reshape(-1, *self.net.in_shape)
        context = self._contexts(lead)
        block = len(x) if torch.is_grad_enabled() else BLOCK
        parts = [
            part(self.output(x[i : i + block], *(c[i : i + block] for c in context))).log_prob(x[i : i + block])
            for i in range(0, len(x), max(block, 1))
        ]
        return torch.cat(parts).reshape(lead) if parts else x.new_zeros(lead)

    def sample(
        self, sample_shape: Sequence[int] = (), *, incremental: bool = True, progress: bool | None = None
    ) -> Tensor:
        """Draws, pixel after pixel.

        Args:
            sample_shape: of independent draws.
            incremental: whether a pixel costs one column of the network; otherwise it costs the whole network.
            progress: whether to show a progress bar; as the distribution has it if not given.
        """
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        x = next(self.net.parameters()).new_zeros(shape)
        return self.draw(x, incremental=incremental, progress=progress)

    @torch.no_grad()
    def draw(
        self, value: Tensor, *, known: Tensor | None = None, incremental: bool = True, progress: bool | None = None
    ) -> Tensor:
        r"""New images in the place of these, of which the pixels that are ``known`` stay as they are.

        What is drawn is seen by later pixels only: it is a draw given all that is known if the known pixels come first.

        Args:
            value: images, (\*, \*event), whose other pixels are ignored.
            known: a boolean tensor (H, W).
            incremental: whether a pixel costs one column of the network; otherwise it costs the whole network.
            progress: whether to show a progress bar; as the distribution has it if not given.
        """
        lead = value.shape[: value.dim() - self.event_dim]
        context = self._contexts(lead)
        x = value.reshape(-1, *self.net.in_shape).clone()
        height, width = self.net.in_shape[1:]
        blocks = range(0, len(x), BLOCK)
        progress = self.progress if progress is None else progress
        # Without checks of parameters, which read values on the host.
        checked = validation_enabled(False)
        with checked, tqdm(total=len(blocks) * height * width, unit="pixel", disable=not progress) as bar:
            for start in blocks:
                stop = slice(start, start + BLOCK)
                block, given = x[stop], [c[stop] for c in context]
                columns = _one_by_one(self.net, block, given) if incremental else _all_at_once(self.net, block, given)
                for i, j, pixel, parameters, done in columns:
                    if known is None or not known[i, j]:
                        done(functools.partial(self._draw_pixel, pixel, parameters))
                    bar.update()
        return x.reshape(value.shape)

    def _draw_pixel(self, pixel: Tensor, parameters: Callable[[Tensor], Tensor]) -> None:
        """Draws a pixel (B, C, 1, 1) in place, its channels one after the other or together, as the network's are."""
        groups = self.net.head.groups
        for c in range(groups):
            drawn = self.output(Computed(parameters(pixel))).sample()
            chosen = slice(c, c + 1) if groups > 1 else slice(None)
            pixel[:, chosen] = drawn[:, chosen]


class MultiScaleImage(TorchDistribution):
    r"""Distribution of an image whose every second pixel, in rows and columns, is drawn first.

    .. math:: p(x) = p(x_{\text{small}}) \prod_{i \notin \text{small}} p(x_i \mid x_{<i}, x_{\text{small}}),
        \qquad x_{\text{small}} = x_{::2, ::2}

    A small image decides what the large one is of, over distances that are half as long for it. The probabilities of
    images sum to 1, since each pixel is drawn once. (Scored alone, the large network's prediction of a pixel that it is
    given would not be a probability of anything.)

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016: Multi-Scale PixelRNN),
        https://arxiv.org/abs/1601.06759

    Args:
        small: distribution of the small images (C, ⌈H/2⌉, ⌈W/2⌉).
        large: from small images, their distribution of the large ones.
        shape: of the large ones, (C, H, W).

    Shape:
        batch: that of ``small``, event: ``shape``.

    Example:
        >>> from ppgen import decoders, nn
        >>> coins = torch.distributions.Bernoulli(torch.full((1, 2, 2), 0.5))
        >>> large = AutoregressiveImage(decoders.Bernoulli(nn.GatedPixelCNN((1, 4, 4), (1, 4, 4))))
        >>> image = MultiScaleImage(torch.distributions.Independent(coins, 3), lambda small: large, (1, 4, 4))
        >>> image.log_prob(image.sample((5,))).shape
        torch.Size([5])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        small: Any,
        large: Callable[[Tensor], AutoregressiveImage],
        shape: Sequence[int],
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.small, self.large = small, large
        known = torch.zeros(tuple(shape)[-2:], dtype=torch.bool)
        known[::2, ::2] = True
        self.known = known
        super().__init__(small.batch_shape, torch.Size(shape), validate_args=validate_args)

    @property
    def support(self) -> Any:
        return self.small.support

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError("An autoregressive distribution has no mean in closed form: average samples instead.")

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> MultiScaleImage:
        new = MultiScaleImage(self.small.expand(batch_shape), self.large, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        small = value[..., ::2, ::2]
        new = ~self.known.to(value.device).expand(self.event_shape)
        rest = self.large(small).log_prob_of(value, lambda distribution: marginal(distribution, new))
        return self.small.log_prob(small) + rest

    def sample(self, sample_shape: Sequence[int] = (), *, incremental: bool = True) -> Tensor:
        own = isinstance(self.small, AutoregressiveImage | MultiScaleImage)
        small = self.small.sample(sample_shape, **({"incremental": incremental} if own else {}))
        x = small.new_zeros(*small.shape[:-3], *self.event_shape)
        x[..., ::2, ::2] = small
        return self.large(small).draw(x, known=self.known, incremental=incremental)


# The place of a pixel, the pixel to be drawn, its parameters given what is known of it, and what does the drawing.
Column = tuple[int, int, Tensor, Callable[[Tensor], Tensor], Callable[[Callable[[], None]], None]]


def _one_by_one(net: Any, x: Tensor, context: Sequence[Tensor]) -> Iterator[Column]:
    """Each pixel from one column of the network; it is drawn in a place that is the same for all, to be replayed."""
    run = Incremental(net, context, len(x))
    drawing = functools.partial(run.again, "drawing")
    for i in range(x.shape[-2]):
        run.row(i, x[:, :, i - 1 : i] if i else None)
        for j in range(x.shape[-1]):
            run.pixel(j, run.drawn if i or j else None)
            here = x[:, :, i : i + 1, j : j + 1]
            run.drawn.copy_(here)
            yield i, j, run.drawn, run.parameters, drawing
            here.copy_(run.drawn)


def _all_at_once(net: Any, x: Tensor, context: Sequence[Tensor]) -> Iterator[Column]:
    """The same from the whole network, every time."""
    for i, j in itertools.product(*map(range, x.shape[-2:])):
        parameters = functools.partial(_parameters, net, x, context, i, j)
        yield i, j, x[:, :, i : i + 1, j : j + 1], parameters, lambda draw: draw()


def _parameters(net: Any, x: Tensor, context: Sequence[Tensor], i: int, j: int, pixel: Tensor) -> Tensor:
    return net(x, *context)[:, :, i : i + 1, j : j + 1]  # the pixel is a part of x
