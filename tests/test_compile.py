"""The compiled step: what compiles and what falls back, eager's numbers, staleness, honest fallbacks."""

import itertools
import logging
import sys

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from parts import normalised, small_vae

from ppgen import models
from ppgen.catalogue import DECODERS, POSTERIORS, PRIORS, Recipe
from ppgen.inference import (
    SVI,
    dreg,
    elbo,
    fit,
    iwae,
    log_likelihood,
    renyi,
    semi_supervised,
    sticking_the_landing,
    stratified,
    warmup,
)
from ppgen.inference.execution import graphs
from ppgen.inference.losses.loss import as_loss
from ppgen.inference.training import compiled
from ppgen.inference.training.compiled import Compiled, gradients

SMALL = {"latent_dim": 2, "num_components": 3, "hidden": (4,)}
NOISE = torch.Generator().manual_seed(0)
DATA = {
    "binary": torch.bernoulli(torch.full((6, 1, 4, 4), 0.4), generator=NOISE),
    # as many rows as a covariance of 16 dimensions asks for: a near-singular one turns rounding into differences
    "real": torch.rand(240, 1, 4, 4, generator=NOISE),
    "levels": torch.randint(8, (6, 1, 4, 4), dtype=torch.uint8, generator=NOISE),
}
LEVELS = {"binary": 2, "real": None, "levels": 8}
CLASSES = torch.arange(6) % 3


def recipe(model="vae", kind="binary", **settings):
    return Recipe(model, (1, 4, 4), LEVELS[kind], 3, settings)


def subsampled():
    """A user's pair with a constrained parameter and a plate that scales a mini-batch to 60 data."""

    def model(x):
        with pyro.plate("data", 60, subsample=x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x.flatten(1))

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        loc = pyro.param("loc", torch.tensor(0.1))
        with pyro.plate("data", 60, subsample=x):
            pyro.sample("z", dist.Normal(loc * x.flatten(1).mean(-1), scale))

    return models.Custom(model, guide)


def shifted(shift):
    """A user's pair, with what a function makes of the batch for the mean of its prior."""

    def model(x):
        loc = shift(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.flatten(1).mean(-1))

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).expand([len(x)]))

    return models.Custom(model, guide)


def reads_the_host():
    return shifted(lambda x: 1.0 if x.mean() > 0.5 else 2.0)


def leaves_torch():
    """Values of the batch reach the program where no operation of torch shows it."""
    return shifted(lambda x: torch.as_tensor(x.flatten(1).mean(-1).numpy()))


def counts_its_calls():
    calls = itertools.count()
    return shifted(lambda x: 0.001 * next(calls))


# name: (pair, loss, batch, why it stays in eager, or None where it compiles)
TABLE = {
    **{f"prior {p}": (recipe(prior=p, **SMALL), elbo(), None, None) for p in PRIORS},
    **{f"posterior {q}": (recipe(posterior=q, **SMALL), elbo(), None, None) for q in POSTERIORS},
    **{f"decoder {d}": (recipe(kind=DECODERS[d].kind, decoder=d, **SMALL), elbo(), None, None) for d in DECODERS},
    "warm-up and free bits": (recipe(**SMALL), elbo(beta=warmup(10), free_bits=0.1), None, None),
    "particles": (recipe(**SMALL), elbo(num_particles=3), None, None),
    "closed-form KL": (recipe(**SMALL), elbo(analytic_kl=True), None, None),
    "iwae": (recipe(**SMALL), iwae(3), None, None),
    "sticking the landing": (recipe(**SMALL), sticking_the_landing(), None, None),
    "dreg": (recipe(**SMALL), dreg(3), None, None),
    "renyi": (recipe(**SMALL), renyi(0.5, 3), None, None),
    "stratified": (recipe(posterior="mog", **SMALL), stratified(), None, None),
    "Pyro's Trace_ELBO": (recipe(**SMALL), pyro.infer.Trace_ELBO(), None, None),
    "Pyro's particles": (
        recipe(**SMALL),
        pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
        None,
        None,
    ),
    "Pyro's TraceMeanField_ELBO": (recipe(**SMALL), pyro.infer.TraceMeanField_ELBO(), None, None),
    "cvae": (recipe("cvae", **SMALL), elbo(), None, None),
    "cvae, conditional VampPrior": (recipe("cvae", prior="vamp", **SMALL), elbo(), None, "values on the host"),
    "hvae": (recipe("hvae", **SMALL), elbo(), None, None),
    "conv-hvae": (recipe("conv-hvae", channels=(2, 3), **SMALL), elbo(), None, None),
    "ss-vae, enumerated guide": (recipe("ss-vae", **SMALL), semi_supervised(0.1), None, None),
    "density": (recipe("density", latent_dim=2, hidden=(4,)), iwae(3), None, None),
    "gmm, enumerated model": (recipe("gmm", "real", num_components=3), elbo(), None, None),
    "fa": (recipe("fa", "real", latent_dim=2), elbo(), None, None),
    "batch normalisation and dropout": (lambda: normalised((1, 4, 4)), elbo(), DATA["binary"], None),
    "a subsampled plate of a user's": (subsampled, elbo(), DATA["real"], None),
    "a branch on data": (reads_the_host, elbo(), DATA["real"], "values on the host"),
    "values taken out of torch": (leaves_torch, elbo(), DATA["real"], "read by .numpy()"),
    "a counter": (counts_its_calls, elbo(), DATA["real"], "not the same at every call"),
}
FAST = ["prior standard", "cvae, conditional VampPrior", "batch normalisation and dropout", "a branch on data"]
FAST += ["a counter", "values taken out of torch", "a subsampled plate of a user's"]


def table(names):
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in names]


def made(name):
    """The pair, its loss and a batch of a row of the table."""
    source, loss, x, reason = TABLE[name]
    torch.manual_seed(0)
    if not isinstance(source, Recipe):
        pair, batch = source(), (x,)
        pair.guide(x)
    else:
        kind = next(k for k, n in LEVELS.items() if n == source.num_levels)
        vamp = source.settings.get("prior") == "vamp"
        pair = source.build(DATA[kind][:3].float() if vamp else None)
        batch = source.batch(DATA[kind], CLASSES)
    if hasattr(pair, "initialize"):
        pair.initialize(*batch)
        with torch.no_grad():  # off that start, where gradients vanish to rounding
            for parameter in pair.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return pair, as_loss(loss), batch, reason


def state(pair):
    return [b.clone() for b in pair.buffers()]


@pytest.mark.parametrize("name", table(TABLE))
def test_what_compiles_has_the_numbers_of_eager_and_what_does_not_says_why(name, caplog):
    pair, loss, batch, reason = made(name)
    parameters = list(pair.parameters())
    gradients(loss, pair, parameters, batch)  # what a first call does, it does now
    before = state(pair)
    with caplog.at_level(logging.WARNING):
        step = Compiled(loss, pair, parameters)
        torch.manual_seed(1)
        found = [step(batch) for _ in range(2)]
        after, noise = state(pair), torch.rand(3)
    assert (step.reason is None) == (reason is None), step.reason
    assert len([r for r in caplog.records if r.name.startswith("ppgen.")]) == (reason is not None)
    if reason:
        assert reason in step.reason and reason in caplog.text
    if name == "a counter":
        return
    for buffer, value in zip(pair.buffers(), before, strict=True):
        buffer.data.copy_(value)
    torch.manual_seed(1)
    wanted = [gradients(loss, pair, parameters, batch) for _ in range(2)]
    assert torch.equal(noise, torch.rand(3))  # the generator is where eager leaves it
    for a, b in zip(after, state(pair), strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5)
    whole = max(float(g.norm()) for g in wanted[0].gradients if g is not None)
    for got, want in zip(found, wanted, strict=True):
        assert torch.allclose(got.loss, want.loss, rtol=1e-5)
        for a, b in zip(got.gradients, want.gradients, strict=True):
            assert (a is None) == (b is None)
            assert a is None or (a - b).norm() <= 1e-4 * (b.norm() + whole)


X = DATA["binary"].flatten(1).repeat(4, 1)  # 24 rows


def test_a_compiled_fit_is_the_eager_one_to_rounding():
    """With a warm-up that changes each step, a learning rate that does, and a short last batch."""
    curves = []
    for compile in (False, True):
        pair = small_vae()
        loss = elbo(beta=warmup(3))
        history = fit(
            pair, X, loss=loss, epochs=6, batch_size=10, validation=X[:8], seed=3, progress=False, compile=compile
        )
        assert history.compiled == compile
        curves.append((history.loss, history.validation, torch.cat([p.flatten() for p in pair.parameters()])))
    assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-4)
    assert curves[0][1] == pytest.approx(curves[1][1], rel=1e-4)
    assert torch.allclose(curves[0][2], curves[1][2], atol=1e-4)


def test_long_runs_compile_of_themselves_and_short_ones_do_not(monkeypatch):
    asked = []

    class Asked(Compiled):
        def __init__(self, *arguments):
            asked.append(True)
            super().__init__(*arguments)
            self.reason = "asked only"

    monkeypatch.setattr("ppgen.inference.training.svi.Compiled", Asked)
    monkeypatch.setattr(sys.modules["ppgen.inference.training.fit"], "STEPS_WORTH_COMPILING", 6)
    fit(small_vae(), X, epochs=1, batch_size=5, seed=0, progress=False)
    assert not asked
    fit(small_vae(), X, epochs=2, batch_size=5, seed=0, progress=False, compile=False)
    assert not asked
    fit(small_vae(), X, epochs=2, batch_size=5, seed=0, progress=False)
    assert asked == [True]


def test_what_changes_in_place_is_seen_and_what_changes_in_python_is_noticed(monkeypatch):
    pair, loss = small_vae(), elbo(beta=1.0)
    parameters = list(pair.parameters())
    step = Compiled(loss, pair, parameters)

    def agree():
        torch.manual_seed(5)
        got = step([X])
        torch.manual_seed(5)
        return torch.allclose(got.loss, gradients(loss, pair, parameters, [X]).loss, rtol=1e-5)

    assert agree()
    loss.beta.fill_(0.1)  # a tensor, in place: the same graph
    with torch.no_grad():
        parameters[0].mul_(2)
    assert agree() and len(step._codes) == 1
    loss.free_bits = 3.0  # a number: eager at once, and another graph if it stays
    assert agree() and len(step._codes) == 1
    monkeypatch.setattr(compiled, "PATIENCE", 1)
    assert agree() and len(step._codes) == 2
    monkeypatch.undo()
    pair.eval()
    assert agree()
    parameters[0].requires_grad_(False)
    assert agree() and step([X]).gradients[0] is None
    assert step.reason is None


def test_a_graph_that_went_stale_is_found_at_the_next_check(monkeypatch, caplog):
    factor = [1.0]

    def loss(model, guide, x):
        return factor[0] * inner(model, guide, x)

    inner, pair = elbo(), small_vae()
    parameters = list(pair.parameters())
    step = Compiled(loss, pair, parameters)
    monkeypatch.setattr(compiled, "CHECKS", {4})
    step([X])
    factor[0] = 2.0  # in a closure, where nothing can see it
    with caplog.at_level(logging.WARNING):
        found = []
        for _ in range(4):  # the check is at the third of them, and the fourth confirms it
            torch.manual_seed(5)
            found.append(step([X]).loss)
    torch.manual_seed(5)
    now = gradients(loss, pair, parameters, [X]).loss
    assert torch.allclose(torch.stack(found), now * torch.tensor([0.5, 0.5, 1.0, 1.0]), rtol=1e-5)
    assert "traced anew" in caplog.text and step.reason is None


@pytest.mark.parametrize("differs", [{1}, {3}, {1, 3}, {1, 2}, {3, 4}])
def test_one_batch_on_a_kink_is_left_to_eager_and_two_in_a_row_are_not(differs, monkeypatch, caplog):
    """Comparisons are numbered: those of new graphs, at calls 3 and 4, and at each call after one that differed."""
    compared, measured = [], compiled._difference

    def difference(*given):
        compared.append(len(compared) + 1)
        return "the gradient of parameter 0" if compared[-1] in differs else measured(*given)

    pair, loss = small_vae(), elbo()
    parameters = list(pair.parameters())
    step = Compiled(loss, pair, parameters)
    monkeypatch.setattr(compiled, "_difference", difference)
    monkeypatch.setattr(compiled, "CHECKS", {3, 4})
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            torch.manual_seed(5)
            got = step([X])
            torch.manual_seed(5)
            assert torch.allclose(got.loss, gradients(loss, pair, parameters, [X]).loss, rtol=1e-5)
    assert (step.reason is None) == (differs != {1, 2})
    assert ("disagree in the gradient of parameter 0" in caplog.text) == (differs == {1, 2})
    assert ("traced anew" in caplog.text) == (differs == {3, 4})
    assert not step._doubted


def test_batches_in_another_order_in_memory_are_read_right():
    pair, loss = small_vae(), elbo()
    parameters = list(pair.parameters())
    step = Compiled(loss, pair, parameters)
    for x in (X, X.t().contiguous().t(), torch.cat([X, 1 - X], 1)[:, :16]):
        torch.manual_seed(5)
        got = step([x])
        torch.manual_seed(5)
        assert torch.allclose(got.loss, gradients(loss, pair, parameters, [x]).loss, rtol=1e-5)
    assert len(step._codes) == 1 and step.reason is None


def test_without_a_compiler_training_is_eager_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        history = fit(small_vae(), X, epochs=2, seed=0, progress=False, compile=True)
    assert not history.compiled and "no C++ compiler" in caplog.text and len(caplog.records) == 1


def test_a_failing_compiler_leaves_training_in_eager(monkeypatch, caplog):
    def broken(self, inputs):
        raise graphs.CannotTrace("the compiler failed: disk full")

    monkeypatch.setattr(graphs.Graph, "compile", broken)
    with caplog.at_level(logging.WARNING):
        history = fit(small_vae(), X, epochs=2, seed=0, progress=False, compile=True)
    eager = fit(small_vae(), X, epochs=2, seed=0, progress=False, compile=False)
    assert history.loss == eager.loss and "disk full" in caplog.text


def test_tracing_leaves_no_global_state_behind(monkeypatch):
    one_hot = torch.nn.functional.one_hot
    pyro.enable_validation(True)
    rng = torch.get_rng_state()
    parameters = list((pair := small_vae()).parameters())
    graphs.trace(lambda x: [gradients(elbo(), pair, parameters, [x]).loss], [X])
    assert torch.nn.functional.one_hot is one_hot and "masked_select" not in vars(torch.Tensor)
    assert torch.distributions.Distribution._validate_args and pyro.infer.util.torch is torch
    torch.set_rng_state(rng)


@pytest.mark.slow
def test_labels_out_of_range_are_named_by_a_compiled_step_too():
    source = recipe("ss-vae", **SMALL)
    pair = source.build()
    y = torch.tensor([0, 1, 2, -1, 7, 0])
    with pytest.raises(ValueError, match=r"labels must lie in 0, \.\.\., 2"):
        SVI(pair, semi_supervised(0.1)).step(DATA["binary"], y)
    step = Compiled(semi_supervised(0.1), pair, list(pair.parameters()))
    step((DATA["binary"], CLASSES))
    assert step.reason is None
    with pytest.raises(ValueError, match=r"labels must lie in 0, \.\.\., 2"):
        step((DATA["binary"], y))


@pytest.mark.slow
def test_a_layers_bias_is_part_of_the_loop_that_follows():
    """An addmm would copy it into every row before the product: compiled code has none, the graph in eager has."""
    pair = small_vae()

    def layers(x):
        return [pair.decoder.net(pair.posterior.net(x)[:, :2])]

    graph = graphs.trace(layers, [X])
    for run, product in ((graph.compile([X]), "mm"), (lambda x: graph.module(x, *graph.held), "addmm")):
        called = []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None, called=called):
                called.append(func.overloadpacket.__name__)
                return func(*args, **(kwargs or {}))

        with torch.no_grad(), Watch():
            found = run(X)[0]
        assert [name for name in called if name.endswith("mm")] == [product] * 4
        assert torch.allclose(found, layers(X)[0], atol=1e-5)


def test_values_that_leave_torch_are_no_part_of_a_graph():
    """The longest of a batch's sequences: the same in every order of the rows, and another in the next batch."""

    def model(x, lengths):
        scale = pyro.param("scale", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for t in range(max(lengths.tolist())):
                with pyro.poutine.mask(mask=t < lengths):
                    pyro.sample(f"x{t}", dist.Normal(scale * z, 1.0), obs=x[:, t])

    def guide(x, lengths):
        slope = pyro.param("slope", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x[:, 0], 1.0))

    x = torch.randn(200, 6)
    lengths = torch.cat([torch.randint(1, 4, (100,)), torch.randint(4, 7, (100,))])
    pair = models.Custom(model, guide)
    eager, traced = (log_likelihood(pair, x, lengths, num_samples=50, compile=c).values for c in (False, True))
    assert torch.allclose(eager, traced, atol=1e-4)


def test_memory_that_is_replaced_is_read():
    """``parameter.data = …``, as an average of weights is put into place."""
    pair = small_vae()
    steps = [SVI(pair, elbo(), lambda p: torch.optim.SGD(p, lr=0.0), compile=c) for c in (True, False)]
    for step in steps:
        step.step(X)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.data = 3 * parameter.data
    losses = []
    for step in steps:
        torch.manual_seed(3)
        losses.append(step.step(X).item())
    assert steps[0].compiled and losses[0] == pytest.approx(losses[1], rel=1e-4)
