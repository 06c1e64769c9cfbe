"""A reward model on the trunk of a supervised model, from preference pairs.

    python experiments/reward.py --model.path=runs/sft --data.train='[pairs.jsonl]' --output runs/reward

The same as `jaxalign reward --config reward ...`; `--config` names another file.
"""

import sys

from jaxalign.cli.main import main

CONFIG = "reward"

if __name__ == "__main__":
    given = sys.argv[1:]
    named = any(item.split("=")[0] == "--config" for item in given)
    sys.exit(main(["reward", *([] if named else ["--config", CONFIG]), *given]))
