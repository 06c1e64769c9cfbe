"""The counting of decode work in `benchmarks/slots.py`: known lengths give known sums."""

import runpy
from pathlib import Path

import numpy as np

from jaxalign.rollout import decode

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "slots.py"


def test_rows_of_one_length_waste_no_step_and_the_programs_come_back():
    counted, before = runpy.run_path(str(SCRIPT))["counted"], decode.decode_block
    done = counted(np.full(16, 40), 16, 64)
    # The first token comes with the prompt.
    assert done.row_steps == 16 * 39
    assert done.columns == 16 * 39 * 128
    assert decode.decode_block is before


def test_a_long_row_costs_all_slots_without_looks_and_one_with_them():
    counted = runpy.run_path(str(SCRIPT))["counted"]
    lengths = np.asarray([10] * 15 + [512])
    assert counted(lengths, 16, 512).row_steps == 16 * 511
    # One block of all rows, then one row alone.
    assert counted(lengths, 16, 64).row_steps == 16 * 64 + (511 - 64)
