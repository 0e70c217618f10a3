"""How a session is watched with, what is counted meanwhile, and what is refused from the beginning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from runtime.camera import Timing
from runtime.errors import ConfigError, StateError
from runtime.feeding import feeds_at_once

if TYPE_CHECKING:
    from runtime.session import Session

Policy = Literal["latest", "every", "adaptive"]


@dataclass(frozen=True)
class WatchOptions:
    """How to watch. Raises `ConfigError` for values out of range."""

    policy: Policy = "latest"  # "every" feeds all in their order, "adaptive" the newest if it shows something new
    fps: float | None = None  # most frames fed in a second; None: as many as the model can
    ring: int = 8  # frames that may wait, with "every"
    threshold: float = 1.0  # of "adaptive": mean difference of grey levels (0 to 255) below which nothing is new
    at_least_s: float = 10.0  # of "adaptive": a frame is fed after so long whatever it shows
    horizon: int | None = None  # positions after which the session goes back to where the watch began; None: never
    keep: int = 4  # frames shown again after that
    window: int | None = None  # instead of one state: every question sees the last so many frames, and nothing else
    answers: int = 1  # questions answered at the same time; each has a state of its own from the beginning
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        """Check all."""
        if self.policy not in ("latest", "every", "adaptive"):
            raise ConfigError(f"policy is {self.policy!r}", wanted="'latest', 'every' or 'adaptive'")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigError(f"fps is {self.fps!r}", wanted="above 0, at most 1000")
        whole = {"ring": 1, "keep": 0, "answers": 1, "window": 1, "horizon": 1}
        for name, least in whole.items():
            value = getattr(self, name)
            if (value is not None or name in ("ring", "keep", "answers")) and (type(value) is not int or value < least):
                raise ConfigError(f"{name} is {value!r}", wanted=f"a whole number, {least} or more")
        if not (self.threshold >= 0 and self.at_least_s > 0):
            raise ConfigError(
                f"threshold {self.threshold}, at_least_s {self.at_least_s}", wanted="0 or more, and above 0"
            )
        if self.window is not None and self.horizon is not None:
            raise ConfigError(
                "a window and a horizon", hint="a window never outgrows its frames: leave the horizon out"
            )

    @property
    def kept(self) -> int:
        """How many fed frames stay at hand."""
        return self.window or (self.keep if self.horizon else 0)


@dataclass(frozen=True)
class WatchStats:
    """What became of the frames. read = fed + dropped + unchanged + failed + those waiting or in hand."""

    read: int = 0  # good frames the source gave
    corrupt: int = 0  # what it gave that was no picture; not in `read`
    fed: int = 0
    dropped: int = 0  # replaced by newer ones before there was time for them
    unchanged: int = 0  # left out by "adaptive"
    same: int = 0  # of those looked at, fed or not: differed from the last fed one by less than the threshold
    failed: int = 0  # could not be fed, the session is as if they had not come
    errors: int = 0  # attempts to feed a frame that failed in the middle of it; a second one follows
    reconnects: int = 0
    stalls: int = 0
    refreshes: int = 0
    rollbacks: int = 0
    answers: int = 0


def check(session: Session, options: WatchOptions) -> None:
    """Raise `ConfigError` or `StateError` where this session cannot be watched with in this way."""
    if session._watch is not None:
        raise StateError("the session is watching already", hint="close that watch first, or use a fork()")
    if session._manifest.vision is None:
        raise ConfigError("this model takes no pictures", hint="load another bundle")
    if options.window is None and not feeds_at_once(session._manifest, session._padding, session._progress):
        raise ConfigError(
            "frames cannot be fed before the question is known: the template, padding or context of this model "
            "puts pictures together with it",
            hint="watch with window=4, or open the session with padding='none'",
        )
    if options.horizon is not None and session.tokens >= options.horizon:
        raise ConfigError(
            f"the session stands at {session.tokens} positions, beyond the horizon of {options.horizon}",
            hint="reset() it first: the watch goes back to where it began",
        )
    least = session.tokens + (options.keep + 1) * session._manifest.vision.tokens
    if options.horizon is not None and least > options.horizon:
        raise ConfigError(
            f"a horizon of {options.horizon} positions, of which {session.tokens} and {options.keep + 1} frames of "
            f"{session._manifest.vision.tokens} are used from the beginning",
            wanted=f"at least {least}",
            hint="a larger horizon, or a smaller keep",
        )
