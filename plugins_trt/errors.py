"""The error of this package; it has the form of those in `runtime.errors`, which a plugin package may not import."""

from __future__ import annotations


class PluginError(Exception):
    """The plugin library cannot be built, or is not there."""

    def __init__(self, found: str, *, wanted: str = "", hint: str = "") -> None:
        """Join the three parts of a message: what was `found`, what was `wanted`, what to do (`hint`)."""
        self.found, self.wanted, self.hint = found, wanted, hint
        parts = [found]
        if wanted:
            parts.append(f"wanted: {wanted}")
        if hint:
            parts.append(f"try: {hint}")
        super().__init__("\n  ".join(parts))
