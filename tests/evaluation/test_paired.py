"""Differences on the items that two evaluations share."""

import math
from dataclasses import replace

import numpy as np
import pytest

from jaxalign.evaluation.items import read_items
from jaxalign.evaluation.paired import paired_difference
from jaxalign.evaluation.results import Figure
from tests.evaluation import evaluation_folders as folders


def evaluated(folder, scores, **changes):
    """The figure and the items of a model with these scores."""
    rows = [folders.item(i, score) | changes for i, score in enumerate(scores)]
    items = read_items(folders.write(folder, folders.results(), {"quiz": rows}), "quiz")
    known = [score for score in scores if score is not None]
    return Figure(value=sum(known) / len(known), low=0.0, high=1.0, count=len(known)), items


def test_the_difference_is_ours_less_the_baselines_and_its_interval_is_that_of_pairs(tmp_path):
    rng = np.random.default_rng(0)
    theirs = rng.normal(size=300)
    ours = theirs + rng.normal(0.5, 0.1, size=300)
    found = paired_difference(
        "accuracy", evaluated(tmp_path / "a", ours.tolist()), evaluated(tmp_path / "b", theirs.tolist())
    )
    d = ours - theirs
    assert found.mean == pytest.approx(d.mean()) and found.count == 300
    # 1.96 standard errors of paired differences, a seventh of those of unpaired ones.
    reach = 1.96 * d.std(ddof=1) / math.sqrt(300)
    assert found.high - found.mean == pytest.approx(reach, rel=0.1)
    assert found.mean - found.low == pytest.approx(reach, rel=0.1)


def test_the_interval_has_the_confidence_that_is_asked(tmp_path):
    pair = evaluated(tmp_path / "a", [1, 0, 1, 1] * 20), evaluated(tmp_path / "b", [0, 1, 1, 0] * 20)
    narrow, wide = (paired_difference("accuracy", *pair, confidence=c) for c in (0.5, 0.99))
    assert narrow.high - narrow.low < 0.5 * (wide.high - wide.low)


def test_only_items_that_both_have_a_score_of_pair_up(tmp_path):
    ours = evaluated(tmp_path / "a", [1.0, 1.0, None, 0.0, 1.0])
    baseline = evaluated(tmp_path / "b", [0.0, 1.0, 1.0, 0.0])
    found = paired_difference("accuracy", ours, baseline)
    assert (found.mean, found.count) == (pytest.approx(1 / 3), 3)


def test_items_of_other_prompts_do_not_pair_up(tmp_path):
    ours, baseline = evaluated(tmp_path / "a", [1.0, 0.0, 1.0]), evaluated(tmp_path / "b", [0.0, 0.0, 1.0])
    figure, items = baseline
    moved = items | {2: replace(items[2], prompt="another")}
    assert paired_difference("accuracy", ours, (figure, moved)).count == 2
    assert paired_difference("accuracy", ours, (figure, moved | {1: replace(items[1], prompt="x")})) is None


def test_a_figure_that_is_no_mean_of_scores_has_no_difference(tmp_path):
    figure, items = evaluated(tmp_path / "a", [1.0, 2.0])
    ours = replace(figure, value=math.exp(1.5)), items
    assert paired_difference("accuracy", (figure, items), (figure, items)) is not None
    assert paired_difference("accuracy", ours, (figure, items)) is None
    assert paired_difference("accuracy", (figure, items), ours) is None
    assert paired_difference("other", (figure, items), (figure, items)) is None
