"""Every test starts from the same seed, and must leave the process as it found it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer.util import is_validation_enabled

torch.set_num_threads(1)
torch.manual_seed(0)  # torch's own first seed differs from process to process, and some modules draw when imported


@pytest.fixture
def global_param_store():
    """Pyro's global parameter store, empty, for a test that fills it on purpose; as it was again after it."""
    store = pyro.get_param_store()
    with store.scope():
        yield store


@pytest.fixture
def scripts(monkeypatch):
    """The modules of the published table, as its script sees them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import protocol
    import reproduce
    import reproduced

    return protocol, reproduce, reproduced


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """A run of a VampPrior with a two-dimensional latent, as the command line writes it."""
    folder = tmp_path_factory.mktemp("runs") / "vamp"
    options = [
        "--data", "digits", "--latent-dim", "2", "--num-components", "5", "--hidden", "8", "--prior", "vamp",
        "--epochs", "2",
    ]  # fmt: skip
    command = [sys.executable, "-m", "ppgen", "train", "vae", *options, "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    """That run in a folder of the file of tests that asks for it, since commands write there."""
    return shutil.copytree(trained_run, tmp_path_factory.mktemp("runs") / "vamp")


def flags():
    """What no call of the library may change."""
    return (
        is_validation_enabled(),
        torch.distributions.Distribution._validate_args,
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    )


def stored_values():
    return {name: value.detach().flatten().tolist() for name, value in pyro.get_param_store().items()}


@pytest.fixture(autouse=True)
def unchanged_globals(request):
    torch.manual_seed(0)
    before, stored = flags(), stored_values()
    yield
    assert flags() == before, "the test changed validation, the default dtype or the grad mode of the process"
    if "global_param_store" not in request.fixturenames:
        assert stored_values() == stored, "the test filled Pyro's global parameter store"
