"""How log lines look: as text for people, or one JSON object a line for programs. Who logs does not care."""

from __future__ import annotations

import json
import logging
import warnings
from datetime import datetime, timezone
from typing import Any

FORMATS = ("text", "json")
FIELDS = "fields"
"""`logger.info(text, extra={FIELDS: {...}})`: what the text says, as names and values; only JSON shows them."""


class JSONFormatter(logging.Formatter):
    """`who` is a field of every line, where it is not empty."""

    def __init__(self, who: str = "") -> None:
        super().__init__()
        self._always = {"process": who} if who else {}

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "logger": record.name, **self._always}
        line["message"] = record.getMessage()
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(level: int | str, log_format: str, who: str = "") -> None:
    """Of this process, to stderr. `who`: which process it is, where there are several."""
    handler = logging.StreamHandler()
    prefix = f"{who}: " if who else ""
    text = logging.Formatter(f"%(asctime)s %(levelname)s %(name)s: {prefix}%(message)s")
    handler.setFormatter(JSONFormatter(who) if log_format == "json" else text)
    logging.basicConfig(level=level, handlers=[handler])


def be_quiet() -> None:
    """Of a process that serves HTTP: no lines of libraries that tell too much, or nothing new."""
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # complaints about what strangers send
    logging.getLogger("httpx").setLevel(logging.WARNING)  # would log the addresses of pictures
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # our own lines tell when it is ready, and ends


def current_format() -> str:
    """As this process was configured: for processes that it starts."""
    is_json = any(isinstance(handler.formatter, JSONFormatter) for handler in logging.getLogger().handlers)
    return "json" if is_json else "text"
