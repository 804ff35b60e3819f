"""The intervals that estimates state hold the truth, whatever the way: widened, refined or annealed from either end."""

import pytest
import torch

from ppgen.check.exact import Proposed, factor_analysis
from ppgen.inference import ais, repaired_log_likelihood

WAYS = {
    "widened": lambda pair, x: repaired_log_likelihood(pair, x, num_samples=1000),
    "refined": lambda pair, x: repaired_log_likelihood(pair, x, num_samples=1000, num_steps=100, scales=(1.0,)),
    "annealed from the guide": lambda pair, x: ais(pair, x, num_chains=100),
    "annealed from the prior": lambda pair, x: ais(pair, x, start="prior", num_chains=100),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_nine_in_ten_of_the_intervals_of_95_percent_hold_the_exact_value(way):
    """From a guide that is too narrow, diagonal and off to one side: as stated where k-hat is good, for most data.

    At the number of temperatures that is the default: with 40 from this guide it is 0.886, and ``ais`` says so.
    """
    hits, reliable = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        exact, x = factor_analysis(100)
        estimate = WAYS[way](Proposed(exact, scale=0.6, shift=0.3, diagonal=True), x)
        off = (estimate.values - exact.log_prob(x).double().detach()).abs()
        hits.append((off < 1.96 * estimate.mc_standard_error)[estimate.reliable])
        reliable.append(estimate.reliable)
    assert torch.cat(reliable).double().mean() > 0.5
    assert torch.cat(hits).double().mean() >= 0.9
