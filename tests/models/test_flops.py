"""Model FLOPs: worked out by hand, as arithmetic."""

from dataclasses import replace

import numpy as np
import pytest

from jaxalign.models.config import ModelConfig
from jaxalign.models.flops import Pass, training_pass
from jaxalign.models.lora import LoraConfig

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=8, intermediate_size=20, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=2,
    max_positions=32,
)  # fmt: skip
# q, k, v, o; gate, up, down.
LAYERS = 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 20)
# Scores and values: a multiplication and an addition for each pair of tokens, head and number of a head.
PAIR = 3 * 4 * 2 * 2 * 2


def row(length, counted):
    mask = np.arange(length) >= length - counted
    return {"lengths": np.array([length]), "mask": mask[None]}


def test_a_forward_pass_multiplies_with_every_matrix_once_and_with_the_head_where_the_loss_reads():
    frozen = Pass(config=CONFIG, learns="nothing")
    assert frozen.flops(row(6, 2)) == 2 * (LAYERS * 6 + 50 * 8 * 2) + PAIR * 21
    assert replace(frozen, head=False).flops(row(6, 2)) == 2 * LAYERS * 6 + PAIR * 21


def test_training_takes_six_operations_a_weight_and_an_adapter_spares_the_gradients_of_weights():
    assert training_pass(CONFIG, None).flops(row(6, 6)) == 6 * (LAYERS + 50 * 8) * 6 + 3 * PAIR * 21
    lora = LoraConfig(enabled=True, rank=2, targets=("q_proj", "down_proj"))
    adapter = 3 * 2 * ((8 + 8) + (20 + 8))
    wanted = 4 * (LAYERS + 50 * 8) * 6 + 3 * PAIR * 21 + 6 * adapter * 6
    assert training_pass(CONFIG, lora).flops(row(6, 6)) == wanted


def test_a_sliding_window_bounds_the_tokens_that_are_attended_to():
    sliding = replace(CONFIG, sliding_window=3, sliding_layers=(True, False, True))
    windowed = 1 + 2 + 3 + 3 + 3 + 3
    found = Pass(config=sliding, learns="nothing", head=False).flops(row(6, 0))
    assert found == 2 * LAYERS * 6 + PAIR / 3 * (2 * windowed + 21)


def test_attention_is_counted_row_by_row_and_padding_never():
    one, two = training_pass(CONFIG, None).flops(row(4, 4)), training_pass(CONFIG, None).flops(row(9, 9))
    lengths, columns = np.array([[4], [9]]), np.arange(16)
    both = {"lengths": lengths, "mask": columns < lengths[..., None]}
    assert training_pass(CONFIG, None).flops(both) == one + two


def test_filler_rows_and_columns_that_are_not_there_take_nothing():
    twice = {"lengths": np.array([6, 6]), "mask": np.ones((2, 6), bool), "filler_tokens": 6}
    assert training_pass(CONFIG, None).flops(twice) == training_pass(CONFIG, None).flops(row(6, 6))
    assert Pass(config=CONFIG, prefix="kl_").flops(twice) == 0


def test_a_long_row_of_a_large_model_takes_what_palms_formula_says_with_half_the_square():
    shape = ModelConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=32,
        num_kv_heads=8, head_dim=64, max_positions=4096,
    )  # fmt: skip
    found = training_pass(shape, None).of_rows([2048], 2048)
    assert found == pytest.approx(2048 * (6 * 1_235_746_816 + 6 * 16 * 2048 * 2048), rel=1e-4)
