"""A process reward model as a reward: token rewards where the steps of a completion end."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxalign.data import ChatFormat
from jaxalign.errors import ConfigError
from jaxalign.models.heads import ScalarModel
from jaxalign.rewards.base import Rewards
from jaxalign.rewards.calls import RewardRequest
from jaxalign.rewards.model import check_vocabulary, program_of, token_scores

StepScore = Literal["minimum", "difference", "probability", "logit"]


class ProcessReward:
    """Token rewards [N, C] from a token-level `ScalarModel`: its reward of each step, where the step ends.

    A step ends at the token that holds its separator's end; the last one at the completion's last token,
    with or without a separator. Blank text between separators is not a step. As in
    training, each step is tokenized by itself and followed by the separator's own tokens, regardless of the policy's
    tokens: the text is scored. A row longer than the model's context loses its beginning.

    With p_k the probability that step k is right, its reward is

        minimum      m_k - m_{k-1}, with m_k = min(p_1 ... p_k) and m_0 = 0;  the sum is the lowest p
        difference   p_k - p_{k-1}, with p_0 = 0;                             the sum is the last p
        probability  p_k
        logit        log(p_k / (1 - p_k))

    What a policy is trained on is a sum of rewards still to come (PPO) or of all (GRPO). A sum of
    probabilities grows with every further step, and policies learn to repeat correct, needless ones
    (arXiv:2410.15115); the first two sums lie in [0, 1] whatever the number of steps. The lowest probability
    is how a solution is scored by its steps (arXiv:2305.20050) and keeps a wrong step from being
    made up for by later ones (arXiv:2504.15275); hence the default. For models whose p is the chance of a right
    end (arXiv:2312.08935), `difference` gives each step the change it made, its progress (arXiv:2410.08146).
    `probability` is what `losses.process_group_advantages` was made for.

    Args:
      model: a scalar model with `steps`; it must share the policy's tokenizer.
      tokenizer: the policy's.
      separator: text that ends a step; empty takes the model's own.
      score: minimum, difference, probability or logit.
      batch_size, pad_multiple: see `rewards.model.token_scores`.
      vocabulary: the policy's size, checked where given.

    Raises:
      ConfigError: no separator, here or in the model, or one without a token.
      UserError: the model knows fewer tokens than the policy.
    """

    def __init__(
        self,
        model: ScalarModel,
        tokenizer: Any,
        *,
        separator: str = "",
        score: StepScore = "minimum",
        batch_size: int = 32,
        pad_multiple: int = 32,
        vocabulary: int | None = None,
    ) -> None:
        check_vocabulary(model, vocabulary)
        self.separator = separator or (model.steps.separator if model.steps else "")
        if not self.separator:
            raise ConfigError(
                "reward.separator: the process reward model's folder does not name its separator; set the text "
                "that ends a step in its training data"
            )
        self.config = model.config
        self.kind: StepScore = score
        self.batch_size, self.pad_multiple = batch_size, pad_multiple
        self._text = ChatFormat(tokenizer, "plain", ())
        self._end = self._text.continuation_ids(self.separator)
        if not self._end:
            raise ConfigError(f"reward.separator: the tokenizer cannot encode {self.separator!r}")
        self._split = StepSplitter(tokenizer, self.separator)
        self._program = program_of(model)

    def score(self, request: RewardRequest) -> Rewards:
        """`Rewards` with token rewards [N, C] and where steps end."""
        steps_of_rows = [self._split(ids) for ids in request.completion_ids]
        logits = self.step_logits(
            request.prompt_ids, [[text for text, _ in steps] for steps in steps_of_rows]
        )
        rewards = np.zeros((len(steps_of_rows), request.width), np.float32)
        ends = np.zeros(rewards.shape, bool)
        for row, (steps, values) in enumerate(zip(steps_of_rows, logits, strict=True)):
            at = [token for _, token in steps]
            ends[row, at] = True
            # Two separators in one token: what their steps earn lands there together.
            np.add.at(rewards[row], at, step_rewards(values, self.kind))
        counts = [len(values) for values in logits]
        p = [_probability(values) for values in logits if len(values)]
        metrics = {"steps": float(np.mean(counts)) if counts else 0.0}
        if p:
            metrics["step_probability"] = float(np.concatenate(p).mean())
            metrics["lowest_step"] = float(np.mean([x.min() for x in p]))
        return Rewards(token_rewards=rewards, steps=ends, metrics=metrics)

    def offload(self) -> None:
        """Keeps the weights in host memory between calls from now on."""
        self._program.offload()

    def step_logits(
        self, prompts: Sequence[Sequence[int]], steps: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """float32: the logit of each step of each row.

        Args:
          prompts: token ids.
          steps: the steps' texts, without separators.
        """
        rows, ends = [], []
        for prompt, texts in zip(prompts, steps, strict=True):
            row, at = list(prompt), []
            for text in texts:
                row += [*self._text.continuation_ids(text), *self._end]
                at.append(len(row) - 1)
            over = max(len(row) - self.config.max_positions, 0)
            rows.append(row[over:])
            ends.append(np.maximum(np.asarray(at, np.int64) - over, 0))
        logits = token_scores(self._program, rows, batch_size=self.batch_size, pad_multiple=self.pad_multiple)
        return [of_row[at] for of_row, at in zip(logits, ends, strict=True)]


def step_rewards(logits: np.ndarray, kind: StepScore) -> np.ndarray:
    """Rewards of a completion's steps, in order, from their logits; see `ProcessReward`."""
    if kind == "logit":
        return logits
    p = _probability(logits)
    if kind == "probability":
        return p
    return np.diff(np.minimum.accumulate(p) if kind == "minimum" else p, prepend=np.float32(0))


def _probability(logits: np.ndarray) -> np.ndarray:
    # Not 1 / (1 + exp(-x)), which overflows.
    return (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)


class StepSplitter:
    """Token ids of a completion -> (text, index of the last token) of each step.

    Args:
      tokenizer: the policy's.
      separator: text that ends a step.
    """

    def __init__(self, tokenizer: Any, separator: str) -> None:
        self._tokenizer, self._separator = tokenizer, separator
        # Tokenizers drop a space at the beginning of what they decode, so pieces are read behind another token,
        # one that is written (a letter outside the vocabulary would be a special token, which is not).
        letter = tokenizer("a", add_special_tokens=False)["input_ids"]
        others = ([i] for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids)
        self._anchor = next(ids for ids in itertools.chain([letter], others) if self._decode(ids).strip())
        self._before = len(self._decode(self._anchor))
        self._pieces: dict[int, str] = {}

    def __call__(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        pieces = [self._piece(int(i)) for i in ids]
        whole, after = "".join(pieces), np.cumsum([len(piece) for piece in pieces])
        steps: list[tuple[str, int]] = []
        position = 0
        while position < len(whole):
            at = whole.find(self._separator, position)
            stop = len(whole) if at < 0 else at + len(self._separator)
            end = len(whole) if at < 0 else at
            first, last = (int(np.searchsorted(after, x, side="right")) for x in (position, end - 1))
            text = whole[position:end]
            if "\N{REPLACEMENT CHARACTER}" in text:
                # Characters that several tokens make up together.
                text = self._decode([*self._anchor, *ids[first : last + 1]])[self._before :]
                head, tail = position - (after[first] - len(pieces[first])), after[last] - end
                text = text[head : len(text) - tail]
            if text.strip():
                steps.append((text, int(np.searchsorted(after, stop))))
            position = stop
        if steps:
            steps[-1] = (steps[-1][0], len(pieces) - 1)
        return steps

    def _piece(self, token: int) -> str:
        """What a token adds to a text; nothing for special tokens."""
        if token not in self._pieces:
            self._pieces[token] = self._decode([*self._anchor, token])[self._before :]
        return self._pieces[token]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
