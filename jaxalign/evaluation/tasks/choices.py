"""Questions with choices, answered by log-likelihood."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Choices:
    """A question of which a model's answer is the choice that it finds likeliest.

    Attributes:
      place: file:line that it comes from.
      context: what stands before a choice, as text.
      choices: at least two, each as it follows the context, with its leading space.
      right: places of the right ones, at least one and not all.
      group: by which results are also reported: a category, a behaviour; may be empty.
    """

    place: str
    context: str
    choices: tuple[str, ...]
    right: tuple[int, ...]
    group: str = ""

    def __post_init__(self) -> None:
        if not 0 < len(set(self.right)) < len(self.choices) or not set(self.right) < {
            *range(len(self.choices))
        }:
            raise ValueError(f"{self.place}: right answers {self.right} of {len(self.choices)} choices")


def choice_scores(question: Choices, logps: np.ndarray) -> dict[str, float]:
    """How well log-likelihoods answer a question.

    Of several choices that are equally likely the first is taken.

    Args:
      question: with K choices.
      logps: [K], summed log-prob of each choice after the context, nats.

    Returns:
      accuracy: 1 where the likeliest choice is a right one, else 0.
      accuracy_per_byte: the same by log-prob over the choice's UTF-8 bytes, without its leading space, so that long
        choices are not at a disadvantage (the harness's `acc_norm` divides by characters instead).
      right_probability: of the right choices together, as a part of all choices' probability. TruthfulQA's MC2
        (arXiv:2109.07958, section 3.2).

    Raises:
      ValueError: another number of log-probs than choices, or one that is NaN or above 0.
    """
    logps = np.asarray(logps, np.float64)
    if logps.shape != (len(question.choices),):
        raise ValueError(f"{question.place}: expected {len(question.choices)} log-probs, got {logps.shape}")
    if np.isnan(logps).any() or (logps > 1e-3).any():
        raise ValueError(f"{question.place}: a log-prob is NaN or above 0: {logps.tolist()}")
    sizes = [max(len(choice.strip().encode()), 1) for choice in question.choices]
    shares = np.exp(logps - np.logaddexp.reduce(logps))
    return {
        "accuracy": float(int(np.argmax(logps)) in question.right),
        "accuracy_per_byte": float(int(np.argmax(logps / sizes)) in question.right),
        "right_probability": float(shares[list(question.right)].sum()),
    }


def chance(question: Choices) -> dict[str, float]:
    """The same figures of a guess: each choice as likely as the others."""
    guess = len(question.right) / len(question.choices)
    return {"accuracy": guess, "accuracy_per_byte": guess, "right_probability": guess}
