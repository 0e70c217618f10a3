"""What a server allows: one frozen value, checked once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits and names of a server. Raises `ConfigError` for a limit below 1."""

    name: str = ""  # what clients call the model; the bundle's own name by default
    key: str | None = None  # what callers must show; None only on loopback
    origins: tuple[str, ...] = ()  # web pages that may call from a browser
    slots: int = 8  # answers computed at a time; so many share a step of the model (`runtime.scheduler`)
    waiting: int = 32  # requests that may wait for one; all beyond get 429
    queue_s: float = 30.0  # how long they wait before they get 429, too
    answer_s: float = 300.0  # how long an answer may take
    max_body: int = 8 << 20  # bytes of a request; `slots + waiting` of them may be here at a time
    max_text: int = 64 << 10  # bytes of UTF-8 to be read for one answer; what a state has read already is free
    max_images: int = 16  # to be looked at for one answer
    max_pixels: int = 20_000_000  # of one picture, told from its header
    max_tokens: int = 8192  # that a request may ask for
    tokens: int = 512  # that it gets without asking
    allow_http: bool = False  # fetch pictures from public http(s) addresses
    fetch_s: float = 10.0  # how long that may take
    states: int = 256  # conversations kept
    state_bytes: int = 256 << 20  # and their memory
    state_s: float = 3600.0  # how long after their last use

    def __post_init__(self) -> None:
        """Check that every limit lets something through."""
        from runtime.errors import ConfigError  # not needed for --help

        for name, value in vars(self).items():
            least = 0 if name in ("waiting", "states", "state_bytes") else 1
            if not isinstance(value, bool) and isinstance(value, int) and value < least:
                raise ConfigError(f"{name} is {value}", wanted=f"{least} or more")
            if isinstance(value, float) and not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}", wanted="seconds above 0")
