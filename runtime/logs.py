"""Logs for machines: standard `logging`, with named fields beside the sentence, and a formatter that writes JSON lines.

    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.getLogger("runtime").addHandler(handler)

Nothing is configured by the library itself. Passwords in addresses are hidden.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime, timezone

Field = str | int | float | bool | None

_SECRET = re.compile(r"(?<=://)[^/\s]*@")


def event(log: logging.Logger, severity: int, name: str, message: str, /, **fields: Field) -> None:
    """Log a sentence for people, with an event name and fields for machines."""
    if log.isEnabledFor(severity):
        clean = {key: redact(value) if isinstance(value, str) else value for key, value in fields.items()}
        log.log(severity, "%s", redact(message), extra={"event": name, "fields": clean})


def redact(text: str) -> str:
    """Return `text` with user names and passwords in addresses hidden."""
    return _SECRET.sub("***@", text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, event, message, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without an end; fields never hide the names above."""
        content: dict[str, object] = {
            **getattr(record, "fields", {}),
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", ""),
            "message": record.getMessage(),
        }
        if record.exc_info:
            content["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(content, ensure_ascii=False, default=str)
