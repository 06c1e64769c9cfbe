"""The shape of the package: imports run one way, files stay short, `import jaxalign` stays light."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxalign"

# A group may import the groups before it, never itself's neighbours; see the style guide in CONTRIBUTING.md.
BASE = {
    "target",
    "peaks",
    "arrays",
    "buckets",
    "masking",
    "logprobs",
    "processes",
    "mesh",
    "host_memory",
    "remote",
    "determinism",
    "errors",
    "uncertainty",
    "measures",
    "config",
    "config_values",
    "config_words",
}
LEVELS = [
    BASE,
    {"losses", "data", "kernels"},
    {"models"},
    {"checkpoints", "rollout", "rewards", "runs"},
    {"training"},
    {"llmdoctor"},
    {"inference"},
    {"evaluation"},
    {"hitl", "serving", "export", "plan"},
    {"pipelines"},
    {"cli"},
]
LEVEL = {group: level for level, groups in enumerate(LEVELS) for group in groups}
# The rooms of `jaxalign.training`, likewise: each may import those before it, and modules that lie in no room.
ROOMS = ["core", "sft", "distill", "preference", "reward_model", "rl"]
# Among the groups of the base: who may import whom, left of right.
BASE_ORDER = [
    "errors",
    "determinism",
    "remote",
    "uncertainty",
    "measures",
    "buckets",
    "target",
    "peaks",
    "arrays",
    "masking",
    "processes",
    "mesh",
    "logprobs",
    "host_memory",
    "config_values",
    "config_words",
    "config",
]

MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
# Names that only extras provide; the core must import without them.
EXTRAS = {
    "wandb",
    "mlflow",
    "trackio",
    "tensorboardX",
    "torch",
    "trl",
    "gcsfs",
    "s3fs",
    "gguf",
    "llama_cpp",
    "lm_eval",
    "sacrebleu",
    "rouge_score",
}


def group_of(module: str) -> str | None:
    """`jaxalign.models.heads` -> `models`; the package itself and its entry point have none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else None


def imports_of(tree: ast.AST) -> set[str]:
    """Every module that a file imports, lazily or not; `from jaxalign import x` gives `jaxalign.x`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            found.add(node.module)
            if node.module == "jaxalign":
                found |= {f"jaxalign.{alias.name}" for alias in node.names if not alias.name.startswith("__")}
            if node.module == "jaxalign.training":
                found |= {f"jaxalign.training.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str | None:
    """`jaxalign.training.rl.ppo` -> `rl`; other modules are in none."""
    parts = module.split(".")
    return parts[2] if len(parts) > 2 and parts[1] == "training" else None


def may_import(importer: str, imported: str) -> bool:
    """Whether one group may import another."""
    if importer == imported:
        return True
    if importer in BASE and imported in BASE:
        return BASE_ORDER.index(imported) < BASE_ORDER.index(importer)
    return LEVEL[imported] < LEVEL[importer]


def wrong_imports(importer: str, tree: ast.AST) -> list[str]:
    """The imports of a module that run against the direction."""
    own = group_of(importer)
    if own is None:
        return []
    groups = {group_of(name) for name in imports_of(tree) if name.split(".")[0] == "jaxalign"} - {None}
    return sorted(group for group in groups if group not in LEVEL or not may_import(own, group))


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_run_one_way(path):
    name = NAMES[MODULES.index(path)]
    assert group_of(name) is None or group_of(name) in LEVEL, f"{name}: a group that LEVELS does not know"
    assert wrong_imports(name, ast.parse(path.read_text())) == []


def wrong_rooms(importer: str, tree: ast.AST) -> list[str]:
    """The rooms of training that a module of one imports against their order."""
    own = room_of(importer)
    if own is None:
        return []
    rooms = {room_of(name) for name in imports_of(tree)} - {None, own}
    return sorted(room for room in rooms if room not in ROOMS or ROOMS.index(room) > ROOMS.index(own))


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if "training" in path.parts],
    ids=lambda path: path.relative_to(PACKAGE).as_posix(),
)
def test_the_rooms_of_training_import_one_way(path):
    name = NAMES[MODULES.index(path)]
    assert room_of(name) is None or room_of(name) in ROOMS, f"{name}: a room that ROOMS does not know"
    assert wrong_rooms(name, ast.parse(path.read_text())) == []


def test_the_check_of_the_rooms_sees_a_wrong_import():
    wrong = ast.parse("from jaxalign.training.rl import ppo")
    assert wrong_rooms("jaxalign.training.core.loop", wrong) == ["rl"]
    assert wrong_rooms("jaxalign.training.preference.dpo", wrong) == ["rl"]
    right = ast.parse("from jaxalign.training.preference import objectives")
    assert wrong_rooms("jaxalign.training.rl.online_dpo", right) == []


@pytest.mark.parametrize(
    ("importer", "line", "wrong"),
    [
        ("jaxalign.losses.dpo", "from jaxalign.models import heads", ["models"]),
        ("jaxalign.losses.dpo", "from jaxalign import data", ["data"]),
        ("jaxalign.losses.dpo", "from jaxalign.losses.reductions import token_mean", []),
        ("jaxalign.rollout.generate", "def f():\n    import jaxalign.runs", ["runs"]),
        ("jaxalign.masking", "from jaxalign.logprobs import token_logprobs", ["logprobs"]),
        ("jaxalign.training.sft", "from jaxalign.models import heads", []),
        ("jaxalign.models.heads", "from jaxalign.nowhere import x", ["nowhere"]),
    ],
)
def test_the_check_of_the_direction_sees_a_wrong_import(importer, line, wrong):
    assert wrong_imports(importer, ast.parse(line)) == wrong


@pytest.mark.parametrize("name", NAMES)
def test_every_module_imports(name):
    if name != "jaxalign.__main__":
        importlib.import_module(name)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_only_models_import_flax(path):
    imported = {name.split(".")[0] for name in imports_of(ast.parse(path.read_text()))}
    if "models" not in path.relative_to(PACKAGE).parts:
        assert "flax" not in imported


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_extras_are_imported_only_where_they_are_used(path):
    tree = ast.parse(path.read_text())
    at_import = {
        name.split(".")[0]
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in imports_of(node)
    }
    assert at_import & EXTRAS == set()


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_files_stay_short(path):
    limit = 400 if "training" in path.parts else 500
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_annotations_stay_objects(path):
    # Annotations as text would switch the shape checks of the tests off.
    assert "from __future__ import annotations" not in path.read_text()


def test_import_jaxalign_loads_nothing_heavy():
    heavy = "jax flax optax orbax transformers datasets numpy grain matplotlib chex".split()
    code = f"import sys, jaxalign; print([m for m in {heavy} if m in sys.modules])"
    assert printed_by(code) == "[]"


def test_losses_load_no_model_library():
    heavy = "flax orbax transformers datasets grain matplotlib optax".split()
    code = f"import sys, jaxalign.losses; print([m for m in {heavy} if m in sys.modules])"
    assert printed_by(code) == "[]"


def test_command_line_help_loads_no_jax():
    code = (
        "import sys; from jaxalign.cli.main import main; s = main(['--help']); print(s, 'jax' in sys.modules)"
    )
    assert printed_by(code).splitlines()[-1] == "0 False"


def printed_by(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


LOSSES_MAY_IMPORT = {"jax", "numpy", "chex", "einops", "jaxtyping", "optax"}


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "losses").glob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix()
)
def test_losses_need_only_array_libraries(path):
    own = ("jaxalign.losses", "jaxalign.arrays", "jaxalign.masking", "jaxalign.logprobs")
    for module in imports_of(ast.parse(path.read_text())):
        top = module.split(".")[0]
        assert top in LOSSES_MAY_IMPORT | sys.stdlib_module_names or module.startswith(own), module


def test_no_folder_beside_a_script_hides_a_package():
    # Python looks there first: a folder called peft made TRL believe that PEFT was installed.
    packages = {
        "torch",
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "safetensors",
        "bitsandbytes",
    }
    for place in (ROOT / "tests" / "golden", ROOT / "benchmarks", ROOT / "docs"):
        assert not packages & {path.name for path in place.iterdir() if path.is_dir()}
