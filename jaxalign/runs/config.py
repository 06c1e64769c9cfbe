"""Where a run writes and how often."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run folder and its rhythm.

    Attributes:
      output: run folder; made where it is not there.
      seed: seeds Python, NumPy, JAX and the order of the data.
      device: cpu, gpu or tpu; auto takes what JAX finds.
      resume: go on from the newest checkpoint of the run in output.
      log_every: steps (updates) between records in metrics.jsonl, each the means over them.
      eval_every: steps between evaluations; 0 evaluates at the end only.
      save_every: steps between checkpoints; 0 saves at the end only.
      sample_every: steps between rows in samples.jsonl; 0 samples at the end only.
      sample_rows: prompts sampled each time.
      keep_last: newest checkpoints kept.
      best_metric: also keep the checkpoint that is best by this metric, for example eval/loss, and export it at the end
        in place of the last; empty for none.
      best_mode: whether the smallest or the largest is best.
      tensorboard: write TensorBoard events too (needs the tensorboard extra).
      wandb: log to Weights & Biases too (needs the wandb extra), to project jaxalign under the folder's name unless
        WANDB_PROJECT and WANDB_NAME say otherwise; WANDB_MODE=offline stays here.
      mlflow: log to MLflow too (needs the mlflow extra), where MLFLOW_TRACKING_URI says, to experiment jaxalign under
        the folder's name unless MLFLOW_EXPERIMENT_NAME and MLFLOW_RUN_NAME say otherwise.
      trackio: log to Trackio too (needs the trackio extra), to project jaxalign unless TRACKIO_PROJECT says otherwise;
        on this machine, or in the Hugging Face Space that TRACKIO_SPACE_ID names.
      export_dtype: dtype of exported weights; auto takes that of the files which the run began with, and for weights
        that it drew itself model.param_dtype.
      progress: show a progress line on standard error.
    """

    output: str = ""
    seed: int = 0
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    resume: bool = False
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 0
    sample_every: int = 0
    sample_rows: int = 4
    keep_last: int = 2
    best_metric: str = ""
    best_mode: Literal["min", "max"] = "min"
    tensorboard: bool = False
    wandb: bool = False
    mlflow: bool = False
    trackio: bool = False
    export_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("log_every", "eval_every", "save_every", "sample_every", "sample_rows"):
            if getattr(self, name) < 0:
                raise ValueError(f"run.{name} must not be negative, got {getattr(self, name)}")
        if self.keep_last < 1:
            raise ValueError(f"run.keep_last must be 1 or more, got {self.keep_last}")
