"""Trainers: one file each for SFT, reward models, preference losses and PPO, on shared machinery."""

from jaxalign.models.folders import export_with


def _checkpoint_folder(run: str, checkpoint: str) -> str:
    from jaxalign.training.checkpoint_export import checkpoint_folder

    return checkpoint_folder(run, checkpoint)


# RUN@best and the like name models everywhere, and are exported here.
export_with(_checkpoint_folder)
