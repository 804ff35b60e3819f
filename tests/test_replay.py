"""Operations that are noted once and done again: what they work on, what they draw, and what is never noted."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from ppgen.nn.replay import Replay


def test_replays_see_new_values_in_old_places_and_run_no_python():
    x, weight, held, calls = torch.zeros(3, 4), torch.randn(5, 4), torch.zeros(3, 5, 6), []

    def function():
        calls.append(1)
        y = torch.nn.functional.linear(x, weight * 2).relu()
        held[:, :, 2].copy_(y)
        return torch.stack([y, y.sigmoid()]).sum(0)

    replay = Replay([weight])
    for _ in range(4):
        x.normal_()
        got = replay("key", function)
        y = (x @ (2 * weight).T).relu()
        torch.testing.assert_close(got, y + y.sigmoid())
        torch.testing.assert_close(held[:, :, 2], y)
    assert len(calls) == 1


def test_what_is_computed_from_constants_alone_is_computed_once():
    x, weight = torch.ones(2), torch.ones(2)
    replay = Replay([weight])
    assert [replay("key", lambda: x + 10 * weight).tolist() for _ in range(2)] == [[11, 11], [11, 11]]
    weight.fill_(5)
    assert replay("key", lambda: x + 10 * weight).tolist() == [11, 11]
    assert Replay()("key", lambda: x + 10 * weight).tolist() == [51, 51]


def test_draws_go_on_in_torchs_generator():
    probs = torch.full((50,), 0.5)

    def function():
        index = torch.multinomial(probs, 3, replacement=True)
        return torch.cat([torch.bernoulli(probs), torch.rand_like(probs), torch.randn(4), index])

    torch.manual_seed(0)
    plain = [function() for _ in range(4)]
    torch.manual_seed(0)
    replay = Replay()
    for expected in plain:
        assert torch.equal(replay("key", function), expected)


def test_each_key_has_its_own_operations():
    x = torch.ones(2)
    replay = Replay()
    for _ in range(3):
        assert replay("double", lambda: 2 * x).tolist() == [2, 2]
        assert replay("triple", lambda: 3 * x).tolist() == [3, 3]


def test_what_reads_values_on_the_host_always_runs_as_it_is():
    x = torch.zeros(1)
    replay = Replay()

    def function():
        return "large" if x.item() > 2 else "small"

    answers = []
    for value in (1, 3, 1, 3):
        x.fill_(value)
        answers.append(replay("key", function))
    assert answers == ["small", "large", "small", "large"]


def test_under_another_mode_everything_runs_as_it_is():
    x, weight, calls = torch.ones(2, 3), torch.ones(3, 4), []

    def function():
        calls.append(1)
        return x @ weight

    with FlopCounterMode(display=False) as counted:
        replay = Replay()
        for _ in range(3):
            replay("key", function)
    assert len(calls) == 3
    assert counted.get_total_flops() == 3 * 2 * 2 * 3 * 4
