"""Which models of a run wait in the host's memory between uses: the reference and the reward models."""

from typing import Any

import jax

from jaxalign.host_memory import to_host
from jaxalign.runs import Run


def offloaded(reference: Any, reward: Any, policy: Any, mesh: Any, run: Run) -> Any:
    """The reference's leaves in host memory, and the reward told to keep its own there.

    They are copied to the device for the scoring of a rollout and are gone from there while completions are sampled
    and the policy is updated. What is trained (policy, critic, optimizer state) stays: it changes with every update,
    so it would be moved twice each time.

    Args:
      reference: its leaves; empty where there is none.
      reward: see `jaxalign.rewards`; models there have a method `offload`, functions have none.
      policy: frozen leaves of the policy. With LoRA they are the reference too, which then cannot leave.
      mesh: the devices.
      run: is told, once, what was done.
    """
    if not accelerated(mesh):
        run.warn("train.offload=true: no effect on a CPU, where device and host share memory")
        return reference
    if hasattr(reward, "offload"):
        reward.offload()
    base = {id(x) for x in jax.tree.leaves(policy)}
    if any(id(x) in base for x in jax.tree.leaves(reference)):
        run.info("train.offload: the reference is the policy's base model, which stays on the device")
        return reference
    return to_host(reference)


def accelerated(mesh: Any) -> bool:
    """Whether the devices have memory of their own."""
    return all(device.platform != "cpu" for device in mesh.devices.flat)
