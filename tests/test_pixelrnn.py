"""Recurrent layers against torch's own, step by step, and what each sees; the rest is tested with the PixelCNNs."""

import pytest
import torch

from ppgen import nn
from ppgen.nn.pixelrnn import skew, unskew


def field(layer, i, j, height=5, width=7):
    """Which places of the input decide the output of the layer at (i, j)."""
    x = torch.randn(1, 3, height, width, requires_grad=True)
    layer(x, torch.randn(1, 2, height, width))[0, :, i, j].sum().backward()
    return (x.grad[0] != 0).any(0)


def in_torchs_order(weight):
    """Gates o, f, i, g as torch's LSTM has them: i, f, g, o."""
    o, f, i, g = weight.chunk(4)
    return torch.cat([i, f, g, o])


def torchs(channels, in_channels, weight_input, weight_state, bias):
    lstm = torch.nn.LSTM(in_channels, channels, batch_first=True)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(in_torchs_order(weight_input))
        lstm.weight_hh_l0.copy_(in_torchs_order(weight_state))
        lstm.bias_ih_l0.copy_(in_torchs_order(bias))
        lstm.bias_hh_l0.zero_()
    return lstm


def test_a_row_lstm_on_a_single_column_is_an_lstm():
    layer, x = nn.RowLSTM(3, 2, 4), torch.randn(6, 3, 9, 1)
    torch.nn.init.normal_(layer.input_to_state.bias)
    lstm = torchs(
        4,
        3,
        layer.input_to_state.weight[:, :, 0, -1],
        layer.state_to_state.weight[:, :, 0, 1],
        layer.input_to_state.bias,
    )
    expected = lstm(x[..., 0].mT)[0].mT
    torch.testing.assert_close(layer(x, None)[..., 0], expected)


@pytest.mark.parametrize("along_the_row", [True, False])
def test_a_diagonal_lstm_on_a_single_row_or_column(along_the_row):
    layer = nn.DiagonalBiLSTM(3, 2, 4)
    way, sequence, pixels = layer.rightwards, torch.randn(6, 3, 9), torch.zeros(6, 2, 9)
    if along_the_row:
        lstm = torchs(
            4, 3, way.input_to_state.weight[..., 0, 0], way.from_left.weight[..., 0, 0], way.input_to_state.bias
        )
        expected = lstm(sequence.mT)[0].mT
        torch.testing.assert_close(layer(sequence[:, :, None], pixels[:, :, None])[:, :, 0], expected)
        return
    # Down a column the state is handed on and the memory is not: it belongs to the row.
    state = torch.zeros(6, 4, 1, 1)
    for r, x in enumerate(sequence.unbind(-1)):
        gates = way.input_to_state(x[:, :, None, None]) + way.from_above(state)
        o, _, i, g = gates.chunk(4, 1)
        state = o.sigmoid() * (i.sigmoid() * g.tanh()).tanh()
        found = way(sequence[..., None])[:, :, r, 0]
        torch.testing.assert_close(found, state[:, :, 0, 0])


def test_skewed_rows_come_back():
    x = torch.arange(24.0).reshape(2, 3, 4) + 1
    assert skew(x).shape == (2, 3, 6)
    assert skew(x)[0].tolist() == [[1, 2, 3, 4, 0, 0], [0, 5, 6, 7, 8, 0], [0, 0, 9, 10, 11, 12]]
    assert torch.equal(unskew(skew(x)), x)


def test_a_row_lstm_sees_a_triangle():
    seen = field(nn.RowLSTM(3, 2, 4), 4, 3)
    expected = torch.zeros(5, 7, dtype=torch.bool)
    for i in range(5):
        expected[i, max(0, 3 - (4 - i) - 1) : 3 + (4 - i) + 1] = True  # and one more to the left, by the input's kernel
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("j", [0, 3, 6])
def test_a_diagonal_bilstm_sees_all_that_is_earlier(j):
    seen = field(nn.DiagonalBiLSTM(3, 2, 4), 3, j)
    earlier = torch.arange(35).reshape(5, 7) <= 3 * 7 + j
    assert torch.equal(seen, earlier)


def test_pixels_are_seen_one_row_late():
    layer = nn.DiagonalBiLSTM(3, 2, 4)
    pixels = torch.randn(1, 2, 5, 7, requires_grad=True)
    layer(torch.randn(1, 3, 5, 7), pixels)[0, :, 3, 2].sum().backward()
    seen = (pixels.grad[0] != 0).any(0)
    assert seen[:3, 2:].all() and not seen[3:].any()
