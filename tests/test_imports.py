"""The import law: apps -> export | quant -> runtime, and torch lives in export/ alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "torchvision", "transformers", "timm", "onnx", "onnx_ir", "onnxscript", "safetensors"}
# What a folder may not import, wherever in a file the import stands.
FORBIDDEN = {
    "runtime": HEAVY | {"export", "quant", "apps"},
    "quant": {"torch", "torchvision", "transformers", "timm", "export", "apps"},
    "plugins_trt": HEAVY | {"export", "quant", "apps", "runtime"},
    "export": {"apps"},
    "apps": {"torchvision", "transformers", "timm"},
}
# The recipe of the demo model trains it: the only place beside export/ where torch may be imported.
TRAINING = ROOT / "apps" / "demo"


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and top-level name of every absolute import."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_run_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package}/ has no code"
    broken = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files
        for line, name in imports(file)
        if name in FORBIDDEN[package]
    ]
    assert not broken, "\n".join(broken)


def test_apps_run_without_torch() -> None:
    broken = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sorted((ROOT / "apps").rglob("*.py"))
        for line, name in imports(file)
        if name == "torch" and not file.is_relative_to(TRAINING)
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    "module",
    [
        "runtime",
        "runtime.backends.ort",
        "runtime.backends.fake",
        "runtime.backends.trt",
        "apps.webcam_qa",
        "apps.serve.app",
        "apps.chat.talk",
        "apps.web.guard",
    ],
)
def test_importing_brings_in_no_exporter(module: str) -> None:
    unwanted = sorted(HEAVY | {"export", "quant"})
    code = f"import sys, {module}; print(*[m for m in {unwanted!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_the_law_would_notice(tmp_path: Path) -> None:
    file = tmp_path / "sly.py"
    file.write_text("def f():\n    if True:\n        from torch.nn import functional\n    import numpy, export.trace\n")
    assert set(imports(file)) == {(3, "torch"), (4, "numpy"), (4, "export")}
