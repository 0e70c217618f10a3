"""Whether a bundle can be used on a machine: sound, for a target that runs here, and small enough."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from apps.doctor.machine import Machine
from apps.doctor.verdicts import Answer, gigabytes, verdicts
from runtime import memory
from runtime.bundle import Bundle
from runtime.cache import CACHE_BYTES
from runtime.errors import BundleError, VisualRWKVError
from runtime.undo import UNDO_BYTES

# Python, its packages and onnxruntime, without a model: 80 MB after the imports, the rest is what a first answer adds.
PROCESS_BYTES = 128 << 20
COMFORT = 0.8  # share of the available memory beyond which other programs will feel it
SMALLER = {"fp32": "--int8 or --int4", "fp16": "--int8 or --int4", "int8": "--int4"}


@dataclass(frozen=True)
class Fit:
    """How a bundle and a machine go together; sizes in bytes."""

    path: str
    answer: Answer  # "slow": it fits, but only just
    why: str
    needed: int = 0  # the memory budget and the process
    available: int = 0
    model: str = ""
    precision: str = ""
    do: tuple[str, ...] = field(default=())


def fit(machine: Machine, path: Path, *, sessions: int = 1, verify: bool = True) -> Fit:
    """Judge a bundle. Whatever is wrong with it is the answer, not an error.

    Args:
        machine: what is known about the machine.
        path: the bundle folder.
        sessions: how many conversations at a time.
        verify: compare every file with its digest.
    """
    try:
        manifest = Bundle.open(path, verify=verify).manifest
        budget = memory.budget(manifest, sessions=sessions, cache_bytes=CACHE_BYTES, undo_bytes=UNDO_BYTES)
    except VisualRWKVError as error:
        hints = (error.hint,) if error.hint else ()
        wanted = f"; wanted: {error.wanted}" if error.wanted else ""
        kind = "broken" if isinstance(error, BundleError) else "not usable"
        return Fit(str(path), "no", f"{kind}: {error.found}{wanted}", do=hints)
    except Exception as error:  # a disk that fails is an answer too
        return Fit(str(path), "no", f"cannot be read: {type(error).__name__}: {error}")
    needed, available = budget.total + PROCESS_BYTES, machine.memory.available
    model = f"{manifest.name} ({manifest.family})"

    def judged(answer: Answer, why: str, *do: str) -> Fit:
        return Fit(str(path), answer, why, needed, available, model, manifest.precision, do)

    kind = f"target {manifest.target.partition('-')[0]}"
    target = next((verdict for verdict in verdicts(machine, frozenset()) if verdict.name == kind), None)
    if target is None or target.answer == "no":
        why = target.why if target else "unknown to this version"
        return judged("no", f"exported for target {manifest.target!r}: {why}", "python -m export --target cpu")
    size = f"{gigabytes(needed)} for {sessions} session{'s' * (sessions != 1)}"
    if not available:
        return judged("slow", f"needs {size}; how much is free could not be found out")
    room = f"{gigabytes(available)} are available"
    if needed > available:
        return judged("no", f"too big: needs {size}, {room}", *_smaller(manifest.precision))
    if target.answer == "slow":
        return judged(
            "slow", f"needs {size}, {room}; exported for target {manifest.target!r}: {target.why}", *target.do
        )
    if needed > COMFORT * available:
        return judged("slow", f"fits only just: needs {size}, {room}", *_smaller(manifest.precision))
    return judged("yes", f"fits: needs {size}, {room}")


def _smaller(precision: str) -> tuple[str, ...]:
    lower = SMALLER.get(precision)
    lines = (f"python -m export CHECKPOINT {lower.split(' or ')[-1]}  # {lower} takes less",) if lower else ()
    return (*lines, "# or a smaller model: 1.5B, then 0.4B, then 0.1B")
