"""Token rewards of a data set's comparisons, as batches get them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.llmdoctor.token_reward_rule import Rewarded


@dataclass(frozen=True)
class TokenRewardTable:
    """Token rewards of a data set's comparisons.

    Attributes:
      train: by the row ids of training batches.
      validation: by those of validation batches.
      skip: whether pairs without any reward are left out of the loss.
      facts: see `summary`.
    """

    train: Rewarded
    validation: Rewarded
    skip: bool
    facts: Mapping[str, Any]

    def attached(self, batch: Mapping[str, Any], *, training: bool) -> dict[str, Any]:
        """The batch with `rewards` float32 [B, 2, T], 0 outside the completions.

        Where pairs without any reward are to be skipped, their `valid` is False.

        Args:
          batch: comparisons as `batch.pair_axis` arranges them: tokens and mask [B, 2, T]; row_ids and valid [B].
          training: whether row ids are those of the training set.

        Raises:
          ValueError: a batch of other data.
        """
        split = self.train if training else self.validation
        mask, ids = np.asarray(batch["mask"]), np.asarray(batch["row_ids"])
        places = split.scores.places(ids)
        if not np.array_equal(np.asarray(batch["tokens"])[mask], split.scores.token_ids[places]):
            raise ValueError("the batch's completions are not those of the token rewards")
        rewards = np.zeros(mask.shape, np.float32)
        rewards[mask] = split.rewards[places]
        result = {**batch, "rewards": rewards}
        if self.skip:
            result["valid"] = np.asarray(batch["valid"]) & (split.kept.sum(1)[ids] > 0)
        return result

    def summary(self) -> dict[str, Any]:
        """For metadata.json.

        Returns:
          rows, validation_rows: pairs. tokens: of both responses of all training pairs; kept_fraction: part of them
          with a reward. threshold: what S had to exceed. mean_delta: mean |difference| of the faces, nats a token.
          zero_rows: training pairs without any reward, zero_responses: responses; floored_responses: those whose mean
          difference is below min_mean_delta.
          agreement: part of the training pairs whose preferred response gains more log-prob by the positive
          instruction (over the negative one) than the other does, with a 95% interval agreement_low, agreement_high;
          0.5 where the faces say nothing about the labels.
          cut_rows: pairs of both splits whose prompt was cut to fit the patient's context.
          scored_rows: pairs scored now, not read from files; scored_tokens (prompts too) and seconds likewise;
          tokens_per_second leaves out the first use of each program, 0 where nothing else was scored.
          scores_folder, rewards_folder: the files, empty where none are kept.
        """
        return dict(self.facts)
