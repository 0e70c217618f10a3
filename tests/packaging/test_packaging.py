"""What the wheel holds, and what it asks for."""

from __future__ import annotations

import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import plugins_trt

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"apps", "export", "plugins_trt", "quant", "runtime"}
DEMO = {"demo.safetensors", "demo.json", "vocab.txt", "sample.mp4", "sample.json"}
RUNTIME = {"numpy", "onnxruntime", "opencv-python-headless", "pillow"}


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    return message_from_bytes(archive.read(name))


def test_the_top_level_is_exactly_the_five_packages(names: set[str]) -> None:
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == PACKAGES


def test_every_module_is_packed(names: set[str]) -> None:
    files = {f.relative_to(ROOT).as_posix() for p in PACKAGES for f in (ROOT / p).rglob("*.py")}
    assert files <= names, sorted(files - names)


def test_types_and_the_demo_model_travel_along(names: set[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {f"apps/demo/{file}" for file in DEMO} <= names


def test_nothing_else_is_packed(names: set[str]) -> None:
    ours = {n for n in names if ".dist-info/" not in n}
    extra = {n for n in ours if not n.endswith(".py")}
    extra -= {f"{package}/py.typed" for package in PACKAGES} | {f"apps/demo/{file}" for file in DEMO}
    extra -= {f"apps/page/static/{file.name}" for file in (ROOT / "apps/page/static").iterdir()}
    extra -= {path.relative_to(ROOT).as_posix() for path in plugins_trt.sources()}
    extra -= {n for n in extra if n.startswith("runtime/native/libvrwkv.")}
    assert extra == set()


def test_the_licence_is_in_it(names: set[str], metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)


def test_the_base_install_is_the_torch_free_runtime(metadata: Message) -> None:
    requirements = metadata.get_all("Requires-Dist") or []
    base = [r for r in requirements if "extra ==" not in r]
    assert {_name(r) for r in base} == RUNTIME
    assert all("<" in r for r in base), "every range has an upper end"
    assert "torch==2.13.0" in [r.split(";")[0].strip() for r in requirements if "extra ==" in r]
    assert set(metadata.get_all("Provides-Extra") or []) == {
        "dev",
        "docs",
        "eval",
        "export",
        "gpu",
        "jetson",
        "rtx",
        "serve",
    }


def test_python_versions(metadata: Message) -> None:
    assert {part.strip() for part in metadata["Requires-Python"].split(",")} == {">=3.10", "<3.14"}
    assert metadata["Name"] == "visualrwkv-edge"


def _name(requirement: str) -> str:
    for index, character in enumerate(requirement):
        if not (character.isalnum() or character in "-_."):
            return requirement[:index].lower().replace("_", "-")
    return requirement.lower()
