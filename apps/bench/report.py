"""What people see of a measurement: a table, ratios against an earlier one, a chart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from apps.bench.stages import STAGES
from runtime.errors import InputError

Spread = Mapping[str, float]


def table(found: Mapping[str, Any]) -> str:
    """Return a measurement as text."""
    memory, energy, read = found["memory_mb"], found["energy"], found["read_per_token_bytes"]
    where = found["machine"]
    lines = [
        f"{found['bundle']['name']} ({found['bundle']['family']}, {found['bundle']['precision']})"
        f" on {found['backend']}, {found['threads']} thread{'s' * (found['threads'] != 1)}",
        f"{where['cpu']}, {where['cores']} cores; Python {where['python']}, onnxruntime {where['onnxruntime']}",
        "",
        f"{'median of ' + str(found['rounds']) + ' rounds':<34}{'':>11}{'quartiles':>22}",
        *_first_token(found),
        _line(f"prefill of {found['prefill_tokens_s']['tokens']}, tokens/s", found["prefill_tokens_s"]),
    ]
    for context, values in found["decode_tokens_s"].items():
        percent = found["percent_of_limit"][context]
        lines.append(_line(f"decode at {context}, tokens/s", values) + f"  {percent:5.1f} % of the limit")
    lines += [
        _line("reading memory, GB/s", found["bandwidth_gb_s"]),
        f"{'limit of decoding, tokens/s':<34}{found['limit_tokens_s']:>11.1f}"
        f"  ({read['weights'] / 1e6:.2f} MB of weights and {read['state'] / 1e6:.2f} MB of state read per token)",
    ]
    if read["total"] < 64e6:
        lines.append("  (so small a model stays in the processor's caches: the limit is that of main memory)")
    if "rss" in memory:
        lines.append(
            f"{'resident memory, MB':<34}{memory['rss']:>11.1f}  ({memory['anon']:.1f} of it anonymous; weights"
            f" {memory['weights']:.1f}, vision {memory['vision']:.1f}, state {memory['state']:.2f})"
        )
    else:
        lines.append(f"{'resident memory':<34}  not measurable here: there is no /proc")
    joules = energy["joules_per_token"]
    if joules is None:
        lines.append(f"{'energy per token':<34}  {energy['source']}")
    else:
        lines.append(_line("energy per token, J", joules, ".4f") + f"  ({energy['source']}, idle power included)")
    return "\n".join(lines)


def _first_token(found: Mapping[str, Any]) -> Iterator[str]:
    stages, fed = found["first_token_ms"], found["first_token_positions"]
    what = f"fresh 640x480 frame, {fed['image']} + {fed['prompt']} positions" if fed["image"] else "question"
    yield f"first token ({what}), ms"
    for name in STAGES:
        if fed["image"] or name not in ("preprocess", "vision"):
            yield _line(f"  {name}", stages[name], ".2f")
    yield _line("  in all", stages["total"], ".2f")
    if fed["image"]:
        yield f"  outside vision and prefill        {100 * found['outside_vision_and_prefill']:>10.1f}%"


def _line(name: str, values: Spread, form: str = ".1f") -> str:
    quartiles = f"{values['low']:{form}} - {values['high']:{form}}"
    return f"{name:<34}{values['median']:>11{form}}{quartiles:>22}"


def read_earlier(path: Path) -> dict[str, Any]:
    """Read what `--json` wrote, or a printed output, whose last line is JSON. Raises `InputError` for anything else."""
    try:
        text = path.read_text(encoding="utf-8").strip()
        found = json.loads(text if text.startswith("{") else text.splitlines()[-1])
        figures(found)
    except (OSError, ValueError, KeyError, TypeError, IndexError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is no measurement: {error}", hint="python -m apps.bench BUNDLE --json FILE writes one"
        ) from None
    return dict(found)


def figures(found: Mapping[str, Any]) -> dict[str, tuple[float, bool]]:
    """Return the figures two measurements can be compared by: name -> (median, whether more is better)."""
    named = {f"first token: {name}, ms": (found["first_token_ms"][name]["median"], False) for name in STAGES}
    named["first token, ms"] = found["first_token_ms"]["total"]["median"], False
    named["prefill, tokens/s"] = found["prefill_tokens_s"]["median"], True
    for context, values in found["decode_tokens_s"].items():
        named[f"decode at {context}, tokens/s"] = values["median"], True
    named["reading memory, GB/s"] = found["bandwidth_gb_s"]["median"], True
    for key, name in (("rss", "resident memory, MB"), ("anon", "anonymous memory, MB")):
        if key in found["memory_mb"]:
            named[name] = found["memory_mb"][key], False
    if found["energy"]["joules_per_token"]:
        named["energy per token, J"] = found["energy"]["joules_per_token"]["median"], False
    return named


def compare(now: Mapping[str, Any], then: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """Return a table of now against then, and the ratios now / then by name."""
    before, ratios = figures(then), {}
    lines = [f"then on {then['backend']}, now on {now['backend']}"]
    lines.append(f"{'against the earlier measurement':<34}{'then':>11}{'now':>11}{'now/then':>11}")
    if then["machine"] != now["machine"]:
        lines.insert(0, f"CAUTION: measured on another machine or other versions: {then['machine']}")
    if (then["fingerprint"], then["threads"]) != (now["fingerprint"], now["threads"]):
        lines.insert(0, f"CAUTION: another model or thread count: {then['bundle']['name']}, {then['threads']} threads")
    for name, (value, more) in figures(now).items():
        if name in before and before[name][0]:
            old = before[name][0]
            ratios[name] = value / old
            better = "" if ratios[name] == 1 else "  better" if (value > old) == more else "  worse"
            lines.append(f"{name:<34}{old:>11.2f}{value:>11.2f}{ratios[name]:>11.2f}{better}")
    lines.append("(the machine's own drift is in the ratio of reading memory)")
    return "\n".join(lines), ratios


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw the stages of the first token, and decoding over context beside its limit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    stages = [(name, found["first_token_ms"][name]["median"]) for name in STAGES]
    start = 0.0
    for name, value in stages:
        left.barh([0], [value], left=start, label=f"{name} {value:.1f}")
        start += value
    left.set(title="first token, ms", yticks=[], xlabel="ms", ylim=(-0.6, 1.6))
    left.legend(loc="upper center", ncols=2, frameon=False)
    contexts = sorted(found["decode_tokens_s"], key=int)
    values = [found["decode_tokens_s"][context] for context in contexts]
    medians = [value["median"] for value in values]
    below = [value["median"] - value["low"] for value in values]
    above = [value["high"] - value["median"] for value in values]
    right.errorbar([int(c) for c in contexts], medians, [below, above], marker="o", capsize=3, label="decode")
    right.axhline(found["limit_tokens_s"], linestyle="--", color="grey", label="limit of main memory")
    right.set(title="decode, tokens/s", xlabel="tokens of context", ylim=(0, None))
    right.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
