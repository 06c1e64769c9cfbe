"""What the proof suite knows of every loss: how it is called, on what, and what must hold for it.

A case is one function with one set of options. The suite (`test_parity.py`, `test_properties.py`,
`test_errors.py`), the reference values (`tests/golden/make_losses.py`) and the table in `docs/losses.md` are
all made from this one list, so that the claim and the proof cannot part. Nothing here needs torch.
"""

from tests.losses.cases import advantages, auxiliary, flow, online, policy, preference, reward, supervised
from tests.losses.cases.case import Case

FAMILIES: dict[str, list[Case]] = {
    "supervised": supervised.CASES,
    "reward": reward.CASES,
    "preference": preference.CASES,
    "policy": policy.CASES,
    "advantages": advantages.CASES,
    "online": online.CASES,
    "flow": flow.CASES,
    "auxiliary": auxiliary.CASES,
}
CASES = [case for cases in FAMILIES.values() for case in cases]
