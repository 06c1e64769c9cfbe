"""What a record in metrics.jsonl says of the steps since the last one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# How metrics end that are a maximum, and those that are what was set.
LARGEST = ("_max", "rollout/logp_gap")
LATEST = ("learning_rate", "kl_coefficient", "loss_scale")


@dataclass
class Interval:
    """Metrics of the steps (or updates) since the last record.

    Attributes:
      steps: how many.
      totals: sums over them by name; of a maximum (`LARGEST`) the largest, of a setting (`LATEST`) the last.
      counts: how many steps have each name, where it is not all.
    """

    steps: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        """One step more."""
        for name in self.totals.keys() | values.keys():
            had = self.counts.pop(name, self.steps if name in self.totals else 0) + (name in values)
            if had <= self.steps:
                self.counts[name] = had
        self.steps += 1
        for name, value in values.items():
            old = self.totals.get(name)
            if old is None or name.endswith(LATEST):
                self.totals[name] = value
            else:
                self.totals[name] = max(old, value) if name.endswith(LARGEST) else old + value

    def means(self) -> dict[str, float]:
        """Means by name over the steps that have it; the largest of a maximum, the last of a setting."""
        return {
            name: total if name.endswith(LARGEST + LATEST) else total / self.counts.get(name, self.steps)
            for name, total in self.totals.items()
        }
