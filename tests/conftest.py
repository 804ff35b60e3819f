"""Every test starts from the same seed, and must leave the process as it found it."""

import pyro
import pytest
import torch
from pyro.infer.util import is_validation_enabled

torch.set_num_threads(1)


@pytest.fixture
def global_param_store():
    """Pyro's global parameter store, for a test that fills it on purpose; emptied again after it."""
    pyro.clear_param_store()
    yield pyro.get_param_store()
    pyro.clear_param_store()


def flags():
    """What no call of the library may change."""
    return (
        is_validation_enabled(),
        torch.distributions.Distribution._validate_args,
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    )


@pytest.fixture(autouse=True)
def unchanged_globals(request):
    torch.manual_seed(0)
    before, stored = flags(), set(pyro.get_param_store().keys())
    yield
    assert flags() == before, "the test changed validation, the default dtype or the grad mode of the process"
    if "global_param_store" not in request.fixturenames:
        assert set(pyro.get_param_store().keys()) == stored, "the test filled Pyro's global parameter store"
