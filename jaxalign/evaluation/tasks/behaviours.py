"""Questions whose answer shows a behaviour: Anthropic's HHH comparisons, and its model-written evaluations.

HHH (arXiv:2112.00861; the 438 binary questions of arXiv:2212.08073): of two answers, which is the more helpful, honest
and harmless? The right choice is people's. Model-written evaluations (arXiv:2212.09251): a choice matches a behaviour
(sycophancy, a persona, a wish for power) or does not. `accuracy` is then how often the model shows the behaviour: no
figure to be raised or lowered as such.
"""

from jaxalign.errors import DataError
from jaxalign.evaluation.tasks.choices import Choices
from jaxalign.evaluation.tasks.rows import benchmark_rows


def read_hhh(path: str) -> list[Choices]:
    """`prompt` (with both answers as options), `corrects`, `incorrects`."""
    return [
        _choices(row.place, row.text("prompt"), row.texts("corrects"), row.texts("incorrects"))
        for row in benchmark_rows(path)
    ]


def read_model_written(path: str) -> list[Choices]:
    """`question`, `answer_matching_behavior`, `answer_not_matching_behavior`; groups by `file`, where it is there.

    The question is asked as the paper asks a model that is no dialogue model: "Human: ... Assistant:".
    """
    return [
        _choices(
            row.place,
            f"\n\nHuman: {row.text('question').strip()}\n\nAssistant:",
            [row.text("answer_matching_behavior")],
            [row.text("answer_not_matching_behavior")],
            str(row.fields.get("file") or ""),
        )
        for row in benchmark_rows(path)
    ]


def _choices(place: str, context: str, right: list[str], wrong: list[str], group: str = "") -> Choices:
    if both := set(right) & set(wrong):
        raise DataError(f"{place}: {min(both)!r} is among the right answers and the wrong ones")
    # In the order of their texts: the right one does not always stand first, where a tie would make it the winner.
    choices = sorted({*right, *wrong})
    return Choices(place, context, tuple(choices), tuple(choices.index(text) for text in right), group)
