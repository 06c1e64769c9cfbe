"""PPO with the settings of the literature: tldr2024 (default) or openai2019.

    python experiments/ppo.py --config openai2019 --model.path=runs/sft --reward.model=runs/reward \
        --data.train='[pairs.jsonl]' --output runs/ppo

The same as `jaxalign ppo --config tldr2024 ...`; `--config` names another file.
"""

import sys

from jaxalign.cli.main import main

CONFIG = "tldr2024"

if __name__ == "__main__":
    given = sys.argv[1:]
    named = any(item.split("=")[0] == "--config" for item in given)
    sys.exit(main(["ppo", *([] if named else ["--config", CONFIG]), *given]))
