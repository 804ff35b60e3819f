r"""A guide whose draws are shifted and scaled, datum by datum, in unconstrained coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import biject_to

from ppgen.distributions.drawn import Drawn
from ppgen.inference.programs.networks import modules_of
from ppgen.inference.programs.seeds import seeded
from ppgen.inference.programs.traces import delta_of, mask_of, support
from ppgen.pair import Pair

__all__ = ["Coordinates", "Move", "Moved", "Repaired", "moves"]


class Coordinates(NamedTuple):
    """The unconstrained coordinates of a distribution's events."""

    transform: Any
    event_dim: int  # of the coordinates
    independent: int  # event axes over which the log-determinant is yet to be summed

    @classmethod
    def of(cls, fn: Any) -> Coordinates:
        transform = biject_to(support(fn))
        independent = fn.event_dim - transform.codomain.event_dim
        return cls(transform, independent + transform.domain.event_dim, independent)

    def log_det(self, u: Tensor, z: Tensor) -> Tensor:
        return sum_rightmost(self.transform.log_abs_det_jacobian(u, z), self.independent)


class Moved(TorchDistribution):
    """A distribution shifted and scaled about its centre, in unconstrained coordinates."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base: Any, shift: Tensor, scale: Tensor, center: Tensor | None = None) -> None:
        self.base, self.shift, self.scale = base, shift, scale
        self.coordinates = Coordinates.of(base)
        self.center = self._center() if center is None else center
        self._drawn = Drawn()
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def _center(self) -> Tensor:
        """The mean, or where none is known the median of some draws: any point would be right."""
        inverse = self.coordinates.transform.inv
        with torch.no_grad():
            try:
                center = inverse(self.base.mean)
            except (NotImplementedError, AttributeError):
                with seeded(0, self.shift.device):
                    center = inverse(self.base.sample((101,))).median(0).values
            return torch.where(center.isfinite(), center, 0.0)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch declares a class attribute
        return self.base.has_rsample

    @property
    def support(self) -> Any:
        return support(self.base)

    @property
    def _mask(self) -> Any:
        return mask_of(self.base)

    @property
    def mean(self) -> Tensor:
        """The centre, moved; exact on the real line."""
        return self.coordinates.transform(self.center + self.shift)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Moved:
        return Moved(self.base.expand(torch.Size(batch_shape)), self.shift, self.scale, self.center)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self._push(self.base.rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self._push(self.base.sample(torch.Size(sample_shape)))

    def _push(self, z: Tensor) -> Tensor:
        to_value = self.coordinates.transform
        value = to_value(self.center + self.shift + self.scale * (to_value.inv(z) - self.center))
        self._drawn.keep(value, z)  # flows score what they drew without an inverse
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        to_value = self.coordinates.transform
        moved = to_value.inv(value)
        u = self.center + (moved - self.center - self.shift) / self.scale
        (z,) = self._drawn.of(value) or (to_value(u),)
        stretch = sum_rightmost(self.scale.log().expand(u.shape), self.coordinates.event_dim)
        log_det = self.coordinates.log_det(u, z) - self.coordinates.log_det(moved, value)
        return self.base.log_prob(z) + log_det - stretch


def moves(site: Any) -> bool:
    """Whether a site of the guide can be moved: a draw that is continuous."""
    if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
        return False
    return delta_of(site) is None and not support(site["fn"]).is_discrete


class Move(Messenger):
    """Moves the continuous draws of a guide: by a scale for all of a datum's, or by shifts and scales of each site."""

    def __init__(self, scale: Tensor | None = None, sites: dict[str, tuple[Tensor, Tensor]] | None = None) -> None:
        super().__init__()
        self.scale, self.sites = scale, sites or {}

    def _pyro_sample(self, msg: Any) -> None:
        if not moves(msg):
            return
        if (own := self.sites.get(msg["name"])) is not None:
            msg["fn"] = Moved(msg["fn"], own[0], own[1].exp())
        if self.scale is not None:
            axes = (1,) * Coordinates.of(msg["fn"]).event_dim
            msg["fn"] = Moved(msg["fn"], torch.zeros_like(self.scale[:1]), self.scale.reshape(-1, *axes))


class Repaired:
    """A pair of batches ``(x, *y)`` as one of batches ``(x, *moves, *y)``, whose guide is moved."""

    def __init__(self, pair: Pair, num_moves: int, move: Callable[..., Messenger]) -> None:
        self._model, self._guide = pair.model, pair.guide
        self._num_moves, self._move = num_moves, move
        self.modules = nn.ModuleList(modules_of(pair))

    def model(self, x: Any, *rest: Any) -> Any:
        return self._model(x, *rest[self._num_moves :])

    def guide(self, x: Any, *rest: Any) -> Any:
        with self._move(*rest[: self._num_moves]):
            return self._guide(x, *rest[self._num_moves :])
