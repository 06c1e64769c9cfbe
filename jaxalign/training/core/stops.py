"""Where the completions of a run end."""

from typing import Any

from jaxalign import models
from jaxalign.data import DataConfig, chat_of


def with_stops(model: Any, data: DataConfig, tokenizer: Any) -> Any:
    """The model that also stops at its tokenizer's EOS, and at what `data` teaches as the end of a turn.

    Raises:
      DataError: as `chat_of`.
      ModelError: such a token is outside the model's vocabulary.
    """
    return models.with_stops(model, (*models.tokenizer_stops(tokenizer), *chat_of(data, tokenizer).stop_ids))
