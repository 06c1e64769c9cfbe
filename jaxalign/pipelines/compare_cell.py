"""The cells of a comparison: where each lies, and what all of them begin with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxalign.pipelines.compare_config import CompareConfig
from jaxalign.pipelines.compare_methods import BEGINNINGS, METHODS, Method, trains_proxy
from jaxalign.runs import records
from jaxalign.training.core.reward_source import RewardSource


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell.

    Attributes:
      method: a name in METHODS; of a beginning in BEGINNINGS.
      seed: of training and sampling.
      beginning: whether it is what all methods begin with.
    """

    method: str
    seed: int = 0
    beginning: bool = False

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"begin-{self.method}" if self.beginning else f"{self.method}-{self.seed}"

    @property
    def about(self) -> Method:
        """The record of its method."""
        return (BEGINNINGS if self.beginning else METHODS)[self.method]

    def folder(self, config: CompareConfig) -> Path:
        """Where all of it lies."""
        return Path(config.output) / "cells" / self.name

    def result(self, config: CompareConfig) -> dict[str, Any] | None:
        """What it came to; None where it is not done."""
        file = self.folder(config) / "result.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def start_folder(config: CompareConfig) -> str:
    """The supervised model that all methods start from."""
    return config.sft or str(Cell(method="sft", beginning=True).folder(config) / "run")


def proxy_source(config: CompareConfig) -> RewardSource:
    """The reward that methods optimize."""
    if not trains_proxy(config):
        return config.proxy
    return replace(config.proxy, model=str(Cell(method="reward", beginning=True).folder(config) / "run"))


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON that appears whole or not at all."""
    records.write_whole(file, json.dumps(records.clean(values), indent=1, ensure_ascii=False))
