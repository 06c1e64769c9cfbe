"""Supervised fine-tuning of all weights on demonstrations.

    python experiments/sft.py --model.path=MODEL --data.train='[demonstrations.jsonl]' --output runs/sft

The same as `jaxalign sft --config sft ...`; `--config` names another file.
"""

import sys

from jaxalign.cli.main import main

CONFIG = "sft"

if __name__ == "__main__":
    given = sys.argv[1:]
    named = any(item.split("=")[0] == "--config" for item in given)
    sys.exit(main(["sft", *([] if named else ["--config", CONFIG]), *given]))
