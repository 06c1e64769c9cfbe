"""How fast a run computes what its models need, and the share of its devices' peak that this is (MFU)."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from jaxalign.models.flops import Pass
from jaxalign.peaks import peak_of
from jaxalign.runs import Run


class Speed:
    """Model FLOPs of batches, and metrics of them.

    Args:
      run: told of devices whose peak is not known.
      mesh: the devices.
      passes: models' passes over a batch.
    """

    def __init__(self, run: Run, mesh: Mesh, passes: Sequence[Pass] = ()) -> None:
        self.passes, self.peak = passes, 0.0
        device = mesh.devices.flat[0]
        if device.platform == "cpu":
            return
        if (peak := peak_of(device.device_kind)) is not None:
            self.peak = peak.flops * mesh.size
        else:
            run.note(f"devices: the peak of {device.device_kind} is not known, so time/mfu is not logged")

    def flops(self, batch: Mapping[str, Any]) -> float:
        """Of a step on a batch, see `Pass.flops`."""
        return sum(each.flops(batch) for each in self.passes)

    def metrics(self, flops: float, seconds: float) -> dict[str, float]:
        """Model FLOPs a second, and their share of the peak where that is known."""
        if not flops or seconds <= 0:
            return {}
        found = {"time/model_flops_per_second": flops / seconds}
        return found | ({"time/mfu": flops / seconds / self.peak} if self.peak else {})
