r"""The way from a density that can be sampled to the joint density of a pair, over unconstrained coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from ppgen.inference.programs.refusals import check_rows_of_plate, check_weighable
from ppgen.inference.programs.repeated import Given, Repeated
from ppgen.inference.programs.structure import check_whole, measure, programs
from ppgen.inference.programs.traces import is_point, log_prob, num_rows, per_datum, run, sites, support
from ppgen.pair import Pair

__all__ = ["Path"]

Start = Literal["guide", "prior"]


def _nothing(*batch: Any) -> None:
    """The guide of chains that start from the prior."""


class _Chart(NamedTuple):
    """How the values of one latent site become rows of real numbers."""

    transform: Any
    shape: torch.Size  # of the unconstrained value, particles first


class Path:
    r"""Log-densities of a start and of the joint, at flat unconstrained coordinates of all latents of a block of data.

    Each site's value is :math:`z = T(u)` with ``biject_to(support)``; both densities are those of u, with the
    logarithm of the Jacobian in them. Coordinates are (C, N, D): chains, data, and all numbers of all sites.

    Args:
        pair: the model and the guide.
        batch: a block of data.
        start: whether the guide or the prior proposes where chains begin.

    Raises:
        ValueError: a discrete latent, a latent outside the data plate, a support that cannot be mapped to the real
            line or that moves with another latent, or a guide whose density at a foreign value is not known.
    """

    def __init__(self, pair: Pair, batch: Sequence[Any], start: Start) -> None:
        guide = pair.guide if start == "guide" else _nothing
        self.batch, self.start = batch, start
        structure = measure(pair.model, guide, *batch)
        check_whole(structure, "the likelihood")
        self.model, self.guide = programs(pair.model, guide, structure)
        self.nesting = structure.nesting
        self.fixed: dict[str, Tensor] = {}  # what is drawn but is no latent: a plate's subsample
        self.charts: dict[str, _Chart] = {}

    def draw(self, num_chains: int) -> Tensor:
        """Where chains begin, drawn from the start: (C, N, D)."""
        return self._settle({}, num_chains)

    def place(self, latents: Mapping[str, Any], num_chains: int) -> Tensor:
        """All chains at the values of given sample sites that a run of the model without chains left."""
        values = {}
        for name, site in latents.items():
            value = site["value"]
            missing = self.nesting - (value.dim() - site["fn"].event_dim)
            value = value.reshape((1,) * missing + value.shape)
            values[name] = value.expand(num_chains, *value.shape)
        return self._settle(values, num_chains)

    def _run(self, values: Mapping[str, Tensor], num_chains: int) -> tuple[poutine.Trace, poutine.Trace]:
        with Given({**self.fixed, **values}, self.model, num_chains, num_rows(self.batch), self.nesting):
            return run(self.model, self.guide, self.batch, num_particles=num_chains, nesting=self.nesting)

    def _settle(self, values: Mapping[str, Tensor], num_chains: int) -> Tensor:
        model_trace, guide_trace = self._run(values, num_chains)
        found = sites(model_trace)
        latents = {name: site for name, site in found.items() if not site["is_observed"]}
        self._check(model_trace, guide_trace, latents)
        if values and set(values) != set(latents):
            raise ValueError(
                f"The model draws {sorted(values)} beside the observation when it is run without data, and "
                f"{sorted(latents)} when it is run with it: both must be the same."
            )
        self.fixed = {n: torch.as_tensor(s["value"]) for n, s in model_trace.nodes.items() if _subsampled(s)}
        self.charts, parts = {}, []
        for name, site in latents.items():
            z = site["value"].detach()
            transform = _transform(name, support(site["fn"]), z.dim(), isinstance(self.model, Repeated))
            u = transform.inv(z)
            self.charts[name] = _Chart(transform, u.shape)
            parts.append(u.movedim(self.nesting, 1).reshape(u.shape[0], u.shape[self.nesting], -1))
        return torch.cat(parts, -1)

    def _check(self, model_trace: poutine.Trace, guide_trace: poutine.Trace, latents: Mapping[str, Any]) -> None:
        if not latents:
            raise ValueError("The model has no latents, so there is nothing to anneal: log_likelihood is exact for it.")
        for name, site in latents.items():
            if site["infer"].get("enumerate") == "parallel" or support(site["fn"]).is_discrete:
                raise ValueError(
                    f"The latent {name!r} is discrete, and chains move along gradients, which it has none of. Use "
                    "log_likelihood, which sums over latents marked infer={'enumerate': 'parallel'} exactly."
                )
        proposed = sites(guide_trace)
        num_data = check_weighable(model_trace, guide_trace, () if self.start == "guide" else list(latents))
        check_rows_of_plate(num_data, self.batch)
        unknown = [
            name
            for name, site in proposed.items()
            if name not in latents or is_point(site) or isinstance(site["fn"], Delta)
        ]
        if unknown:
            raise ValueError(
                f"The guide's sites {unknown} are auxiliary or take their value from elsewhere, so its density at "
                "another value is not known: begin with start='prior'."
            )

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Of the start and of the joint at coordinates (C, N, D): (C, N) each, in float64."""
        num_chains, num_data, _ = u.shape
        jacobian: Tensor = u.new_zeros((), dtype=torch.float64)
        values, offset = {}, 0
        for name, (transform, shape) in self.charts.items():
            inner = torch.Size((num_chains, num_data, *shape[1 : self.nesting], *shape[self.nesting + 1 :]))
            size = inner[2:].numel()
            part = u[..., offset : offset + size].reshape(inner).movedim(1, self.nesting)
            offset += size
            values[name] = transform(part)
            log_det = transform.log_abs_det_jacobian(part, values[name]).double()
            jacobian = jacobian + log_det.movedim(self.nesting, 1).reshape(num_chains, num_data, -1).sum(-1)
        model_trace, guide_trace = self._run(values, num_chains)
        terms: dict[str, list[Tensor]] = {"latent": [], "observed": [], "guide": []}
        for name, site in sites(model_trace).items():
            term = per_datum(log_prob(site), self.nesting, num_chains, num_data).double()
            terms["latent" if name in self.charts else "observed"].append(term)
        for site in sites(guide_trace).values():
            terms["guide"].append(per_datum(log_prob(site), self.nesting, num_chains, num_data).double())
        prior = torch.stack(terms["latent"]).sum(0) + jacobian
        joint = prior + torch.stack(terms["observed"]).sum(0)
        return (torch.stack(terms["guide"]).sum(0) + jacobian if self.start == "guide" else prior), joint

    def gradient(self, u: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Both log-densities, and the gradient of the density between them at β."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            start, joint = self.log_densities(u)
            (gradient,) = torch.autograd.grad(((1 - beta) * start + beta * joint).sum(), u)
        return start.detach(), joint.detach(), gradient

    def check_gradient(self, u: Tensor) -> None:
        """Makes sure that chains can move.

        Raises:
            ValueError: a log-density that is not differentiable in the latents, or whose gradient is not finite
                wherever a datum's chains begin.
        """
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            for density, what in zip(self.log_densities(u), (f"The {self.start}'s", "The model's joint"), strict=True):
                gradient = None
                if density.requires_grad:
                    (gradient,) = torch.autograd.grad(density.sum(), u, retain_graph=True, allow_unused=True)
                if gradient is None:
                    raise ValueError(
                        f"{what} log-density has no gradient with respect to the latents {list(self.charts)}, and "
                        "chains move along it: is something detached, rounded or computed without torch? "
                        "log_likelihood needs no gradient."
                    )
                if (bad := ~gradient.isfinite().all(-1).any(0)).any():
                    raise ValueError(
                        f"{what} log-density has a gradient that is not finite wherever the chains of datum "
                        f"{int(bad.nonzero()[0])} of its block begin."
                    )


def _subsampled(site: Any) -> bool:
    return site["type"] == "sample" and site_is_subsample(site) and isinstance(site["value"], Tensor)


def _transform(name: str, constraint: Any, dim: int, as_rows: bool) -> Any:
    """The map from the real line to the support of a site whose value has so many axes, the chains' first."""
    inner = constraint
    while hasattr(inner, "base_constraint"):
        inner = inner.base_constraint
    for bound in vars(inner).values():
        if (
            isinstance(bound, Tensor)
            and bound.dim()
            and (as_rows or (bound.dim() == dim and (bound != bound[:1]).any()))
        ):
            raise ValueError(
                f"The support of the latent {name!r} ({type(constraint).__name__}) moves with another latent or a "
                "datum: draw it on a fixed support, whose bounds are numbers, and transform it in the model."
            )
    try:
        return biject_to(constraint)
    except NotImplementedError as error:
        raise ValueError(
            f"The support of the latent {name!r} ({type(constraint).__name__}) has no smooth map to the real "
            "line, and chains need one."
        ) from error
