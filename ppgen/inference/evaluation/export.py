"""What others' tools read: estimates and draws as ArviZ's objects."""

from __future__ import annotations

import inspect
import math
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppgen.inference.evaluation.psis import k_hat_limit
from ppgen.inference.execution.batches import read_once
from ppgen.inference.programs.modes import evaluating
from ppgen.inference.programs.refusals import check_pair
from ppgen.inference.programs.structure import Structure, measure
from ppgen.inference.programs.traces import (
    device_batch,
    frame_of_data,
    is_factor,
    particles,
    run,
    run_guide,
    sites,
)
from ppgen.numbers import positive_integer
from ppgen.pair import Pair

if TYPE_CHECKING:  # an Estimate exports itself through this file
    from ppgen.inference.evaluation.likelihood import Estimate

__all__ = ["elpd_data", "to_arviz"]


def _arviz() -> ModuleType:
    try:
        import arviz
    except ImportError as error:
        raise ImportError("ArviZ is needed for this and is not installed: pip install 'ppgen[arviz]'.") from error
    return arviz


def elpd_data(estimate: Estimate) -> Any:
    """An estimate as ArviZ's ``ELPDData``: log p(x) of each datum, with its k-hat.

    The data were held out, so this is the expected log predictive density itself, and not leave-one-out's estimate of
    it (ArviZ knows only names of such, and calls it ``loo``); the number of parameters ``p`` has no meaning here and is
    NaN. It is made of the marginal p(x), never of p(x | z), from which ``az.loo`` would be wrong by what the latents
    carry. k-hat is −inf for weights without variance, and ``warning`` says that the estimate is a lower bound.

    Raises:
        ImportError: ArviZ is not installed.
    """
    az = _arviz()
    from xarray import DataArray

    values = estimate.values.double()
    n = len(values)
    total = values.sum().item()
    error = math.sqrt(n) * values.std().item() if n > 1 else math.nan
    elpd_i = DataArray(values.numpy(), dims=["data"], coords={"data": range(n)}, name="elpd_i")
    k_hat = DataArray(estimate.k_hat.double().numpy(), dims=["data"], coords={"data": range(n)}, name="pareto_k")
    threshold = k_hat_limit(estimate.num_samples)
    shared = {"n_samples": estimate.num_samples, "n_data_points": n, "warning": estimate.is_lower_bound}
    if int(az.__version__.split(".")[0]) < 1:  # a pandas series
        sums = {"elpd_loo": total, "se": error, "p_loo": math.nan}
        each = {"loo_i": elpd_i.rename("loo_i"), "pareto_k": k_hat, "scale": "log", "good_k": threshold}
        fields = {**sums, **shared, **each}
        return az.ELPDData(data=list(fields.values()), index=list(fields))
    from arviz_stats import utils  # since 1.0: a dataclass; since 1.2 one for every kind

    sums = {"elpd": total, "se": error, "p": math.nan}
    each = {"elpd_i": elpd_i, "pareto_k": k_hat, "scale": "log", "good_k": threshold}
    if hasattr(utils, "ELPDDataLOO"):
        return utils.ELPDDataLOO(**sums, **shared, **each)
    return utils.ELPDData(kind="loo", **sums, **shared, **each)


class _Predicted(Messenger):
    """Draws what a model observes. A factor, which is a number and not an observation, stays as it is."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and tuple(msg["fn"].event_shape) != (0,) and not msg["infer"].get("_deterministic"):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False
            msg["infer"] = {**msg["infer"], "predicted": True}


def to_arviz(pair: Pair, *batch: Any, num_samples: int = 100, seed: int = 0) -> Any:
    r"""Draws of a pair in ArviZ's groups: an ``InferenceData``, or from ArviZ 1.0 on a ``DataTree``.

    ======================== ==========================================================================
    ``posterior``            latents from the guide, z ~ q(z | x); discrete ones that the model sums out
                             from their exact distribution given the others
    ``posterior_predictive`` observations given those, x' ~ p(x | z)
    ``prior``                latents from the model, z ~ p(z)
    ``prior_predictive``     observations given those
    ``observed_data``        what the model observed
    ``constant_data``        the other members of the batch: contexts
    ======================== ==========================================================================

    Variables have the names of the sites, dimensions those of the plates, with one chain of ``num_samples`` draws. All
    rows are drawn at once: give the data that are to be looked at. There is no group of log-likelihoods on purpose:
    ArviZ's ``loo`` would take log p(x | z) for that of a model whose latents are not refitted for every datum. See
    :meth:`Estimate.to_arviz`.

    Args:
        pair: anything with ``.model`` and ``.guide``.
        batch: the data, N rows; a model that draws x step by step predicts each step from the data before it.
        num_samples: draws per datum.
        seed: of the noise.

    Raises:
        ImportError: ArviZ is not installed.
        ValueError: data that is empty or not finite, or a number of draws that is not a positive whole number.

    Example:
        >>> from ppgen import decoders, models, nn, posteriors, priors
        >>> vae = models.VAE(
        ...     priors.StandardNormal(2),
        ...     decoders.Bernoulli(nn.MLP(2, 64)),
        ...     posteriors.DiagNormal(nn.MLP(64, 4)),
        ... )
        >>> dict(to_arviz(vae, torch.rand(5, 64).round(), num_samples=7)["posterior"]["z"].sizes)
        {'chain': 1, 'draw': 7, 'data': 5, 'z_dim_0': 2}
    """
    az = _arviz()
    positive_integer("num_samples", num_samples)
    check_pair(pair)
    rows = read_once(batch, seed)
    with evaluating(pair, seed, "to_arviz"):
        given = device_batch(pair, rows(slice(None)))
        structure = measure(pair.model, pair.guide, *given)
        observed = {n: x for n, x in sites(run(pair.model, pair.guide, given)[0]).items() if _observation(x)}
        groups = _draws(pair, given, structure, num_samples)
    groups["observed_data"] = {name: _named(site, name, structure.nesting, None) for name, site in observed.items()}
    frames = [frame for site in observed.values() if (frame := frame_of_data(site)) is not None]
    data = frames[0].name if frames else "data"
    groups["constant_data"] = {
        f"batch_{i}": (member, [data, *(f"batch_{i}_dim_{k}" for k in range(member.dim() - 1))])
        for i, member in enumerate(given)
        if isinstance(member, Tensor) and not any(_same(member, site["value"]) for site in observed.values())
    }
    taken = {name for group in groups.values() for name in group} | {"chain", "draw"}

    def free(dim: str) -> str:
        return f"{dim}_plate" if dim in taken else dim

    dims = {name: [free(dim) for dim in names] for group in groups.values() for name, (_, names) in group.items()}
    arrays = {
        group: {
            name: (value if "data" in group else value.unsqueeze(0)).cpu().numpy() for name, (value, _) in of.items()
        }
        for group, of in groups.items()
        if of
    }
    settings: dict[str, Any] = {"dims": dims, "coords": {free(data): range(len(rows))}}
    # Before 1.0 the groups are arguments of their own.
    separate = "posterior" in inspect.signature(az.from_dict).parameters
    tree = az.from_dict(**arrays, **settings) if separate else az.from_dict(arrays, **settings)
    if "posterior" in arrays:
        tree["posterior"].attrs["approximation"] = "draws of the guide q(z | x)"
    return tree


Group = dict[str, tuple[Tensor, list[str]]]


def _draws(pair: Pair, given: Any, structure: Structure, num_samples: int) -> dict[str, Group]:
    """The drawn groups; one after the other where the programs do not run under a plate of particles."""
    if structure.vectorized and structure.refused is None:
        return _drawn(pair, given, structure, num_samples)
    passes = [_drawn(pair, given, structure, None) for _ in range(num_samples)]
    return {
        group: {name: (torch.stack([p[group][name][0] for p in passes]), names) for name, (_, names) in found.items()}
        for group, found in passes[0].items()
    }


def _drawn(pair: Pair, given: Any, structure: Structure, num_samples: int | None) -> dict[str, Group]:
    nesting = structure.nesting
    proposed = run_guide(pair.guide, given, num_particles=num_samples, nesting=nesting)
    if structure.enumerated:
        proposed = _with_discrete(pair, proposed, given, num_samples, nesting)
    with particles(num_samples, nesting), _Predicted():
        predictive = sites(poutine.trace(poutine.replay(pair.model, trace=proposed)).get_trace(*given))
        generated = sites(poutine.trace(pair.model).get_trace(*given))
    groups = {
        "posterior": {n: x for n, x in sites(proposed).items() if not (x["is_observed"] or _auxiliary(x))},
        "posterior_predictive": {n: x for n, x in predictive.items() if x["infer"].get("predicted")},
        "prior": {n: x for n, x in generated.items() if not (x["is_observed"] or x["infer"].get("predicted"))},
        "prior_predictive": {n: x for n, x in generated.items() if x["infer"].get("predicted")},
    }
    return {g: {n: _named(site, n, nesting, num_samples) for n, site in found.items()} for g, found in groups.items()}


def _with_discrete(pair: Pair, proposed: Trace, given: Any, num_samples: int | None, nesting: int) -> Trace:
    """What the guide proposed, and the model's enumerated sites from their exact distribution given that."""
    # Not replayed: what is proposed may depend on what is summed out, whose axes a replayed site would not have.
    given_latents = {name: site["value"] for name, site in sites(proposed).items() if not site["is_observed"]}

    def program(*members: Any) -> Any:
        with particles(num_samples, nesting):
            return poutine.condition(pair.model, data=given_latents)(*members)

    left = {n for n, site in sites(poutine.trace(program).get_trace(*given)).items() if not site["is_observed"]}
    if not left - set(proposed.nodes):
        return proposed
    exact = infer_discrete(program, first_available_dim=(-1 if num_samples is None else -2) - nesting, temperature=1)
    together = proposed.copy()
    for name, site in sites(poutine.trace(exact).get_trace(*given)).items():
        if name in left and name not in together:
            together.add_node(name, **site)
    return together


def _observation(site: Any) -> bool:
    return bool(site["is_observed"]) and not is_factor(site)


def _auxiliary(site: Any) -> bool:
    return bool(site["infer"].get("is_auxiliary"))


def _same(member: Tensor, value: Any) -> bool:
    """Whether a site observed a member, as it is or in another shape of the same memory."""
    return isinstance(value, Tensor) and member.numel() == value.numel() and member.data_ptr() == value.data_ptr()


def _named(site: Any, name: str, nesting: int, num_samples: int | None) -> tuple[Tensor, list[str]]:
    """A site's value with draws first, if there are any, then plates, then the event; and the names of the rest."""
    event = len(site["fn"].event_shape)
    value = torch.as_tensor(site["value"])
    axes = nesting if num_samples is None else nesting + 1
    value = value.reshape((1,) * (axes + event - value.dim()) + value.shape)
    plates = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
    if num_samples is not None:
        value = value.expand(num_samples, *value.shape[1:])
    names, unused = [], []
    for axis in range(axes - nesting, value.dim()):
        dim = axis - axes
        if dim < 0 and dim in plates:
            names.append(plates[dim])
        elif dim < 0 and value.shape[axis] == 1:
            unused.append(axis)
        else:
            names.append(f"{name}_dim_{len([n for n in names if n.startswith(f'{name}_dim_')])}")
    return value.squeeze(unused) if unused else value, names
