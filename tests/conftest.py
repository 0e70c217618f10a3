"""Shared options and fixtures: the golden folder, exported bundles."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=ROOT / "tests" / "golden",
        metavar="DIR",
        help="folder of official outputs to match, in the format of tests/golden/README.md",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs beside the other tests is looked at last."""
    items.sort(key=_soaks)


@pytest.fixture(scope="session", autouse=True)
def _start_what_takes_long(request: pytest.FixtureRequest) -> None:
    if any(map(_soaks, request.session.items)):
        request.getfixturevalue("soaking")


def _soaks(item: pytest.Item) -> bool:
    return "soaking" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> Path:
    """The folder given with --golden."""
    folder = pytestconfig.getoption("golden")
    assert isinstance(folder, Path) and folder.is_dir(), f"--golden {folder} is not a folder"
    return folder.resolve()


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Export a checkpoint once per session and set of options; returns the bundle folder."""
    from export.build import export_bundle

    folder, done = tmp_path_factory.mktemp("bundles"), {}

    def run(checkpoint: Path, *, precision: str = "fp32", config: object = None, target: str = "cpu") -> Path:
        key = (checkpoint, precision, repr(config), target)
        if key not in done:
            done[key] = folder / f"{checkpoint.stem}-{precision}-{len(done)}"
            export_bundle(checkpoint, done[key], precision=precision, config=config, target=target)  # type: ignore[arg-type]
        return done[key]

    return run


@pytest.fixture(scope="session")
def demo_bundle(export: Callable[..., Path]) -> Path:
    """The embedded demo model, exported as `python -m export --int8` does."""
    from export.config import ExportConfig

    demo = ROOT / "apps" / "demo"
    config = ExportConfig.load(demo / "demo.json", "demo.safetensors")
    return export(demo / "demo.safetensors", precision="int8", config=config)


@pytest.fixture(scope="session")
def soaking(demo_bundle: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Three minutes of watching, under way since the session began: with one state, and with a window of frames."""
    command = [sys.executable, "-m", "benchmarks.soak", str(demo_bundle), "--minutes", "3", "--warmup", "60"]
    command += ["--fps", "5", "--every", "1", "--threads", "1"]
    started = {
        name: subprocess.Popen(command + more, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name, more in {"state": [], "window": ["--window", "4"]}.items()
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def emulated_plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TensorRT plugins with their kernels compiled for the CPU, built once."""
    import plugins_trt
    from plugins_trt.toolchain import find_compiler

    try:
        find_compiler()
    except plugins_trt.PluginError:
        pytest.skip("no C++ compiler: apt install g++")
    return plugins_trt.build(emulate=True, out=tmp_path_factory.mktemp("plugins"), jobs=2)
