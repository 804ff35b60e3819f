"""From a function that runs Pyro programs to a graph of tensor operations, and from the graph to machine code.

Pyro's handlers run once, in Python, while ``make_fx`` writes down the tensor operations underneath; inductor compiles
what is left. Everything that such a graph could get wrong in silence is refused here: values read on the host, which
would be baked in, and programs that come out differently each time.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyro
import pyro.infer.trace_elbo
import pyro.infer.trace_mean_field_elbo
import pyro.infer.traceenum_elbo
import pyro.infer.util
import pyro.ops.einsum.adjoint
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from ppgen.errors import first_line

__all__ = ["CannotTrace", "Graph", "trace", "twice"]

LOCK = threading.Lock()  # tracing sets torch's and Pyro's global state for a moment
aten = torch.ops.aten
# Of inductor. Noise comes from torch's own generator, so that compiled code draws what eager draws. Vector instructions
# are those that the processor states: a trial of each by the compiler takes seven seconds, and what it would find, a
# compiler that cannot use them, ends in eager anyway.
OPTIONS = {"fallback_random": True, "cpp.vec_isa_ok": True}
# What needs a value on the host: Python would go on with the value of today.
HOST_READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.masked_select.default,
}


class CannotTrace(Exception):
    """A program that cannot be written down as one graph; the message says why."""


class _NoHostReads(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in HOST_READS or (func is aten.index.Tensor and _has_mask(args[1])):
            raise CannotTrace(f"the program reads values on the host ({func})")
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(i is not None and i.dtype == torch.bool for i in indices)


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """``torch.nn.functional.one_hot`` without its check of the values, which reads them."""
    return (classes.unsqueeze(-1) == torch.arange(num_classes, device=classes.device)).long()


def _selected(x: Tensor, mask: Tensor) -> Tensor:
    """``x.masked_select(mask)`` for what is summed next, as Pyro's expectations over enumerated sites are.

    Zeros in the place of what is left out keep the shape from depending on values. Where that is not the same, the
    comparison of compiled code with eager finds it.
    """
    return torch.where(mask, x, torch.zeros_like(x))


class _TracedTorch:
    """Torch as Pyro sees it in a trace of torch's older kind, where Pyro, too, reads nothing on the host."""

    _C = SimpleNamespace(_get_tracing_state=lambda: True)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _unchanged(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _refused(*_: Any, **__: Any) -> Any:
    raise CannotTrace("values are read by .numpy() or .tolist(), which a graph would keep for all batches")


@contextmanager
def _without_host_reads() -> Iterator[None]:
    """Checks and ``.item()`` calls of Pyro and torch out of the way; what they guard is checked by a run in eager."""
    modules = (pyro.infer.trace_elbo, pyro.infer.trace_mean_field_elbo, pyro.infer.traceenum_elbo)
    with ExitStack() as stack:
        stack.enter_context(pyro.validation_enabled(False))
        for module in modules:
            stack.enter_context(mock.patch.object(module, "warn_if_nan", _unchanged))
            if hasattr(module, "torch_item"):
                stack.enter_context(mock.patch.object(module, "torch_item", _detached))
        for module in (pyro.infer.util, pyro.ops.einsum.adjoint):
            stack.enter_context(mock.patch.object(module, "torch", _TracedTorch()))
        stack.enter_context(mock.patch.object(Tensor, "masked_select", _selected))
        for name in ("tolist", "numpy", "__array__"):
            stack.enter_context(mock.patch.object(Tensor, name, _refused))
        stack.enter_context(mock.patch.object(torch.nn.functional, "one_hot", _one_hot))
        yield


class Graph:
    """Tensor operations, and the tensors besides the inputs that they work on: parameters, buffers, constants.

    Those tensors are handed to the compiled code at each call, so that what an optimiser, a schedule or a user changes
    in place is seen.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.held = _lift(module)
        _fuse_noise(module.graph)
        self.num_outputs = _keep_draws(module.graph)
        module.graph.eliminate_dead_code()
        module.recompile()

    def compile(self, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """Machine code for inputs of these shapes.

        Raises:
            CannotTrace: there is no compiler, or it fails.
        """
        from torch._inductor import compile as inductor  # takes a second to import, and eager never needs it

        held = self.held
        try:
            module = fx.GraphModule(self.module, copy.deepcopy(self.module.graph))
            _fuse_biases(module.graph)
            with torch.no_grad():
                code = inductor(module, [*inputs, *held], options=OPTIONS)
        except Exception as error:  # of many kinds, and whichever it is, eager is right
            raise CannotTrace(f"the compiler failed: {_named(error)}") from error
        return lambda *given: code(*given, *held)[: self.num_outputs]

    def same_as(self, other: Graph) -> bool:
        """Whether two graphs are the same, operation by operation, down to every number in them."""
        if len(self.held) != len(other.held) or self.module.code != other.module.code:
            return False
        return all(a is b or _equal(a, b) for a, b in zip(self.held, other.held, strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:300]


def trace(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Graph:
    """The operations that a function goes through on inputs of these shapes.

    Args:
        function: of tensors, to a sequence of tensors. What it does besides, in Python, happens once.
        inputs: the tensors; the function is run on them.

    Raises:
        CannotTrace: the function reads values on the host, or does something else that no graph can hold.
    """

    def watched(*given: Tensor) -> tuple[Tensor, ...]:
        with _NoHostReads():
            return tuple(function(*given))

    with LOCK, _without_host_reads():
        try:
            return Graph(make_fx(watched)(*inputs))
        except CannotTrace:
            raise
        except Exception as error:
            raise CannotTrace(_named(error)) from error


def twice(traced: Callable[[Sequence[Tensor]], Graph], inputs: Sequence[Tensor]) -> Graph:
    """A graph that came out the same a second time, with the rows of the inputs in another order.

    So what Python took from the values of this very batch where no operation of torch shows it, ``x.numpy()`` or
    ``x.tolist()``, is not baked in.

    Args:
        traced: makes a graph of inputs of these shapes.
        inputs: the tensors.

    Raises:
        CannotTrace: it did not come out the same, or no graph holds it.
    """
    graph = traced(inputs)
    if not graph.same_as(traced([x.roll(1, 0) if x.dim() else x for x in inputs])):
        raise CannotTrace(
            "the program is not the same at every call (a counter, a number that changes, or values of the batch that "
            "are read by .numpy() or .tolist()?)"
        )
    return graph


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Turns the tensors that the graph holds into inputs of it, behind those that it has."""
    graph = module.graph
    held: list[Tensor] = []
    placeholders: dict[int, fx.Node] = {}
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(module, node.target)
        if id(tensor) not in placeholders:
            with graph.inserting_after(last):
                last = graph.placeholder(f"held_{len(held)}")
            last.meta = dict(node.meta)
            placeholders[id(tensor)] = last
            held.append(tensor.detach())
        node.replace_all_uses_with(placeholders[id(tensor)])
        graph.erase_node(node)
    return held


def _keep_draws(graph: fx.Graph) -> int:
    """Makes noise that nothing depends on an output, behind the others: eager draws it, so the compiled code must.

    Returns:
        How many outputs there were.
    """
    output = next(node for node in graph.nodes if node.op == "output")
    alive, pending = set(), [output]
    while pending:
        node = pending.pop()
        if node not in alive:
            alive.add(node)
            pending += node.all_input_nodes
    wanted = output.args[0]
    idle = [
        n for n in graph.nodes if n not in alive and torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ())
    ]
    output.args = ((*wanted, *idle),)
    return len(wanted)


def _fuse_noise(graph: fx.Graph) -> None:
    """``empty().normal_()`` as ``randn``, the same numbers without a copy."""
    for node in list(graph.nodes):
        if node.target is not aten.normal_.default or len(node.args) > 1:
            continue
        empty = node.args[0]
        if empty.target is aten.empty.memory_format and len(empty.users) == 1:
            with graph.inserting_before(node):
                noise = graph.call_function(aten.randn.default, empty.args, empty.kwargs)
            noise.meta = dict(node.meta)
            node.replace_all_uses_with(noise)
            graph.erase_node(node)
            graph.erase_node(empty)


def _fuse_biases(graph: fx.Graph) -> None:
    """On a CPU a layer's bias as an operation of its own, which becomes part of the loop of what follows.

    In ``addmm`` it is a copy into every row, made before the product. As a sum the compiler would turn it into an
    ``addmm`` again; it leaves the difference, which has the same numbers.
    """
    for node in list(graph.nodes):
        if node.target is not aten.addmm.default or node.kwargs:
            continue
        if not node.meta["val"].is_cpu or node.meta["val"].dtype not in (torch.float32, torch.float64):
            continue  # lower precisions would be rounded twice
        bias, a, b = node.args
        with graph.inserting_before(node):
            product = graph.call_function(aten.mm.default, (a, b))
            negative = graph.call_function(aten.neg.default, (bias,))
            difference = graph.call_function(aten.sub.Tensor, (product, negative))
        product.meta, difference.meta = dict(node.meta), dict(node.meta)
        negative.meta = dict(bias.meta)
        node.replace_all_uses_with(difference)
        graph.erase_node(node)
