"""Work shared by processes: the same script alone and under torchrun, and what happens when one of them fails."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from ppgen import cli, decoders, models, nn, posteriors, priors
from ppgen.inference import EM, SVI, elbo, fit, log_likelihood, processes, train
from ppgen.inference.execution.distributed import current, gathered, own_seed
from ppgen.models import Custom
from ppgen.pair import data_plate

X = (torch.rand(250, 9, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def torchrun(count, *arguments, **settings):
    """The finished command, with a thread a process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=environment, timeout=240, **settings
    )


def small_vae(norm=False, prior=None):
    layers = [torch.nn.Linear(9, 8), torch.nn.BatchNorm1d(8)] if norm else [torch.nn.Linear(9, 8)]
    encoder = torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(8, 4))
    prior = prior or priors.StandardNormal(2)
    return models.VAE(prior, decoders.Bernoulli(nn.MLP(2, 8, 9)), posteriors.DiagNormal(encoder))


def noise_given():
    """A pair whose noise comes with the data."""
    encoder, decoder = nn.MLP(9, 8, 4), nn.MLP(2, 8, 9)

    def guide(x, noise):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        log_q = dist.Normal(loc, log_scale.exp()).to_event(1).log_prob(loc + log_scale.exp() * noise)
        with data_plate(x):
            pyro.sample("z", dist.Delta(loc + log_scale.exp() * noise, log_density=log_q, event_dim=1))

    def model(x, noise):
        pyro.module("decoder", decoder)
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    return Custom(model, guide)


def refusal(call):
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    return "none"


def experiments():
    """What each process has in the end. 50 rows in batches of 16: of the last two, a third process gets none."""
    found = {"rank": current().rank, "seed": own_seed(0)}
    quiet = {"batch_size": 16, "seed": 0, "progress": False, "device": "cpu"}
    pairs = {
        "explicit": (models.ExplicitDensity(priors.Autoregressive(9, hidden=(16,))), (X[:50],)),
        "factor analysis": (models.FactorAnalysis(9, 2), (X[:50],)),
        "noise given": (noise_given(), (X[:50], torch.randn(50, 2, generator=torch.Generator().manual_seed(1)))),
        "stochastic": (small_vae(norm=True), (X[:48],)),
    }
    for name, (pair, data) in pairs.items():
        torch.manual_seed(current().rank)  # parameters that differ from process to process are made alike
        for layer in pair.modules():
            if isinstance(layer, torch.nn.Linear) and current().count > 1 and current().rank:
                layer.reset_parameters()
        history = fit(pair, data, validation=data, epochs=3, patience=3, **quiet)
        found[name] = {"loss": history.loss, "validation": history.validation, "state": pair.state_dict()}
    found["likelihood"] = log_likelihood(small_vae_at(0), X, num_samples=260, seed=1)
    if current().count > 1:
        pair = models.ExplicitDensity(priors.Autoregressive(9, hidden=(16,)))
        dataset = TensorDataset(X[:48])
        divided = DataLoader(dataset, batch_size=4, sampler=DistributedSampler(dataset))
        still = SVI(pair, elbo(), lambda parameters: torch.optim.SGD(parameters, lr=0.0))
        found["divided"] = train(still, divided, epochs=2, progress=False).loss, still.evaluate(X[:48]).item()
        density = models.ExplicitDensity(priors.Autoregressive(9, hidden=(16,)))
        whole = DataLoader(dataset, batch_size=16)
        found["refusals"] = {
            "em": refusal(lambda: train(EM(models.FactorAnalysis(9, 2)), X, epochs=1, progress=False)),
            "loader": refusal(lambda: fit(density, whole, epochs=1, progress=False)),
            "rows": refusal(lambda: fit(density, X, epochs=1, batch_size=1, progress=False)),
            "validation": refusal(lambda: fit(density, X, validation=divided, epochs=1, progress=False)),
        }
    return found


def small_vae_at(seed):
    torch.manual_seed(seed)
    return small_vae()


def final_validation(seed):
    torch.manual_seed(seed)
    history = fit(small_vae(), X[:200], validation=X[200:], epochs=30, batch_size=20, seed=seed, progress=False)
    return history.validation[-1]


def everywhere(what, count, folder):
    """The results of each process."""
    done = torchrun(count, __file__, what, folder)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{what}-{rank}.pt", weights_only=False) for rank in range(count)]


@pytest.fixture(scope="module")
def alone():
    torch.manual_seed(0)
    return run("experiments")


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def shared(request, tmp_path_factory):
    return everywhere("experiments", request.param, tmp_path_factory.mktemp(f"processes{request.param}"))


def run(what):
    torch.manual_seed(0)
    return experiments() if what == "experiments" else [final_validation(seed) for seed in range(5)]


@pytest.mark.parametrize("name", ["explicit", "factor analysis", "noise given"])
def test_what_is_deterministic_trains_as_in_one_process(name, alone, shared):
    for found in shared:
        assert found[name]["loss"] == pytest.approx(alone[name]["loss"], rel=1e-5)
        assert found[name]["validation"] == pytest.approx(alone[name]["validation"], rel=1e-5)
        for key, value in alone[name]["state"].items():
            assert torch.allclose(found[name]["state"][key], value, rtol=1e-3, atol=1e-4), key


@pytest.mark.parametrize("name", ["explicit", "factor analysis", "noise given", "stochastic"])
def test_all_processes_end_with_the_same(name, shared):
    first = shared[0][name]
    for other in shared[1:]:
        assert other[name]["loss"] == first["loss"] and other[name]["validation"] == first["validation"]
        for key, value in first["state"].items():
            assert torch.equal(other[name]["state"][key], value), key


def test_noise_differs_from_process_to_process(alone, shared):
    seeds = [found["seed"] for found in shared]
    assert len(set(seeds)) == len(seeds) and seeds[0] == alone["seed"] == 0
    assert shared[0]["stochastic"]["loss"] != alone["stochastic"]["loss"]


def test_likelihoods_are_the_same_to_the_bit(alone, shared):
    for found in shared:
        for name in ("values", "elbo", "mc_standard_error", "ess", "k_hat", "reliable"):
            assert torch.equal(getattr(found["likelihood"], name), getattr(alone["likelihood"], name)), name


def test_loaders_are_divided_by_their_sampler(shared):
    for found in shared:
        losses, exact = found["divided"]
        assert losses == pytest.approx([exact, exact], rel=1e-5)  # the parameters stand still: each row counts once


def test_what_cannot_be_shared_is_refused(shared):
    for found in shared:
        refusals = found["refusals"]
        assert "EM cannot share its work" in refusals["em"] and "without torchrun" in refusals["em"]
        assert "DistributedSampler(dataset)" in refusals["loader"]
        assert "batch_size=1 of 250 rows" in refusals["rows"]
        assert "without a DistributedSampler" in refusals["validation"]


def test_nothing_happens_without_torchrun():
    with processes() as group:
        assert (group.rank, group.count, group.leads) == (0, 1, True)
        assert not torch.distributed.is_initialized()
        assert gathered("x") == ["x"]


@pytest.mark.parametrize("timeout", [0, -1.0, math.nan, math.inf, "60"])
def test_a_timeout_that_is_no_time_is_named(timeout):
    expected = f"timeout must be a positive finite number of seconds, got {timeout!r}"
    with pytest.raises(ValueError, match=expected), processes(timeout):
        pass


def test_the_loss_of_a_part_is_per_row_of_the_part():
    density = models.ExplicitDensity(priors.Autoregressive(9, hidden=(16,)))
    step = SVI(density)
    for rows in (50, 10, 33):  # whichever length the first batch had
        exact = -log_likelihood(density, X[:rows], num_samples=1).mean
        assert step.evaluate(X[:rows]).item() == pytest.approx(exact, rel=1e-5)


SMALL = ["--data", "digits", "--latent-dim", 2, "--hidden", 8, "--epochs", 2]


@pytest.mark.slow
def test_training_writes_and_prints_once(tmp_path):
    done = torchrun(2, "-m", "ppgen", "train", "vae", *SMALL, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 1 and done.stdout.count("2 epochs") == 1
    losses = json.loads((tmp_path / "run" / "history.json").read_text())["loss"]
    assert len(losses) == 2 and losses[1] < losses[0]


@pytest.mark.slow
def test_evaluation_prints_the_same_once(tmp_path):
    done = torchrun(1, "-m", "ppgen", "train", "vae", *SMALL, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    printed = []
    for count in (1, 2, 3):
        done = torchrun(count, "-m", "ppgen", "evaluate", tmp_path / "run", "--num-samples", 260, "--json")
        assert done.returncode == 0, done.stderr
        printed.append(json.loads(done.stdout))
    assert printed[0] == printed[1] == printed[2]


FAILING = """
import os, signal
from ppgen.priors import StandardNormal

class Failing(StandardNormal):
    calls = 0
    def forward(self, *context):
        Failing.calls += 1
        if Failing.calls >= 10 and os.environ["RANK"] == "1":
            {how}
        return super().forward(*context)
"""


def failing(folder, how):
    folder.mkdir(exist_ok=True)
    (folder / "failing.py").write_text(FAILING.format(how=how))
    began = time.monotonic()
    arguments = ["train", "vae", *SMALL, "--prior", "failing:Failing", "--out", folder / "run"]
    done = torchrun(2, "-m", "ppgen", *arguments, cwd=folder)
    assert done.returncode != 0 and time.monotonic() - began < 120
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return lines, (folder / "run" / "config.json").exists()


def failed(folder, how):
    """What is said by a run that leaves nothing. On a busy machine torchrun may end the process that tidies before."""
    tries = (failing(folder / str(i), how) for i in range(3))
    (line,) = next(lines for lines, left in tries if lines and not left)
    return line


def test_a_process_that_fails_ends_the_run_with_its_message(tmp_path):
    line = failed(tmp_path, 'raise ValueError("the moon is in the wrong quarter")')
    assert line.startswith("Error: the moon is in the wrong quarter")


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_with_a_message(tmp_path):
    line = failed(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert "Process 0 of 2" in line and "waited in vain" in line


@pytest.mark.slow
def test_a_process_that_hangs_is_not_waited_for_for_ever(tmp_path):
    began = time.monotonic()
    done = torchrun(2, __file__, "hang", tmp_path)
    assert done.returncode != 0 and time.monotonic() - began < 120
    assert "did not come within 5 s" in done.stderr


def test_a_group_is_over_at_its_end_and_another_can_follow(shared):
    """Its threads, were they left, would now and then abort the process at its exit."""
    for found in shared:
        assert not [name for name in found["threads"] if "gloo" in name]
        assert found["once more"] == list(range(len(shared)))


@pytest.mark.slow
def test_stochastic_pairs_reach_the_same_bound(tmp_path):
    one = torch.tensor(run("seeds"))
    for count in (2, 3):
        many = torch.tensor(everywhere("seeds", count, tmp_path)[0])
        error = math.sqrt((one.var() + many.var()) / 5)
        assert abs(many.mean() - one.mean()) < 3 * error, (one, many)


@pytest.mark.slow
def test_a_grid_in_two_processes_is_the_grid_in_one(tmp_path, monkeypatch, capsys):
    """A prior that needs more pseudo-inputs than there are data is refused in either, for the same reason."""
    rows = []
    for jobs in ("1", "2"):
        out = tmp_path / jobs
        arguments = ["--prior", "standard,vamp", "--posterior", "diagonal", "--num-components", 5000, "--warmup", 0]
        command = ["ppgen", "compare", *SMALL, *arguments, "--num-samples", 30, "--jobs", jobs, "--out", out]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code in (0, None), capsys.readouterr().err
        rows.append(json.loads((out / "comparison.json").read_text())["rows"])
    for row in (*rows[0], *rows[1]):
        row.pop("seconds", None)
    assert rows[0] == rows[1]
    assert rows[0][0]["name"] == "standard + diagonal" and "5000 pseudo-inputs" in rows[0][1]["refused"]
    assert (tmp_path / "1" / "samples.png").read_bytes() == (tmp_path / "2" / "samples.png").read_bytes()


def threads():
    """Names of this process's threads; none where there is no /proc."""
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    with processes(timeout=5.0 if what == "hang" else 120.0) as group:
        if what == "hang":
            if group.rank == 1:
                time.sleep(100)
            gathered(0)
        found = run(what)
    if what == "experiments":
        found["threads"] = threads()
        with processes(timeout=120.0) as group:
            found["once more"] = gathered(group.rank)
    torch.save(found, folder / f"{what}-{group.rank}.pt")
