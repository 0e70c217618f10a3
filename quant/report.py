"""What a quantised bundle is made of, tensor by tensor, and what that costs: the tables of `python -m quant report`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from quant.compare import Stage
from quant.dequantised import coded
from quant.moments import Moments
from quant.task import Result
from runtime.bundle import Bundle
from runtime.errors import TargetUnavailable


@dataclass(frozen=True)
class Row:
    """One matrix of the step graph that is kept in codes."""

    name: str
    format: str
    shape: tuple[int, int]  # [K, N]
    bytes: int  # stored, and read once per token
    snr: float  # of the weights, in dB; NaN without a float bundle to compare with
    product: float  # relative error of what the matrix makes of real inputs; NaN without such inputs


def rows(bundle: Bundle, exact: Bundle | None = None, moments: Moments | None = None) -> list[Row]:
    """Return the coded matrices of a bundle's step graph, in the order of the graph.

    Args:
        bundle: a quantised bundle.
        exact: its float bundle, for the errors.
        moments: of the float model's inputs (`quant.moments.collect`), for the errors of products.
    """
    floats: dict[str, ir.Value] = {}
    if exact is not None:
        floats = dict(ir.load(_step(exact)).graph.initializers)
    found = []
    for one in coded(ir.load(_step(bundle))):
        snr = product = math.nan
        if one.name in floats and (tensor := floats[one.name].const_value) is not None:
            weight = np.asarray(tensor.numpy(), np.float32)
            error = one.weight() - weight
            snr = 10 * math.log10(_squares(weight) / max(_squares(error), 1e-30))
            if moments is not None and one.name in moments:
                product = product_error(weight, error, moments[one.name])
        found.append(Row(one.name, one.format.name, (one.k, one.n), one.nbytes, snr, product))
    return found


def product_error(weight: np.ndarray, error: np.ndarray, moments: list[np.ndarray]) -> float:
    """Return the relative error of x @ weight over the inputs x whose moments are given."""
    lost = whole = 0.0
    start = 0
    for block in moments:
        rows_ = slice(start, start + len(block))
        lost += float(np.einsum("kn,kn->", error[rows_], block @ error[rows_]))
        whole += float(np.einsum("kn,kn->", weight[rows_], block @ weight[rows_]))
        start += len(block)
    return math.sqrt(max(lost, 0.0) / max(whole, 1e-30))


def read_per_token(bundle: Bundle) -> int:
    """Return the bytes of weights that a decode step reads: all of the step graph's initializers."""
    values = ir.load(_step(bundle)).graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def tensor_table(found: list[Row], most: int) -> str:
    """Return the matrices as text, the most sensitive first: largest product error, else the least SNR."""
    ranked = sorted(found, key=lambda row: (-_known(row.product), _known(row.snr)))
    lines = [f"{'matrix':<28}{'format':<10}{'shape':>14}{'MB per token':>14}{'SNR dB':>9}{'product error':>15}"]
    for row in ranked[:most]:
        shape = f"{row.shape[0]} x {row.shape[1]}"
        line = f"{row.name:<28}{row.format:<10}{shape:>14}{row.bytes / 1e6:>14.3f}"
        line += f"{row.snr:>9.1f}" if row.snr == row.snr else f"{'':>9}"
        lines.append(line + (f"{row.product:>15.2%}" if row.product == row.product else ""))
    if len(ranked) > most:
        lines.append(f"and {len(ranked) - most} more (--all shows them)")
    return "\n".join(lines)


def stage_table(stages: tuple[Stage, ...], twin: tuple[Stage, ...] = ()) -> str:
    """Return what was compared as text; of the twin, whose activations are not rounded, the logits' error."""
    head = f"{'compared':<16}{'positions':>10}{'logits':>9}{'state':>9}{'KL, nats':>10}{'first choice':>14}{'sure':>16}"
    lines = [head + (f"{'weights only':>14}" if twin else "")]
    for index, stage in enumerate(stages):
        sure = f"{stage.sure_agreement:.2%} of {stage.sure}"
        line = f"{stage.name:<16}{stage.positions:>10}{stage.logits:>9.2%}{stage.state:>9.2%}{stage.kl:>10.1e}"
        line += f"{stage.agreement:>14.2%}{sure:>16}"
        lines.append(line + (f"{twin[index].logits:>14.2%}" if twin else ""))
    return "\n".join(lines)


def task_table(result: Result) -> str:
    """Return the answers to a task as text."""
    asked = max(result.asked, 1)
    right = f"right: float {result.exact / asked:.2%}, this bundle {result.right / asked:.2%}"
    return (
        f"task: {result.asked} questions; {right} ({100 * result.lost:.2f} points lost); "
        f"same answer {result.alike / asked:.2%}\n"
        f"      same first choice at {result.agreement:.2%} of the {result.positions} tokens the float model answers"
    )


def plot(stages: tuple[Stage, ...], path: Path, title: str) -> None:
    """Draw how far logits and state have drifted over the long conversation, as a PNG.

    Raises `TargetUnavailable` without matplotlib.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise TargetUnavailable(f"no plot without matplotlib: {error}", hint="pip install matplotlib") from error
    long = [stage for stage in stages if stage.name != "prompts"]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    tokens = [stage.tokens for stage in long]
    for name, values in (("logits", [s.logits for s in long]), ("state", [s.state for s in long])):
        axes.plot(tokens, [100 * value for value in values], marker="o", label=name)
    axes.set(xscale="log", xlabel="tokens of one conversation", ylabel="relative error, %", title=title, ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _step(bundle: Bundle) -> Path:
    return bundle.file(bundle.manifest.graph("step").file)


def _squares(array: np.ndarray) -> float:
    return float(np.square(array, dtype=np.float64).sum())


def _known(value: float) -> float:
    return value if value == value else 0.0
