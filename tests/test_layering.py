"""Imports point down: plug-in folders never import each other, and nothing heavy is imported at the top elsewhere."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from edgeredux import registry

ROOT = Path(__file__).parents[1] / "edgeredux"
PLUGINS = ("pruning", "distillation", "sparse_training", "export", "passes", "runners", "meters")
# Shared by plug-ins that compute in torch: may import it at the top, and no plug-in.
TORCH = ("sparsity", "training")
HEAVY = {
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "numpy",
    "ai_edge_litert",
    "ai_edge_quantizer",
    "litert_torch",
    "plotly",
    "rich",
    "jinja2",
    "pyarrow",
}


def top_imports(path: Path) -> set[str]:
    """Modules imported when the file is, those for the type checker alone left out."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for name in top_imports(path):
        parts = name.split(".")
        if parts[0] == "edgeredux" and len(parts) > 1:
            if folder in PLUGINS:
                assert parts[1] not in PLUGINS or parts[1] == folder, f"{path.name} imports {name}"
                assert parts[1] not in ("cli", "jobs", "search"), f"{path.name} imports {name}"
            if folder in TORCH:
                assert parts[1] not in (*PLUGINS, "cli", "jobs", "search"), f"{path.name} imports {name}"
            assert parts[1] != "cli" or folder in ("cli", "__main__.py"), f"{path.name} imports {name}"
        elif folder in TORCH:
            assert parts[0] not in HEAVY - {"torch", "numpy"}, f"{path.name} imports {name} at its top"
        elif folder not in PLUGINS:
            assert parts[0] not in HEAVY - {"numpy"}, f"{path.name} imports {name} at its top"


def test_every_table_entry_is_there() -> None:
    for kind in registry.KINDS:
        for place in registry.table(kind).values():
            module, _, name = place.partition(":")
            assert isinstance(getattr(importlib.import_module(module), name), type), place


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['edgeredux', '--help']\n"
        "from edgeredux.cli import main\n"
        "try: main()\n"
        f"finally: print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
