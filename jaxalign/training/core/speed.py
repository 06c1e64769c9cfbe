"""How fast a run computes what its models need and reads what it decodes with, and the share of its devices' peaks that
this is (MFU, MBU)."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from jaxalign.models.flops import Pass
from jaxalign.peaks import peak_of
from jaxalign.rollout.traffic import DecodeTraffic
from jaxalign.runs import Run


class Speed:
    """Model FLOPs of batches, and metrics of them.

    Args:
      run: told of devices whose peak is not known.
      mesh: the devices.
      passes: models' passes over a batch.
    """

    def __init__(self, run: Run, mesh: Mesh, passes: Sequence[Pass] = ()) -> None:
        self.passes, self.peak, self.bandwidth = passes, 0.0, 0.0
        device = mesh.devices.flat[0]
        if device.platform == "cpu":
            return
        if (peak := peak_of(device.device_kind)) is not None:
            self.peak, self.bandwidth = peak.flops * mesh.size, peak.bandwidth
        else:
            run.note(
                f"devices: the peak of {device.device_kind} is not known, so time/mfu and time/mbu are not logged"
            )

    def flops(self, batch: Mapping[str, Any]) -> float:
        """Of a step on a batch, see `Pass.flops`."""
        return sum(each.flops(batch) for each in self.passes)

    def metrics(self, flops: float, seconds: float) -> dict[str, float]:
        """Model FLOPs a second, and their share of the peak where that is known."""
        if not flops or seconds <= 0:
            return {}
        found = {"time/model_flops_per_second": flops / seconds}
        return found | ({"time/mfu": flops / seconds / self.peak} if self.peak else {})

    def decode_metrics(self, decoding: DecodeTraffic) -> dict[str, float]:
        """Bytes a second that a device reads to decode, and their share of its bandwidth where that is known."""
        if not decoding.bytes or decoding.seconds <= 0:
            return {}
        rate = decoding.bytes / decoding.seconds
        return {"time/decode_bytes_per_second": rate} | (
            {"time/mbu": rate / self.bandwidth} if self.bandwidth else {}
        )
