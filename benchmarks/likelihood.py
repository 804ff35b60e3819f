"""Importance-sampled likelihoods: the share of the matrix product's peak that is reached, and the time against pythae.

    python benchmarks/likelihood.py --threads 1

The reference: a VAE 784-300-300-40, Bernoulli, 100 data and 5000 samples each, 337 GFLOP of matrix products in the
decoder. Cells of 250 samples take turns with ``torch.mm`` of 1024 x 1024 in float32, on the same threads, and the
median of the ratios of neighbours counts, so that a busy machine disturbs both alike. All that a block of data costs is
timed but tracing and compiling, which are done once for all blocks and reported apart.

pythae's ``get_nll`` (where pythae can be imported) evaluates single data in turns with those blocks: the same networks,
the same number of samples, its own batch size. It builds the graph of gradients unless told not to: both are timed.

With --device cuda, 10,000 data of 5000 samples are timed as one call. Results are kept by threads and device in
results/likelihood.json beside this script unless --out names another file.
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from record import VERSIONS, machine, write
from timing import seconds
from torch import Tensor
from torch.nn import Module

from ppgen import decoders, models, nn, posteriors, priors
from ppgen.inference import log_likelihood
from ppgen.inference.evaluation.likelihood import CELL_DATA, CELL_SAMPLES
from ppgen.inference.evaluation.psis import TailAccumulator
from ppgen.inference.evaluation.weigher import Weigher
from ppgen.inference.programs.modes import evaluating
from ppgen.inference.programs.structure import measure

RESULTS = Path(__file__).parent / "results" / "likelihood.json"
LATENT, HIDDEN, DATA = 40, 300, 784
FLOPS = 2 * (LATENT * HIDDEN + HIDDEN * HIDDEN + HIDDEN * DATA)  # of the decoder, per sample and datum
SIDE = 1024  # of the matrices whose product is the peak
NOT_MEASURED = "not measured"


def reference() -> models.VAE:
    torch.manual_seed(0)
    encoder = posteriors.DiagNormal(nn.MLP(DATA, HIDDEN, HIDDEN, 2 * LATENT))
    decoder = decoders.Bernoulli(nn.MLP(LATENT, HIDDEN, HIDDEN, DATA))
    return models.VAE(priors.StandardNormal(LATENT), decoder, encoder)


class Block:
    """A block of data, evaluated as :func:`log_likelihood` evaluates it, cell by cell."""

    def __init__(self, vae: models.VAE, x: Tensor, num_samples: int, compile: bool) -> None:
        self.num_samples = num_samples
        settings = {"num_data": len(x), "num_samples": num_samples, "cell_samples": CELL_SAMPLES}
        weigher = Weigher(vae, measure(vae.model, vae.guide, x), [x], compile=compile, **settings)
        self.setup = seconds(lambda: weigher.bind([x]))
        self.cell, self.tail = weigher.bind([x]), TailAccumulator(num_samples)
        self.reason = weigher.reason

    def one(self) -> None:
        """One cell."""
        self.tail.add(self.cell(CELL_SAMPLES))

    def whole(self) -> Tensor:
        """All cells, to the log-likelihoods."""
        self.tail = TailAccumulator(self.num_samples)
        for _ in range(self.num_samples // CELL_SAMPLES):
            self.one()
        return self.tail.result().values


def peak_share(blocks: dict[str, Block], num_data: int, repeats: int) -> dict[str, Any]:
    """The speed of each way in matrix products, as a share of that of ``torch.mm`` right before it."""
    a, b, out = (torch.randn(SIDE, SIDE) for _ in range(3))

    def product() -> None:
        for _ in range(8):
            torch.mm(a, b, out=out)

    work, peak_work = FLOPS * CELL_SAMPLES * num_data, 8 * 2 * SIDE**3
    shares: dict[str, list[float]] = {name: [] for name in blocks}
    peaks = []
    for _ in range(repeats):
        for name, block in blocks.items():
            peak = peak_work / seconds(product)
            shares[name].append(work / seconds(block.one) / peak)
            peaks.append(peak / 1e9)
    median = {name: round(statistics.median(values), 3) for name, values in shares.items()}
    return {"peak_gflops": round(statistics.median(peaks), 1), "share_of_peak": median}


def pythae_vae(vae: models.VAE) -> Any:
    """The same networks as a VAE of pythae's."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.net = cast(Module, vae.posterior.net)

        def forward(self, x: Tensor) -> Any:
            loc, log_scale = self.net(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=2 * log_scale)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.net = cast(Module, vae.decoder.net)

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    config = VAEConfig(input_dim=(DATA,), latent_dim=LATENT, reconstruction_loss="bce")
    return VAE(config, Encoder(), Decoder()).eval()


def against_pythae(vae: models.VAE, x: Tensor, block: Block, repeats: int) -> dict[str, Any]:
    try:
        peer = pythae_vae(vae)
    except ImportError as error:
        return {"pythae": f"{NOT_MEASURED}: {error}"}
    times: dict[str, list[float]] = {"ours": [], "pythae": [], "pythae, no_grad": []}

    def theirs(i: int) -> float:
        datum = x[i % len(x)].unsqueeze(0)
        return float(peer.get_nll(datum, n_samples=block.num_samples))  # which is the log-likelihood, despite its name

    for i in range(repeats):
        times["ours"].append(seconds(block.whole) / len(x))
        with torch.enable_grad():
            times["pythae"].append(seconds(partial(theirs, i)))
        times["pythae, no_grad"].append(seconds(partial(theirs, i)))
    values = [theirs(i) for i in range(3)]
    ratio = {
        name: round(statistics.median(b / a for a, b in zip(times["ours"], measured, strict=True)), 1)
        for name, measured in times.items()
        if name != "ours"
    }
    return {
        "milliseconds_per_datum": {name: round(1e3 * statistics.median(v), 2) for name, v in times.items()},
        "log_likelihood_of_three_data": {"ours": block.whole()[:3].mean().item(), "pythae": statistics.mean(values)},
        "times_faster_than": ratio,
    }


def on_a_gpu(vae: models.VAE, num_samples: int) -> dict[str, Any]:
    """10,000 data as one call, the second of two: the compiler's cache is warm."""
    x = torch.bernoulli(torch.full((10_000, DATA), 0.3))

    def call() -> None:
        log_likelihood(vae.cuda(), x, num_samples=num_samples, compile=True)
        torch.cuda.synchronize()

    times = [seconds(call) for _ in range(2)]
    return {"seconds_of_10000_data": {"first": round(times[0], 2), "second": round(times[1], 2)}}


def keep(path: Path, cell: dict[str, Any]) -> None:
    """Puts a result into the file, in the place of the one of the same threads and device."""
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    same = ("device", "threads")
    cells = [c for c in cells if any(c[key] != cell[key] for key in same)] + [cell]
    cells.sort(key=lambda c: [c[key] for key in same])
    about = {
        "what": "importance-sampled log-likelihoods of a VAE 784-300-300-40: share of peak, and time against pythae"
    }
    write(path, about | {"cells": cells})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=5000, help="a multiple of 250")
    parser.add_argument("--repeats", type=int, default=40, help="cells of each way")
    parser.add_argument("--pythae-repeats", type=int, default=5, help="data that pythae evaluates")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.samples % CELL_SAMPLES or args.samples < CELL_SAMPLES:
        parser.error(f"--samples must be a multiple of {CELL_SAMPLES}, got {args.samples}")
    torch.set_num_threads(args.threads)
    vae = reference()
    cell: dict[str, Any] = {"device": args.device, "threads": args.threads, "num_samples": args.samples}
    cell |= {"machine": machine(), "versions": VERSIONS}
    if args.device == "cuda":
        cell |= on_a_gpu(vae, args.samples) if torch.cuda.is_available() else {"seconds_of_10000_data": NOT_MEASURED}
        print(f"10,000 data, {args.samples} samples each, seconds: {cell['seconds_of_10000_data']}")
        return keep(args.out, cell)
    x = torch.bernoulli(torch.full((CELL_DATA, DATA), 0.3))
    with evaluating(vae):
        blocks = {"compiled": Block(vae, x, args.samples, True), "eager": Block(vae, x, args.samples, False)}
        assert blocks["compiled"].reason is None, blocks["compiled"].reason
        cell["seconds_to_trace_and_compile"] = {name: round(block.setup, 2) for name, block in blocks.items()}
        cell |= peak_share(blocks, len(x), args.repeats)
        cell |= against_pythae(vae, x, blocks["compiled"], args.pythae_repeats)
    keep(args.out, cell)
    for name, value in cell.items():
        if name not in ("machine", "versions"):
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
