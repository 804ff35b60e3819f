r"""Log weights of blocks of data at the speed of the matrix product.

A cell of noise is drawn by the guide at once, and the model scores it in slices of few samples, as many as a budget of
memory allows. Where there is enough to do, both programs are written down as graphs of tensor operations: what depends
on no noise (an encoder's work, the components of a VampPrior) is then computed once for each block of data, and the
rest is compiled where that pays. A program that no graph can hold runs in eager, with the same numbers up to rounding.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ppgen.inference.execution.graphs import CannotTrace, Graph, trace, twice
from ppgen.inference.programs.refusals import check_rows_of_plate
from ppgen.inference.programs.seeds import seeded
from ppgen.inference.programs.structure import Structure
from ppgen.inference.programs.traces import PARTICLES, device_of_batch, num_rows, run_guide, run_model
from ppgen.inference.programs.weights import log_joint, log_proposal, weigh
from ppgen.pair import Pair

__all__ = ["Weigher"]

log = logging.getLogger(__name__)

# Bytes that scoring a slice of samples may hold: on a CPU what stays in its caches, beyond which it waits for memory.
MEMORY = {"cpu": 2**23, "cuda": 2**30}
# Bytes of results from which a program is traced (a second of work or so), and from which it is compiled (some minutes:
# the compiler takes ten seconds or more, and saves a fifth).
WORTH_TRACING = {"cpu": 2**32, "cuda": 2**37}
WORK_WORTH_COMPILING = {"cpu": 2**37, "cuda": 2**42}

Function = Callable[..., Sequence[Tensor]]
Program = Callable[[int, Sequence[Any], Sequence[Tensor]], list[Tensor]]


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is no more memory, on a GPU or on the CPU."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(
        text in str(error) for text in ("can't allocate memory", "not enough memory")
    )


class Weigher:
    """Log weights of a pair for blocks of data, each in cells of samples.

    How the work is done (slices, graphs, compiled code) follows from the pair, the shapes and the amount of work, never
    from the clock, so that the same call gives the same bits.

    Args:
        pair: anything with ``.model`` and ``.guide``, in eval mode.
        structure: what a first run showed of it.
        block: the first block of data.
        num_data: N, rows of all blocks together.
        num_samples: S.
        cell_samples: samples of a cell.
        compile: whether to compile; by the amount of work if None.
        memory: bytes that scoring may hold, as far as one sample of a block of data fits into it.
    """

    def __init__(
        self,
        pair: Pair,
        structure: Structure,
        block: Sequence[Any],
        *,
        num_data: int,
        num_samples: int,
        cell_samples: int,
        compile: bool | None = None,
        memory: int | None = None,
    ) -> None:
        self.pair, self.structure, self.compile = pair, structure, compile
        self.block_rows, self.num_data = num_rows(block), num_data
        self.cell_samples, self.num_samples = min(cell_samples, num_samples), num_samples
        self.reason: str | None = None  # why a program is not traced or not compiled
        self._parts: dict[Any, _Part | None] = {}
        self._latents: list[_Latent] = []
        on_cuda = any(m.is_cuda for m in block if isinstance(m, Tensor))
        self._device = "cuda" if on_cuda else "cpu"
        self.slice_samples, self.bytes_per_draw = self.cell_samples, 0.0
        if structure.random:
            allowed = MEMORY[self._device] if memory is None else memory
            self._rehearse(block)
            few, more = (self._footprint(block, size) for size in (2, 4))
            self.bytes_per_draw = (more.written - few.written) / 2 / self.block_rows
            fitting = max(2 * allowed // max(more.peak - few.peak, 1), 1)
            divisors = (n for n in range(1, self.cell_samples + 1) if self.cell_samples % n == 0)
            self.slice_samples = max(n for n in divisors if n <= fitting)

    def bind(self, block: Sequence[Any]) -> Callable[[int], Tensor]:
        """The log weights of a block, as a function of the number of samples s in a cell: shape (s, N).

        One sample is weighed in eager first, so that whatever is wrong with the block or the pair is said by Pyro and
        by :mod:`ppgen.inference.programs.refusals`, which graphs leave out.
        """
        rehearsed = self._rehearse(block)
        if not self.structure.random:  # every sample would be the same
            return lambda size: rehearsed.expand(size, -1)
        block = [m.contiguous() if isinstance(m, Tensor) else m for m in block]  # compiled code takes one order alone
        reason = self.reason
        parts = self._parts_of(block)
        if self.reason != reason:  # one of the two programs cannot be traced, so both run in eager
            parts = self._parts_of(block)

        def cell(size: int) -> Tensor:
            nonlocal parts
            log_q, *values = parts[0][size]()
            while True:
                scores = parts[1]
                try:
                    return torch.cat([scores[n](*at)[0] for n, at in self._slices(values, size)]) - log_q
                except (RuntimeError, MemoryError) as error:
                    self._shrink(error)
                parts = self._parts_of(block)  # the draws stay: what was drawn is scored in smaller slices

        return cell

    def _shrink(self, error: Exception) -> None:
        """Slices of half as many samples after memory ran out; raises any other error, and if there is none for one."""
        smaller = [n for n in range(1, self.slice_samples // 2 + 1) if self.cell_samples % n == 0]
        if not out_of_memory(error) or not smaller:
            raise error
        log.warning("Memory ran out at %d samples at a time: goes on with %d.", self.slice_samples, smaller[-1])
        self.slice_samples = smaller[-1]
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def _rehearse(self, block: Sequence[Any]) -> Tensor:
        """The log weights of one sample, in eager and with all checks."""
        log_w = weigh(self.pair.model, self.pair.guide, block, 1, self.structure).log_weights
        self._num_rows = log_w.shape[1]
        check_rows_of_plate(self._num_rows, block)
        return log_w

    def _parts_of(self, block: Sequence[Any]) -> tuple[dict[int, Function], dict[int, Function]]:
        """The guide for every size of a cell, and the model for every size of a slice."""
        draws: dict[int, Function] = {}
        scores: dict[int, Function] = {}
        for size in {self.cell_samples, self.num_samples % self.cell_samples or self.cell_samples}:
            for n in {min(self.slice_samples, size - start) for start in range(0, size, self.slice_samples)}:
                scores[n] = scores.get(n) or self._part(self._score, block, n, partial(self._slice, block, n))
            draws[size] = self._part(self._draw, block, size, list)
        return draws, scores

    def _slice(self, block: Sequence[Any], size: int) -> list[Tensor]:
        """Latents of so many samples."""
        return self._slices(self._draw(size, block, [])[1:], size)[0][1]

    def _slices(self, values: Sequence[Tensor], size: int) -> list[tuple[int, list[Tensor]]]:
        """The latents of a cell in slices, each with its number of samples."""
        found = []
        for start in range(0, size, self.slice_samples):
            n = min(self.slice_samples, size - start)
            at = [
                v if latent.axis is None else v.narrow(latent.axis, start, n).contiguous()
                for v, latent in zip(values, self._latents, strict=True)
            ]
            found.append((n, at))
        return found

    def _draw(self, size: int, block: Sequence[Any], given: Sequence[Tensor]) -> list[Tensor]:
        """Log q(z | x), (size, N), and the latents, as the guide draws them for a cell."""
        nesting = self.structure.nesting
        guide_trace = run_guide(
            self.pair.guide, block, num_particles=size, nesting=nesting, observed=self.structure.observed
        )
        drawn = {
            name: site  # what is observed, or said to be deterministic, is nothing to replay
            for name, site in guide_trace.nodes.items()
            if site["type"] == "sample" and name != PARTICLES and not site["is_observed"]
        }
        self._latents = [_Latent.of(name, site, nesting) for name, site in drawn.items()]
        log_q = log_proposal(guide_trace, nesting, (size, self._num_rows))[0]
        assert log_q is not None  # a random guide has a site
        return [log_q, *(site["value"] for site in drawn.values())]

    def _score(self, size: int, block: Sequence[Any], values: Sequence[Tensor]) -> list[Tensor]:
        """Log p(x, z), (size, N), at latents that were drawn."""
        proposal = poutine.Trace()
        for latent, value in zip(self._latents, values, strict=True):
            proposal.add_node(latent.name, **latent.site, value=value)
        nesting, enumerated = self.structure.nesting, self.structure.enumerated
        model_trace = run_model(
            self.pair.model, proposal, block, num_particles=size, nesting=nesting, enumerate_model=enumerated
        )
        return [log_joint(model_trace, proposal.nodes, nesting, (size, self._num_rows))]

    def _part(
        self, program: Program, block: Sequence[Any], size: int, example: Callable[[], Sequence[Tensor]]
    ) -> Function:
        """One of the two programs for a block and this many samples: a graph where that pays, else as it is."""

        def function(*tensors: Any) -> list[Tensor]:
            return program(size, tensors[: len(block)], tensors[len(block) :])

        traced, compiled = self._pays(program == self._draw, size, num_rows(block))
        if self.reason is None and (traced or compiled):
            shapes = [(m.shape, m.dtype) if isinstance(m, Tensor) else None for m in block]
            key = (program.__name__, size, *shapes)
            if key not in self._parts:
                self._parts[key] = self._made(function, block, example(), size, compiled)
            if (part := self._parts[key]) is not None:
                return part.bind(block)
        return partial(function, *block)

    def _pays(self, draws: bool, size: int, rows: int) -> tuple[bool, bool]:
        """Whether it pays to trace a program for this many samples and rows, and whether to compile it."""
        blocks = self.num_data // self.block_rows if rows == self.block_rows else 1
        cells, rest = divmod(self.num_samples, self.cell_samples)
        samples = size  # that are done by calls of this size, in each block
        if draws:
            samples *= cells if size == self.cell_samples else 1
        elif size == self.slice_samples:
            samples *= cells * (self.cell_samples // size) + rest // size
        work = self.bytes_per_draw * samples * rows * blocks
        asked = self.compile is True and rows == self.block_rows and size in (self.cell_samples, self.slice_samples)
        compiled = asked or (self.compile is None and work >= WORK_WORTH_COMPILING[self._device])
        return work >= WORTH_TRACING[self._device], compiled

    def _made(
        self, function: Function, block: Sequence[Any], given: Sequence[Tensor], size: int, compiled: bool
    ) -> _Part | None:
        """A part that gives what eager gives; None, and said once if it was to be compiled, where there is none."""
        try:
            if not all(isinstance(member, Tensor) for member in block):
                raise CannotTrace("a member of the batch is no tensor")
            return _Part(function, block, given, size, compiled)
        except CannotTrace as error:
            if self.reason is None and (compiled or self.compile):
                log.warning("This pair is evaluated in eager, not compiled: %s.", error)
            self.reason = str(error)
            return None

    def _footprint(self, block: Sequence[Any], size: int) -> _Footprint:
        """What the model allocates while it scores this many samples of a block."""
        values = self._draw(size, block, [])[1:]
        with _Footprint() as footprint:
            self._score(size, block, values)
        return footprint


class _Latent(NamedTuple):
    """What replaying a site of the guide takes besides its value."""

    name: str
    site: dict[str, Any]
    axis: int | None  # of the particles, counted from the right; None where all share the value

    @classmethod
    def of(cls, name: str, site: Any, nesting: int) -> _Latent:
        own = not site_is_subsample(site) and any(frame.name == PARTICLES for frame in site["cond_indep_stack"])
        kept = {key: site[key] for key in ("name", "type", "is_observed", "infer")}
        return cls(name, kept, -1 - nesting - len(site["fn"].event_shape) if own else None)


class _Part:
    """A function of a block and of what changes within it, whose part that depends on the block alone runs once.

    Raises:
        CannotTrace: no graph holds the function, the compiler fails, or the results are not those of eager.
    """

    def __init__(
        self, function: Function, block: Sequence[Tensor], given: Sequence[Tensor], size: int, compiled: bool
    ) -> None:
        graph = twice(partial(trace, function), [*block, *given])
        self.held, self.num_outputs = graph.held, graph.num_outputs
        self.outer, inner = _split(graph.module, len(block), len(given), size)
        inputs = [*block, *given, *self.held, *self.outer(*block, *given, *self.held)]
        self.inner = Graph(inner).compile(inputs) if compiled else inner
        self.given = given
        results = []
        for run in (self.bind(block), partial(function, *block)):
            with seeded(0, device_of_batch(block)):
                results.append(run(*given))
        for found, wanted in zip(*results, strict=True):
            if not torch.allclose(found.double(), wanted.double(), rtol=1e-4, atol=1e-3, equal_nan=True):
                raise CannotTrace("its results are not those of eager")

    def bind(self, block: Sequence[Tensor]) -> Function:
        """The function of the rest, with all done that depends on the block alone."""
        carried = self.outer(*block, *self.given, *self.held)
        return lambda *given: self.inner(*block, *given, *self.held, *carried)[: self.num_outputs]


def _split(module: fx.GraphModule, num_block: int, num_given: int, size: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A graph in two: what depends neither on noise nor on what is given later, and the rest.

    The first has the inputs of the whole; the second, besides, the results of the first behind them. What spreads over
    an axis of the samples is left to the second: it costs nothing there, and memory if it is kept.
    """
    nodes = list(module.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    early = set(inputs[:num_block] + inputs[num_block + num_given :])
    if not any(_mutates(node) for node in nodes):
        for node in nodes:
            fixed = early.issuperset(node.all_input_nodes) and torch.Tag.nondeterministic_seeded not in _tags(node)
            if node.op == "call_function" and fixed and not _spreads(node, size):
                early.add(node)
    early.difference_update(inputs)
    outer, inner = fx.Graph(), fx.Graph()
    first = {node: outer.placeholder(node.name) for node in inputs}
    second = {node: inner.placeholder(node.name) for node in inputs}
    for node in nodes:
        if node in early:
            first[node] = outer.node_copy(node, first.__getitem__)
    carried = [node for node in nodes if node in early and not early.issuperset(node.users)]
    outer.output(tuple(first[node] for node in carried))
    second |= {node: inner.placeholder(f"carried_{node.name}") for node in carried}
    for node in nodes:
        if node.op == "output":
            inner.output(fx.node.map_arg(node.args[0], second.__getitem__))
        elif node.op != "placeholder" and node not in early:
            second[node] = inner.node_copy(node, second.__getitem__)
    return fx.GraphModule(torch.nn.Module(), outer), fx.GraphModule(torch.nn.Module(), inner)


def _tags(node: fx.Node) -> Sequence[Any]:
    return getattr(node.target, "tags", ())


def _mutates(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False)


def _spreads(node: fx.Node, size: int) -> bool:
    """Whether an axis of the samples appears here."""
    shapes = [getattr(each.meta.get("val"), "shape", ()) for each in (node, *node.all_input_nodes)]
    return size > 1 and size in shapes[0] and not any(size in shape for shape in shapes[1:])


class _Footprint(TorchDispatchMode):
    """Bytes that a program writes as results of its operations, and how many of them live at once at most."""

    def __init__(self) -> None:
        super().__init__()
        self.written = self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = [t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        out = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, Tensor)):
            if not any(storage._cdata == other._cdata for other in known):
                size = storage.nbytes()
                self.written += size
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, size)
        return out

    def _free(self, size: int) -> None:
        self.live -= size
