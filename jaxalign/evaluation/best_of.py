"""Best-of-n sampling: of n answers the one that a reward likes most."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxalign.evaluation.judging.judges import RewardModelJudge
from jaxalign.evaluation.subject import Answer, Asked, Subject


def best_of_kl(n: int) -> float:
    """Upper bound of the KL of best-of-n sampling from the policy that it samples from, nats.

    KL(best of n || policy) <= log n - (n - 1) / n, with equality where no two answers have one reward and the policy
    has no two alike

    Raises:
      ValueError: n below 1.

    Source: arXiv:2009.01325, appendix G.3; that it is a bound, and when it is met: arXiv:2401.01879.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_note(n: int) -> str:
    """What a reader must know of the KL."""
    return (
        f"best of {n} answers by the reward; their KL is not measured: it is at most {best_of_kl(n):.3g} nats"
    )


class BestOf:
    """A subject (see `Subject`) that keeps, of n answers, the one with the highest reward.

    Rewards that read columns of the rows cannot choose: they are given none.

    Args:
      subject: who answers.
      reward: see `jaxalign.rewards`; a tie goes to the answer sampled first, and one without reward comes last.
      n: answers to choose from.
    """

    def __init__(self, subject: Subject, reward: Any, n: int) -> None:
        self.subject, self.n = subject, n
        chat = subject.chat_model.format if hasattr(reward, "score") else None
        self._judge = RewardModelJudge(reward, chat=chat)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.subject, name)

    def answers(
        self, asked: Sequence[Asked], *, sampling: Mapping[str, Any], **options: Any
    ) -> Iterator[tuple[list[int], list[list[Answer]]]]:
        """As `Subject.answers`; n times as many are sampled."""
        more = {**sampling, "num_samples": int(sampling["num_samples"]) * self.n}
        for batch, answers in self.subject.answers(asked, sampling=more, **options):
            owner = [i for i, of_one in zip(batch, answers, strict=True) for _ in of_one]
            prompts = [x if isinstance(x := asked[i], str) else x[-1].content for i in owner]
            said = self._judge.rate(prompts, [answer.text for of_one in answers for answer in of_one])
            scores = iter(-math.inf if score is None else score for score in said)
            kept = []
            for of_one in answers:
                rated = [(next(scores), answer) for answer in of_one]
                groups = [rated[k : k + self.n] for k in range(0, len(rated), self.n)]
                kept.append([max(group, key=lambda pair: pair[0])[1] for group in groups])
            yield batch, kept
