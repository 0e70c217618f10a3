"""Every error the SDK raises on purpose, as one tree.

    VisualRWKVError
    ├── BundleError             a bundle cannot be opened, written or trusted
    │   └── SchemaError         its manifest is of another schema, or malformed
    ├── CheckpointError         a checkpoint cannot be read or is not a model we know
    ├── ConfigError             an option or configuration value is wrong
    ├── ExportError             the export could not finish
    │   └── ParityError         the written bundle does not reproduce the checkpoint
    ├── InputError              a token, image or prompt the model cannot take
    │   └── SourceError         a camera, video or folder of frames cannot be read
    ├── StateError              a state belongs to another model, or a session is no longer valid
    │   └── RollbackError       the state went bad, and the session is as it was before the call
    └── TargetUnavailable       this machine cannot run what was asked for

Each message says what was found, what was wanted and what to do.
"""

from __future__ import annotations


class VisualRWKVError(Exception):
    """Base of all errors raised on purpose; the command lines print it without a traceback."""

    def __init__(self, found: str, *, wanted: str = "", hint: str = "") -> None:
        """Join the three parts of a message: what was `found`, what was `wanted`, what to do (`hint`)."""
        self.found, self.wanted, self.hint = found, wanted, hint
        parts = [found]
        if wanted:
            parts.append(f"wanted: {wanted}")
        if hint:
            parts.append(f"try: {hint}")
        super().__init__("\n  ".join(parts))


class BundleError(VisualRWKVError):
    """A bundle cannot be opened, written or trusted."""


class SchemaError(BundleError):
    """A manifest has another schema version, an unknown or missing key, or a value of the wrong type."""


class CheckpointError(VisualRWKVError):
    """A checkpoint cannot be read, or is not a model this SDK knows."""


class ConfigError(VisualRWKVError):
    """An option or configuration value is wrong."""


class ExportError(VisualRWKVError):
    """An export could not finish; nothing half-written is left."""


class ParityError(ExportError):
    """The written bundle does not reproduce the checkpoint within the documented tolerance."""


class InputError(VisualRWKVError):
    """A token, image or prompt that the model cannot take."""


class SourceError(InputError):
    """A camera, video or folder of frames cannot be read."""


class StateError(VisualRWKVError):
    """A state belongs to another model, or a session must be reset before it can go on."""


class RollbackError(StateError):
    """A session's state went bad; it was taken back to where it stood before the call, from where it can go on."""


class TargetUnavailable(VisualRWKVError):
    """This machine cannot run the target that was asked for."""
