"""The findings as text to paste into an issue, or as JSON for a program. No addresses, no names of people."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from apps.doctor.fit import Fit
from apps.doctor.machine import Machine
from apps.doctor.trial import Trial
from apps.doctor.verdicts import Verdict, gigabytes

MARKS = {"yes": "[yes ]", "slow": "[some]", "no": "[no  ]"}
WIDTH = 17


@dataclass(frozen=True)
class Report:
    """All that was found out."""

    machine: Machine
    verdicts: list[Verdict]
    advice: list[str]
    fit: Fit | None = None
    trial: Trial | None = None

    def text(self) -> str:
        """Return the report, in plain ASCII but for the names of things."""
        lines = ["this machine", *(_row(name, value) for name, value in _facts(self.machine))]
        if self.machine.problems:
            lines += ["", "could not be found out", *(f"  {problem}" for problem in self.machine.problems)]
        lines += ["", "what runs here", *(f"  {MARKS[v.answer]} {v.name:<{WIDTH}}{v.why}" for v in self.verdicts)]
        if self.fit is not None:
            lines += ["", f"the bundle {self.fit.path}"]
            lines += [f"  {self.fit.model}, {self.fit.precision}"] if self.fit.model else []
            lines += [f"  {MARKS[self.fit.answer]} {self.fit.why}"]
        lines += self._trial()
        if self.do():
            lines += ["", "what to type, where you want what is missing", *(f"  {line}" for line in self.do())]
        if self.advice:
            lines += ["", "worth knowing", *(f"  {line}" for line in self.advice)]
        return "\n".join(lines)

    def data(self) -> dict[str, Any]:
        """Return the same for JSON: "machine", "verdicts", "bundle" and "trial" (or None), "do" and "advice"."""
        return {
            "machine": dataclasses.asdict(self.machine),
            "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
            "bundle": dataclasses.asdict(self.fit) if self.fit else None,
            "trial": dataclasses.asdict(self.trial) if self.trial else None,
            "do": self.do(),
            "advice": self.advice,
        }

    def do(self) -> list[str]:
        """Return the lines to type, each once."""
        lines = [line for verdict in self.verdicts for line in verdict.do] + list(self.fit.do if self.fit else ())
        return list(dict.fromkeys(lines))

    def _trial(self) -> list[str]:
        if self.trial is None:
            return []
        lines = [f"  {MARKS['yes' if self.trial.good else 'no']} {self.trial.why}"]
        if self.trial.good:
            lines[0] += f" on {self.trial.backend}, {gigabytes(self.trial.rss_bytes)} resident"
            first = f"a picture and the first token in {self.trial.first_token_s:.2f} s"
            lines.append(f"         loaded in {self.trial.load_s:.2f} s, {first}")
        if self.trial.reason:
            lines.append(f"         not on a faster backend: {self.trial.reason}")
        return lines


def known(size: int) -> str:
    """Return a size for people, or that it is not known."""
    return gigabytes(size) if size else "unknown"


def _facts(machine: Machine) -> list[tuple[str, str]]:
    cpu, memory, jetson, engine = machine.cpu, machine.memory, machine.jetson, machine.engine
    usable = f"{cpu.usable:g} of {cpu.cores} cores usable"
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    facts = [
        ("system", f"{machine.system}, Python {machine.python}"),
        ("processor", ", ".join(part for part in (cpu.name, cpu.architecture, usable) if part)),
        ("features", " ".join(cpu.features) or "none that matter here"),
        (
            "memory",
            f"{gigabytes(memory.total)}, {gigabytes(memory.available)} available, swap {gigabytes(memory.swap)}",
        ),
        ("disk", f"{known(machine.disk.free)} free"),
    ]
    if jetson:
        software = f"JetPack {jetson.jetpack or 'unknown'}, Jetson Linux {jetson.l4t or 'unknown'}"
        clocks = {True: "GPU clocks locked", False: "GPU clocks not locked", None: "GPU clocks unknown"}
        mode = f"power mode {jetson.power_mode or 'unknown'}"
        facts.append(("board", ", ".join((jetson.model or "Jetson", software, mode, clocks[jetson.gpu_clocks_locked]))))
    for gpu in machine.gpus:
        size = gigabytes(gpu.memory) if gpu.memory else "memory shared with the processor or unknown"
        facts.append(("GPU", f"{gpu.name}, {size}, compute {gpu.capability or '?'}, driver {gpu.driver or '?'}"))
    if not machine.gpus and not jetson:
        facts.append(("GPU", "no NVIDIA GPU found"))
    rtx = f", TensorRT-RTX {machine.tensorrt_rtx}" if machine.tensorrt_rtx else ""
    facts.append(("CUDA", f"{machine.cuda or 'none'}, TensorRT {machine.tensorrt or 'none'}{rtx}"))
    named = [f"{camera.device} ({camera.name or 'unnamed'})" for camera in machine.cameras]
    facts.append(("cameras", ", ".join(named) or "none"))
    providers = ", ".join(provider.removesuffix("ExecutionProvider") for provider in engine.providers)
    runs = f"onnxruntime {engine.onnxruntime} ({providers})" if engine.onnxruntime else "onnxruntime is not installed"
    facts.append(("engine", runs))
    facts.append(("packages", packages or "none"))
    return facts


def _row(name: str, value: str) -> str:
    return f"  {name:<{WIDTH - 1}}{value}"
