"""What an estimate must not depend on: how the work is divided, and for how many data a plate says that these stand."""

from __future__ import annotations

import math
import os
import socket
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppgen import models
from ppgen.check.exact import drawn, neural
from ppgen.check.rung import Change, Rung, unchanged
from ppgen.inference import log_likelihood
from ppgen.inference.execution.distributed import processes
from ppgen.models import Custom
from ppgen.pair import data_plate

__all__ = ["chunking", "num_processes", "plate_scale"]


def chunking() -> Rung:
    """The same values in slices of one sample, and for the first data alone."""
    vae = neural()
    x = drawn(vae, 250)
    whole = log_likelihood(vae, x, num_samples=1000).values
    sliced = log_likelihood(vae, x, num_samples=1000, memory=1).values
    part = log_likelihood(vae, x[:200], num_samples=1000).values
    difference = max((whole - sliced).abs().max().item(), (whole[:200] - part).abs().max().item())
    return Rung("size of batches and slices", "largest difference (nats)", difference, 1e-4)


def _shared(rank: int, port: int, threads: int, vae: models.VAE, x: Tensor, results: Any) -> None:
    torch.set_num_threads(threads)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    with processes(timeout=60.0) as group:
        values = log_likelihood(vae, x, num_samples=500).values
    if group.leads:
        results.put(values.tolist())


def num_processes(change: Change = unchanged) -> Rung:
    """Two processes give the values of one, for what they are given."""
    vae = neural()
    x = drawn(vae, 250)
    alone = log_likelihood(vae, x, num_samples=500).values
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (port, torch.get_num_threads(), vae, change(x), results)
    workers = [context.Process(target=_shared, args=(rank, *given)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    failed = any(worker.exitcode != 0 for worker in workers)
    difference = math.nan if failed else (alone - torch.tensor(results.get(), dtype=torch.float64)).abs().max().item()
    return Rung("number of processes", "largest difference of two from one (nats)", difference, 0.0)


def plate_scale() -> Rung:
    """A plate that says that these are 64 of 60,000 data changes nothing."""

    def pair(total: int | None) -> Custom:
        def model(x: Tensor) -> None:
            with _plate(x, total):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x: Tensor) -> None:
            with _plate(x, total):
                pyro.sample("z", dist.Normal(x / 2, 1.0))

        return Custom(model, guide)

    x = torch.randn(64)
    one, other = (log_likelihood(pair(total), x, num_samples=200).values for total in (None, 60_000))
    return Rung("a plate's subsampling scale", "largest difference (nats)", (one - other).abs().max().item(), 1e-5)


def _plate(x: Tensor, total: int | None) -> Any:
    return data_plate(x) if total is None else pyro.plate("data", total, subsample=torch.arange(len(x)), dim=-1)
