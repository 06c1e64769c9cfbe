"""What TRL's loss methods need around them: an accelerator of one process, a model that returns given log-probs."""

import ast
import inspect
import os
import textwrap
from pathlib import Path
from types import SimpleNamespace

import torch


class Accelerator:
    """One process on the CPU."""

    device = torch.device("cpu")
    num_processes = 1
    process_index = 0
    is_main_process = True
    sync_gradients = True
    parallelism_config = None

    def gather(self, x):
        return x if x.dim() else x[None]

    gather_for_metrics = gather

    def reduce(self, x, reduction="sum"):
        del reduction
        return x

    def unwrap_model(self, model):
        return model


class Metrics(dict):
    """TRL's nested metric lists, thrown away."""

    def __missing__(self, key):
        return SimpleNamespace(append=lambda _: None) if self.get("inner") else Metrics(inner=True)


class Wide(torch.Tensor):
    """A float64 tensor that passes for float32, so that TRL's casts to float32 lose nothing."""

    @property
    def dtype(self):
        return torch.float32

    def float(self):
        return self if self.is_floating_point() else self.double()

    def to(self, *_, **__):
        return self


def old_release(version: str) -> Path:
    """The unpacked wheel of an older TRL, which is read and never imported; see the Makefile's parity target."""
    folder = Path(os.environ["JAXALIGN_TRL_RELEASES"]) / version / "trl"
    if not folder.is_dir():
        raise SystemExit(
            f"{folder}: expected the unpacked wheel of trl=={version}; `make parity` puts it there"
        )
    return folder


def function_of(version: str, file: str, name: str, scope: dict):
    """One function or method of an older TRL, compiled on its own with `scope` as its globals."""
    tree = ast.parse((old_release(version) / file).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            node.decorator_list = []
            # Annotations may name classes that are not in scope.
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                argument.annotation = None
            node.returns = None
            code = textwrap.dedent(ast.unparse(node))
            exec(compile(code, f"trl-{version}/{file}", "exec"), scope)
            return scope[name]
    raise SystemExit(f"trl {version}: {file} has no function {name}")


def run_part(function, first: str, last: str, scope: dict) -> dict:
    """Runs the consecutive statements of a function from the one that starts with `first` to that with `last`.

    For what TRL computes in the midst of a long method: `scope` gives the names that the part reads, and
    is returned with those that it sets.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        for body in (getattr(node, field, []) for field in ("body", "orelse")):
            texts = [ast.unparse(part) for part in body] if isinstance(body, list) else []
            starts = [i for i, text in enumerate(texts) if text.startswith(first)]
            ends = [i for i, text in enumerate(texts) if text.startswith(last)]
            if starts and ends and ends[-1] >= starts[0]:
                part = ast.Module(body[starts[0] : ends[-1] + 1], type_ignores=[])
                exec(compile(part, f"part of {function.__qualname__}", "exec"), scope)
                return scope
    raise SystemExit(f"{function.__qualname__} has no statements from {first!r} to {last!r}")
