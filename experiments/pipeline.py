"""SFT -> reward model -> PPO and DPO -> comparison table and report, in one process.

    python experiments/pipeline.py --sft.model.path=MODEL --sft.data.train='[demonstrations.jsonl]' \
        --reward.data.train='[pairs.jsonl]' --ppo.data.train='[pairs.jsonl]' --output=runs/pipeline

`--config FILE` takes another file than the shipped `pipeline.yaml`, with sections sft, reward, ppo, dpo, evaluation.
"""

import sys

from jaxalign.cli.main import split_arguments
from jaxalign.config import parse
from jaxalign.errors import UserError
from jaxalign.pipelines.pipeline import PipelineConfig, run_pipeline

if __name__ == "__main__":
    try:
        file, overrides = split_arguments(sys.argv[1:])
        config = parse(PipelineConfig, file or "pipeline", [f"--{key}={value}" for key, value in overrides])
        run_pipeline(config)
    except UserError as error:
        sys.exit(f"pipeline: {error}")
