"""Where a run writes, and how often: the keys of the section `run`."""

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run folder, and how often to log, evaluate, save and sample.

    Attributes:
      output: the run folder; created if it does not exist. A gs:// or s3:// URL (needs the gcs or s3 extra) is written
        through a folder on this host, which is copied there every 30 seconds and at the end.
      seed: seed for Python, NumPy, JAX and the data order.
      device: device to run on: cpu, gpu or tpu; auto uses JAX's default.
      distributed: whether this is one of several processes: auto joins those that SLURM or Open MPI has started, true
        also those of Kubernetes (JobSet) or a TPU pod, false none; or ADDRESS:PORT,NUMBER,RANK, where the first process
        can be reached, how many there are and which this is. `output` must lie in a folder that all of them see.
      resume: continue the run in `output` from its newest checkpoint.
      log_every: steps (updates for RL) between records in metrics.jsonl; each record averages the steps since the
        last one.
      eval_every: steps between evaluations; 0 evaluates only at the end.
      save_every: steps between checkpoints; 0 saves only at the end.
      sample_every: steps between samples in samples.jsonl; 0 samples only at the end.
      sample_rows: number of prompts to sample each time.
      keep_last: number of most recent checkpoints to keep.
      best_metric: metric, such as eval/loss, whose best checkpoint is also kept, and exported at the end in place of
        the last one; empty keeps none.
      best_mode: whether a smaller (min) or a larger (max) best_metric is better.
      tensorboard: also write TensorBoard events (needs the tensorboard extra).
      wandb: also log to Weights & Biases (needs the wandb extra), to project jaxalign under the run folder's name;
        override them with WANDB_PROJECT and WANDB_NAME, and set WANDB_MODE=offline to upload nothing.
      mlflow: also log to MLflow (needs the mlflow extra) at MLFLOW_TRACKING_URI, to experiment jaxalign under the run
        folder's name; override them with MLFLOW_EXPERIMENT_NAME and MLFLOW_RUN_NAME.
      trackio: also log to Trackio (needs the trackio extra), to project jaxalign; override it with TRACKIO_PROJECT.
        Logs stay on this machine, or go to the Hugging Face Space named by TRACKIO_SPACE_ID.
      export_dtype: dtype of the exported weights; auto uses the dtype of the initial model's files, or
        model.param_dtype for randomly initialized weights.
      progress: show a progress line on standard error.
      profile_steps: optimizer steps (updates for RL) to profile, first:last such as 10:15; the trace is written to the
        folder profile, for TensorBoard with the xprof plugin. Empty profiles none.
      hang_minutes: minutes without a step after which the stacks of all threads are written to stacks.txt, with a
        warning; 0 never does that. The first step includes its compilation, every step what follows it.
      hang_exit: end the process then, with status 75, for a supervisor that starts it again with --resume.
      deterministic: choose programs that give the same bits on every run on a GPU, where they are slower; CPUs and TPUs
        do so anyway. A command sets XLA_FLAGS for it; in Python, set it yourself.
      compile_cache: keep compiled programs on disk for later runs on GPUs and TPUs: in JAX_COMPILATION_CACHE_DIR, or
        in jaxalign/xla of the user's cache folder. Command line only; Python calls leave JAX's settings alone.
    """

    output: str = ""
    seed: int = 0
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    distributed: str = "auto"
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
    profile_steps: str = ""
    hang_minutes: float = 30.0
    hang_exit: bool = False
    deterministic: bool = False
    compile_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("log_every", "eval_every", "save_every", "sample_every", "sample_rows"):
            if getattr(self, name) < 0:
                raise ValueError(f"run.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.hang_minutes < float("inf"):
            raise ValueError(f"run.hang_minutes must be 0 or more, got {self.hang_minutes}")
        if self.hang_exit and not self.hang_minutes:
            raise ValueError("run.hang_exit needs run.hang_minutes above 0")
        if self.keep_last < 1:
            raise ValueError(f"run.keep_last must be 1 or more, got {self.keep_last}")
        profiled_steps(self.profile_steps)


def profiled_steps(text: str) -> tuple[int, int] | None:
    """The first and the last step that `run.profile_steps` names; None where it is empty.

    Raises:
      ValueError: anything else than two numbers of steps, in order.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"run.profile_steps must be first:last, such as 10:15, got {text!r}")
    return int(match[1]), int(match[2])
