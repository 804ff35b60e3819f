"""Training below float32: half-precision parameters, bf16 by autocast, tf32 products."""

import pytest
import torch
from parts import small_vae

from ppgen import decoders, models, nn, posteriors, priors
from ppgen.inference import SVI, fit, log_likelihood, reconstruct, sample
from ppgen.inference.programs.modes import unabridged

X = torch.bernoulli(torch.full((24, 16), 0.4), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("compile", [False, True])
def test_a_gradient_in_half_precision_is_finite_where_its_sum_is_not(compile):
    """Norms of 235,200 entries: a sum of their absolute values would be beyond float16."""
    pair = models.VAE(
        priors.StandardNormal(2), decoders.Normal(nn.MLP(2, 300, 784), scale=0.2), posteriors.DiagNormal(nn.MLP(784, 4))
    ).half()
    svi = SVI(pair, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-5), compile=compile)
    svi.step(torch.rand(5, 784).half())
    gradient = torch.cat([p.grad.flatten() for p in svi.parameters])
    assert gradient.isfinite().all() and not gradient.abs().sum(dtype=torch.float16).isfinite()


@pytest.mark.parametrize("compile", [False, True])
def test_bf16_is_near_float32_and_changes_nothing_outside(compile):
    """By autocast: eight bits of mantissa in the matrix products, float32 everywhere else."""
    losses, seen = {}, set()
    for precision in ("float32", "bf16"):
        pair = small_vae()
        pair.decoder.register_forward_hook(lambda _, z, p_x: seen.update((z[0].dtype, p_x.sample().dtype)))
        history = fit(pair, X, epochs=3, batch_size=24, seed=0, progress=False, compile=compile, precision=precision)
        assert history.compiled == compile
        assert all(p.dtype == torch.float32 for p in pair.parameters()) and not torch.is_autocast_enabled("cpu")
        losses[precision] = history.loss
    assert losses["bf16"] != losses["float32"] and losses["bf16"] == pytest.approx(losses["float32"], rel=2e-3)
    assert seen == {torch.float32}


def test_tf32_is_given_back_and_an_unknown_precision_is_named():
    before = torch.get_float32_matmul_precision()
    fit(small_vae(), X, epochs=1, seed=0, progress=False, precision="tf32")
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ValueError, match="precision must be one of float32, tf32, bf16, got 'fp16'"):
        SVI(small_vae(), precision="fp16")


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("use", [
    lambda pair, seed: log_likelihood(pair, X, num_samples=20, seed=0).values,
    lambda pair, seed: reconstruct(pair, X, mean=True, seed=seed),
    lambda pair, seed: sample(pair, 8, mean=True, seed=seed),
])  # fmt: skip
def test_an_autocast_around_an_evaluation_does_not_reach_it(use, seed):
    pair = small_vae()
    torch.manual_seed(1)
    outside = use(pair, seed)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = use(pair, seed)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(inside, outside)


def test_convolutions_and_recurrent_networks_on_a_gpu_have_all_bits_and_the_defaults_are_given_back():
    """The flags, which are there without a GPU."""
    cudnn = torch.backends.cudnn

    def flags():
        return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.fp32_precision

    before = flags()
    assert cudnn.allow_tf32 and before[:2] == ("tf32", "tf32")
    with pytest.raises(ZeroDivisionError), unabridged(torch.device("cuda")):
        assert not cudnn.allow_tf32 and "tf32" not in flags()
        raise ZeroDivisionError
    assert cudnn.allow_tf32 and flags() == before
    with unabridged(torch.device("cpu")):
        assert flags() == before
    for flags_before in ("high", "medium"):
        torch.set_float32_matmul_precision(flags_before)
        try:
            with unabridged(torch.device("cpu")):
                assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_float32_matmul_precision() == flags_before
        finally:
            torch.set_float32_matmul_precision("highest")
    cudnn.conv.fp32_precision = "ieee"  # by torch's newer flags, beside which it does not tell the older one
    try:
        chosen = flags()
        with unabridged(torch.device("cuda")):
            assert flags() == chosen
        assert flags() == chosen
    finally:
        cudnn.conv.fp32_precision = "tf32"


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_where_torchs_newer_flags_are_set_they_stay_as_they_are(precision):
    newer = torch.backends.cuda.matmul
    newer.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        fit(small_vae(), X, epochs=1, seed=0, progress=False, precision=precision)
        log_likelihood(small_vae(), X, num_samples=2)
        assert newer.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
