"""The doctor's verdicts: boards and desktops that are not here, bundles that do not fit, and whatever can go wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from apps.doctor.__main__ import main, parser
from apps.doctor.fit import PROCESS_BYTES, Fit, fit
from apps.doctor.machine import Cpu, Engine, Gpu, Machine, Memory
from apps.doctor.probes import examine
from apps.doctor.verdicts import ASKED_FOR, EXPORTER, Verdict, advice, verdicts
from runtime.errors import TargetUnavailable
from runtime.targets import TARGETS, open_backend
from tests.apps import machines

ALL = frozenset(EXPORTER)
ROOMY = Machine(
    cpu=Cpu(cores=4, usable=4.0), memory=Memory(16 << 30, 12 << 30), engine=Engine("1.31.1", ("CPUExecutionProvider",))
)


def judged(machine: Machine, packages: frozenset[str] = ALL) -> dict[str, Verdict]:
    return {verdict.name: verdict for verdict in verdicts(machine, packages)}


def test_orin_on_jetpack_6(tmp_path: Path) -> None:
    machine = examine(machines.host(tmp_path, machines.ORIN, machines.ORIN_COMMANDS))
    assert machine.problems == ()
    board = machine.jetson
    assert board is not None and board.model.startswith("NVIDIA Jetson Orin Nano")
    assert (board.jetpack, board.l4t, board.power_mode) == ("6.2", "36.4.3", "15W")
    assert board.gpu_clocks_locked is False and board.swap_on_zram
    assert (machine.tensorrt, machine.cuda) == ("10.3.0", "12.6.11")
    assert machine.cpu.architecture == "aarch64" and machine.cpu.usable == 6
    assert "asimddp" in machine.cpu.features
    assert machine.memory.available == 5120000 * 1024
    told = judged(machine, frozenset())
    assert told["target cpu"].answer == "yes"
    assert "Orin Nano" in told["target jetson"].why
    assert told["target cuda"].answer == "slow" and "target jetson" in told["target cuda"].why
    assert told["int8"].answer == "yes" and "asimddp" in told["int8"].why
    assert told["export"].answer == "no" and "copy the bundle" in told["export"].why
    assert told["cameras"].answer == "yes" and "imx219" in told["cameras"].why
    hints = "\n".join(advice(machine))
    assert "power mode is 15W" in hints and "sudo jetson_clocks" in hints and "zram" in hints
    assert "cpupower" not in hints


def test_thor_on_jetpack_7(tmp_path: Path) -> None:
    machine = examine(machines.host(tmp_path, machines.THOR, machines.THOR_COMMANDS))
    assert machine.jetson is not None
    assert (machine.jetson.jetpack, machine.jetson.l4t, machine.jetson.power_mode) == ("7", "38.2.0", "MAXN")
    assert machine.jetson.gpu_clocks_locked is True
    assert (machine.tensorrt, machine.cuda) == ("10.13.3", "13.0.0")
    (gpu,) = machine.gpus
    assert (gpu.name, gpu.memory, gpu.capability) == ("NVIDIA Thor", None, "11.0")
    assert advice(machine) == []
    told = judged(machine)
    assert "i8mm" in told["int4"].why
    assert told["cameras"].answer == "no" and told["cameras"].do == ("sudo apt-get install gstreamer1.0-tools",)


def test_a_desktop_with_an_rtx_card(tmp_path: Path) -> None:
    machine = examine(machines.host(tmp_path, machines.DESKTOP, machines.DESKTOP_COMMANDS))
    assert machine.jetson is None
    (gpu,) = machine.gpus
    assert (gpu.name, gpu.memory, gpu.capability) == ("NVIDIA GeForce RTX 4090", 24564 << 20, "8.9")
    assert machine.cuda == "12.8"
    assert [camera.device for camera in machine.cameras] == ["/dev/video0"], "the second node is its metadata"
    told = judged(machine)
    assert told["target cuda"].answer == "slow" and "RTX 4090" in told["target cuda"].why
    assert "onnxruntime-gpu[cuda,cudnn]" in told["target cuda"].do[0]
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    there = judged(replace(machine, engine=Engine("1.31.1", providers)))
    assert there["target cuda"].answer == "yes" and "RTX 4090, with onnxruntime 1.31.1" in there["target cuda"].why
    assert told["export"].answer == "yes"
    assert any("powersave" in line for line in advice(machine))


def test_an_old_machine_without_gpu(tmp_path: Path) -> None:
    machine = examine(machines.host(tmp_path, machines.BARE))
    assert machine.gpus == () and machine.jetson is None and machine.cuda == "" and machine.cameras == ()
    told = judged(machine)
    assert told["fp32"].answer == "yes"
    assert told["int8"].answer == "slow" and "AVX2" in told["int8"].why
    assert told["export"].answer == "slow" and "1.5 GB" in told["export"].why
    assert "one core" in advice(machine)[0]
    nothing = judged(replace(machine, engine=Engine()))
    assert nothing["target cpu"].do == ("pip install onnxruntime",)
    assert {nothing[name].answer for name in ("target cpu", "fp32", "int8")} == {"no"}


def test_the_limits_of_a_container_count(tmp_path: Path) -> None:
    group = {
        "/proc/self/cgroup": "0::/box/inner\n",
        "/sys/fs/cgroup/box/inner/memory.max": "max\n",
        "/sys/fs/cgroup/box/inner/cpu.max": "max 100000\n",
        "/sys/fs/cgroup/box/memory.max": "1000000000\n",
        "/sys/fs/cgroup/box/memory.current": "600000000\n",
        "/sys/fs/cgroup/box/memory.stat": "anon 1\ninactive_file 100000000\n",
        "/sys/fs/cgroup/box/cpu.max": "150000 100000\n",
    }
    machine = examine(machines.host(tmp_path, {**machines.DESKTOP, **group}))
    assert machine.memory.limit == 1_000_000_000
    assert machine.memory.available == 500_000_000
    assert machine.cpu.usable == 1.5
    assert any("container" in line for line in advice(machine))


def test_the_limit_of_an_older_container(tmp_path: Path) -> None:
    group = {
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": "500000000",
    }
    machine = examine(machines.host(tmp_path, {**machines.DESKTOP, **group}))
    assert (machine.memory.limit, machine.memory.available) == (2_000_000_000, 1_500_000_000)


def test_targets_are_those_of_the_runtime() -> None:
    told = judged(ROOMY)
    assert told["target cpu"].answer == "yes"
    open_backend("auto", "cpu", 1).close()
    for target in ASKED_FOR:
        refused = "not in this version" in told[f"target {target}"].why
        assert refused == (target not in TARGETS)
        if refused:
            with pytest.raises(TargetUnavailable):
                open_backend("auto", target, 1)


def test_targets_of_a_gpu_are_judged_by_gpu_and_engine(tmp_path: Path) -> None:
    """With the names of all targets for TensorRT, whichever of them this version has."""
    targets = ("cpu", "rtx", "tensorrt", "jetson", "jetson-orin")

    def told(machine: Machine) -> dict[str, str]:
        return {v.name: v.answer for v in verdicts(machine, ALL, targets) if v.name.startswith("target")}

    nothing = {"target cpu": "yes", "target rtx": "slow", "target tensorrt": "slow", "target jetson": "slow"}
    assert told(ROOMY) == {**nothing, "target cuda": "no"}
    card = replace(ROOMY, gpus=(Gpu("NVIDIA GeForce RTX 4090", 24 << 30, "8.9", "570"),), tensorrt_rtx="", tensorrt="")
    (rtx,) = [v for v in verdicts(card, ALL, targets) if v.name == "target rtx"]
    assert rtx.answer == "slow" and "RTX 4090" in rtx.why
    assert rtx.do == ('pip install "visualrwkv-edge[rtx]"', "pip install cuda-python", "python -m plugins_trt build")
    whole = replace(card, cuda_python="13.0", plugins=True)
    assert told(replace(whole, tensorrt_rtx="1.7.1"))["target rtx"] == "yes"
    assert told(replace(whole, tensorrt="10.13"))["target tensorrt"] == "yes"
    assert told(whole)["target rtx"] == told(whole)["target tensorrt"] == "slow"
    orin = examine(machines.host(tmp_path, machines.ORIN, machines.ORIN_COMMANDS))
    orin = replace(orin, cuda_python="12.6", plugins=True)
    assert told(orin)["target jetson"] == "yes" and told(orin)["target rtx"] == "slow"
    assert told(replace(orin, plugins=False))["target jetson"] == "slow"


def test_a_bundle_for_another_target(demo_bundle: Path, tmp_path: Path) -> None:
    def exported_for(target: str) -> Fit:
        copy = tmp_path / target
        shutil.copytree(demo_bundle, copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps({**manifest, "target": target}))
        return fit(ROOMY, copy)

    assert exported_for("abacus").answer == "no"
    if "jetson" in TARGETS:
        other = exported_for("jetson-orin")
        assert other.answer == "slow" and "this is no Jetson" in other.why


def test_a_bundle_that_fits_and_one_that_does_not(demo_bundle: Path) -> None:
    good = fit(ROOMY, demo_bundle)
    assert good.answer == "yes" and good.precision == "int8" and good.needed > PROCESS_BYTES
    more = fit(ROOMY, demo_bundle, sessions=4)
    assert more.needed > good.needed
    small = replace(ROOMY, memory=Memory(1 << 30, good.needed - 1))
    bad = fit(small, demo_bundle)
    assert bad.answer == "no" and "too big" in bad.why and "--int4" in bad.do[0] and "0.4B" in bad.do[-1]
    tight = fit(replace(ROOMY, memory=Memory(1 << 30, good.needed + 1)), demo_bundle)
    assert tight.answer == "slow" and "only just" in tight.why
    blind = fit(replace(ROOMY, memory=Memory()), demo_bundle)
    assert blind.answer == "slow" and "could not be found out" in blind.why


def test_broken_bundles(demo_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(demo_bundle, copy)
    table = next(copy.glob("*.onnx"))
    table.write_bytes(table.read_bytes()[:-1])
    cut = fit(ROOMY, copy)
    assert cut.answer == "no" and "broken" in cut.why and table.name in cut.why and cut.do
    missing = fit(ROOMY, tmp_path / "nowhere")
    assert missing.answer == "no" and "is not a folder" in missing.why
    (copy / "manifest.json").write_text("{")
    assert "not JSON" in fit(ROOMY, copy).why


def test_an_edited_weight_is_found_only_with_verification(demo_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(demo_bundle, copy)
    weights = max(copy.iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fit(ROOMY, copy).answer == "no"
    assert fit(ROOMY, copy, verify=False).answer == "yes"


def test_the_command(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(demo_bundle)], examine=lambda bundle: ROOMY, packages=frozenset()) == 0
    text = capsys.readouterr().out
    assert "[yes ] fits" in text and 'pip install "visualrwkv-edge[export]"' in text
    assert main([str(demo_bundle), "--json"], examine=lambda bundle: ROOMY, packages=ALL) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"machine", "verdicts", "bundle", "trial", "do", "advice"}
    assert told["bundle"]["answer"] == "yes" and told["machine"]["memory"]["available"] == 12 << 30
    assert main(["nowhere"], examine=lambda bundle: ROOMY, packages=ALL) == 1
    assert main([], examine=lambda bundle: Machine(), packages=ALL) == 1
    assert "unknown" in capsys.readouterr().out


def test_trying_a_bundle(demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(demo_bundle), "--try", "--json"], examine=lambda bundle: ROOMY, packages=ALL) == 0
    trial = json.loads(capsys.readouterr().out)["trial"]
    assert trial["good"] and trial["backend"] and trial["rss_bytes"] > 0
    assert main([str(demo_bundle), "--try"], examine=lambda bundle: ROOMY, packages=ALL) == 0
    assert f"it loads and answers on {trial['backend']}" in capsys.readouterr().out
    copy = tmp_path / "copy"
    shutil.copytree(demo_bundle, copy)
    graph = copy / "vision.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))  # as large as before, and nothing in it
    assert main([str(copy), "--try", "--no-verify"], examine=lambda bundle: ROOMY, packages=ALL) == 1
    assert "[no  ]" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["--try"])
    assert stopped.value.code == 2


def test_this_very_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert "[yes ] target cpu" in text
    assert "could not be found out" not in text


def test_a_wrong_command_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--sessions", "0"])
    assert stopped.value.code == 2 and "1 or more" in capsys.readouterr().err
    assert "examples:" in parser().format_help()
