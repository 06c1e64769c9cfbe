"""Direct preference optimization with the settings of its paper.

    python experiments/dpo.py --model.path=runs/sft --data.train='[pairs.jsonl]' --output runs/dpo

The same as `jaxalign dpo --config dpo ...`; `--config` names another file.
"""

import sys

from jaxalign.cli.main import main

CONFIG = "dpo"

if __name__ == "__main__":
    given = sys.argv[1:]
    named = any(item.split("=")[0] == "--config" for item in given)
    sys.exit(main(["dpo", *([] if named else ["--config", CONFIG]), *given]))
