"""A VampPrior's density by matrix products, against every component written out.

    python benchmarks/vamp_prior.py --threads 1

Values in 40 dimensions under 500 diagonal Gaussian components (and fewer and more, for how the cost grows). Ours
expands the quadratic form into a matrix product in double precision; torch's ``MixtureSameFamily`` forms a tensor of
values x components x dimensions in float32. The two take turns and medians count. Ours is compared with the whole sum
written out in double precision, once with means near zero and once with means 300 standard deviations away, where
float32 has nothing left of squares. Results go to results/vamp_prior.json beside this script unless --out names another
file.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from record import VERSIONS, machine, write
from timing import seconds
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from ppgen.distributions import Mixture

RESULTS = Path(__file__).parent / "results" / "vamp_prior.json"
DIM = 40


def densities(num_components: int, offset: float) -> tuple[Mixture, Callable[[Tensor], Tensor], Callable[..., Tensor]]:
    """A mixture of ours, torch's, and the sum in double precision."""
    generator = torch.Generator().manual_seed(0)
    loc = offset + torch.randn(num_components, DIM, generator=generator)
    scale = 0.2 + torch.rand(num_components, DIM, generator=generator)
    logits = torch.zeros(num_components)
    components = Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
    theirs = MixtureSameFamily(Categorical(logits=logits), components, validate_args=False)
    double = Independent(Normal(loc.double(), scale.double()), 1)
    exact = MixtureSameFamily(Categorical(logits=logits.double()), double, validate_args=False)
    return Mixture(logits, components, validate_args=False), theirs.log_prob, lambda z: exact.log_prob(z.double())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=2500)
    parser.add_argument("--components", type=int, nargs="+", default=[50, 100, 200, 500, 1000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    z = torch.randn(args.values, DIM)
    about = {
        "what": "log-densities of a mixture of diagonal Gaussians in 40 dimensions; ratio: torch's time over ours",
        "settings": {"values": args.values, "repeats": args.repeats, "threads": args.threads, "device": "cpu"},
        "machine": machine(),
        "versions": VERSIONS,
    }
    cells = []
    with torch.no_grad():
        for num_components in args.components:
            ours, theirs, _ = densities(num_components, 0.0)
            times = [
                (seconds(partial(ours.log_prob, z)), seconds(partial(theirs, z))) for _ in range(args.repeats)
            ]  # in turns
            errors = {}
            for name, offset in (("near", 0.0), ("far", 300.0)):
                mixture, _, exact = densities(num_components, offset)
                at = z[:200] + offset
                errors[name] = (mixture.log_prob(at).double() - exact(at)).abs().max().item()
            cell = {
                "num_components": num_components,
                "milliseconds_ours": round(1e3 * statistics.median(t[0] for t in times), 2),
                "milliseconds_torch": round(1e3 * statistics.median(t[1] for t in times), 2),
                "largest_error_nats": errors,
                "ratio": round(statistics.median(t[1] / t[0] for t in times), 1),
            }
            cells.append(cell)
            print(
                f"{num_components:5} components: {cell['milliseconds_ours']:8.2f} ms against "
                f"{cell['milliseconds_torch']:8.2f}; error {errors['near']:.1e} nats near zero, {errors['far']:.1e} "
                f"far away; {cell['ratio']:.1f} times faster",
                flush=True,
            )
    write(args.out, about | {"cells": cells})


if __name__ == "__main__":
    main()
