"""The score that a field says."""

import pytest

from jaxalign.data.scores import score_in

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("said", "score"),
    [
        (7, 7.0),
        ("7", 7.0),
        (" 7.5\n", 7.5),
        ("-1.5", -1.5),
        (".5", 0.5),
        ("1e2", 100.0),
        ("5.", 5.0),
        ("This question would be rated a 9. It has 2 parts.", 9.0),
        ("The answer earns 4.5 points.", 4.5),
        ("On a scale of 1-10, I would say 6.", 6.0),
        ("On a scale from 1 to 10 this is 8/10", 8.0),
        ("Rating (1-10): 7", 7.0),
        ("Out of 5, I give 2", 2.0),
        ("8/10", 8.0),
        ("4 out of 5", 4.0),
        ("Score: 3.5/5 because of 2 errors", 3.5),
        ("**Score: 9**, 3 sentences", 9.0),
        ("Rating: [[5]]", 5.0),
        ("Score: -.5", -0.5),
        ("I give it 3 stars, 2 more than yesterday", 3.0),
        ("GPT-4 calls it a 3", 3.0),
        ("The score is good. It has 3 parts, and I rate it 7", 7.0),
    ],
)
def test_score_is_the_number_that_the_prose_says(said, score):
    assert score_in(said) == score


@pytest.mark.parametrize(
    "said",
    [
        "hard",
        "",
        None,
        True,
        False,
        [3],
        "it has 3 parts and 4 errors",
        "score 7 and rating 8",
        "2 of 5 parts",
    ]
    + ["I give 2 reasons: 8/10", "1,000", "3/4/2020", NAN, INFINITY, -INFINITY, 10**400]
    + ["nan", "inf", "Infinity", "1e400", "9" * 5000],
)
def test_what_does_not_say_one_score_is_none(said):
    assert score_in(said) is None
