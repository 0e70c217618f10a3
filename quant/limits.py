"""What a quantised bundle may lose. The one place: the exporter, the gate and the report all read it here.

Relative errors are root mean squares: of the difference over of the reference. The bounds on logits and state are those
of deep random models, which multiply every rounding (`quant.recipe`); trained models are far inside. Agreement counts
the positions at which the float model is sure: its first choice at least twice as likely as its second.
"""

from __future__ import annotations

from dataclasses import dataclass

SURE = 2.0  # times as likely as the second choice
ENOUGH = 40  # sure positions, below which agreement is told but not judged


@dataclass(frozen=True)
class Limits:
    """Largest errors allowed."""

    logits: float  # relative error, also of the state
    agreement: float  # least share of sure positions with the same first choice
    growth: float  # times the error of the first stage of a conversation that a later one may have
    answers: float  # share of right answers that may be lost on a task


LIMITS = {
    "int8": Limits(logits=5e-2, agreement=0.995, growth=2.0, answers=0.003),
    "int4": Limits(logits=0.25, agreement=0.97, growth=2.0, answers=0.015),
}
