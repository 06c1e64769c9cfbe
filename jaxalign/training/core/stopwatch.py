"""Where the time of an update goes, and what it computes."""

import time
from dataclasses import dataclass, field

from jaxalign.rollout.traffic import DecodeTraffic


@dataclass
class Stopwatch:
    """Where the time of one update goes: sampling, then scoring, then optimizing.

    Attributes:
      started, sampled, scored: when each part began or ended, in seconds of `time.perf_counter`.
      flops: model FLOPs of the optimizer steps.
      decoding: what the sampler read of a device's memory; nothing where another engine samples.
    """

    started: float = field(default_factory=time.perf_counter)
    sampled: float = 0.0
    scored: float = 0.0
    flops: float = 0.0
    decoding: DecodeTraffic = field(default_factory=DecodeTraffic)

    def end_sampling(self) -> None:
        """Scoring begins."""
        self.sampled = time.perf_counter()

    def end_scoring(self) -> None:
        """Optimizing begins."""
        self.scored = time.perf_counter()

    def metrics(self, tokens: int) -> dict[str, float]:
        """Seconds of each part, and sampled tokens a second of the whole."""
        now = time.perf_counter()
        scored = self.scored or now
        return {
            "time/sample_seconds": self.sampled - self.started,
            "time/score_seconds": scored - self.sampled,
            "time/optimize_seconds": now - scored,
            "time/tokens_per_second": tokens / (now - self.started),
        }
