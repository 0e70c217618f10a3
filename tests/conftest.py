"""Shared options and fixtures: the golden folder, exported bundles, and what workers share (`pytest -n auto`)."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.bundle import Bundle

ROOT = Path(__file__).resolve().parent.parent
WORKER = "PYTEST_XDIST_WORKER" in os.environ  # one of several processes that share the tests, file by file
if WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads: each worker has one core

Once = Callable[[str, Callable[[Path], object]], Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=ROOT / "tests" / "golden",
        metavar="DIR",
        help="folder of official outputs to match, in the format of tests/golden/README.md",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` means: one more than there are cores, for one mostly waits (the soak, cameras, servers)."""
    return min(8, len(os.sched_getaffinity(0)) + 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs beside the other tests is looked at last; workers begin with the files that take long."""
    if WORKER:
        long = {item.path for item in items if item.get_closest_marker("slow") or _needs(item, "export")}
        items.sort(key=lambda item: (not _needs(item, "soaking"), item.path not in long))
    else:
        items.sort(key=lambda item: _needs(item, "soaking"))


@pytest.fixture(scope="session", autouse=True)
def _start_what_takes_long(request: pytest.FixtureRequest) -> None:
    if not WORKER and any(_needs(item, "soaking") for item in request.session.items):
        request.getfixturevalue("soaking")


def _needs(item: pytest.Item, fixture: str) -> bool:
    return fixture in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Make a folder once per session, whichever worker comes first: `once(name, make)` calls `make(folder)`."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if WORKER else shared) / "shared"
    shared.mkdir(exist_ok=True)

    def run(name: str, make: Callable[[Path], object]) -> Path:
        done = shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait for it instead of making it again
            if not done.exists():
                make(shared / name)
                done.touch()
        return shared / name

    return run


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> Path:
    """The folder given with --golden."""
    folder = pytestconfig.getoption("golden")
    assert isinstance(folder, Path) and folder.is_dir(), f"--golden {folder} is not a folder"
    return folder.resolve()


@pytest.fixture(scope="session")
def export(once: Once) -> Callable[..., Path]:
    """Export a checkpoint once per session and set of options; returns the bundle folder."""

    def run(checkpoint: Path, *, precision: str = "fp32", config: object = None, target: str = "cpu") -> Path:
        def make(out: Path) -> None:
            from export.build import export_bundle  # torch: five seconds that a worker may never need

            export_bundle(checkpoint, out, precision=precision, config=config, target=target)  # type: ignore[arg-type]

        options = hashlib.sha256(repr((checkpoint, config)).encode()).hexdigest()[:8]
        return once(f"{checkpoint.stem}-{precision}-{target}-{options}", make)

    return run


@pytest.fixture(scope="session")
def demo_bundle(export: Callable[..., Path]) -> Path:
    """The embedded demo model, exported as `python -m export --int8` does."""
    from export.config import ExportConfig

    demo = ROOT / "apps" / "demo"
    config = ExportConfig.load(demo / "demo.json", "demo.safetensors")
    return export(demo / "demo.safetensors", precision="int8", config=config)


@pytest.fixture(scope="session")
def float_demo(once: Once, demo_bundle: Path) -> Bundle:
    """The demo model in float32, made of what the codes of its int8 bundle stand for: without another export."""
    from quant.apply import save
    from quant.dequantised import twin

    def make(folder: Path) -> None:
        folder.mkdir()
        save(Bundle(folder, replace(twin(Bundle.open(demo_bundle), folder).manifest, precision="fp32")))

    return Bundle.open(once("demo-float", make))


@pytest.fixture(scope="session")
def soaking(demo_bundle: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Three minutes of watching, under way since the session began: with one state, and with a window of frames."""
    # Caches fill with frames, not with seconds: a thousand are shown before anything is compared.
    command = [sys.executable, "-m", "benchmarks.soak", str(demo_bundle), "--minutes", "3", "--warmup", "110"]
    command += ["--fps", "10", "--every", "0.5", "--threads", "1"]
    started = {
        name: subprocess.Popen(command + more, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name, more in {"state": [], "window": ["--window", "4"]}.items()
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def emulated_plugins(once: Once) -> Path:
    """The TensorRT plugins with their kernels compiled for the CPU, built once."""
    import plugins_trt
    from plugins_trt.toolchain import find_compiler

    try:
        find_compiler()
    except plugins_trt.PluginError:
        pytest.skip("no C++ compiler: apt install g++")
    folder = once("plugins", lambda out: plugins_trt.build(emulate=True, out=out, jobs=1 if WORKER else 2))
    (library,) = folder.glob("*.so")
    return library
