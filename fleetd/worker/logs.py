"""One line per event, to stderr: as text for people, as JSON for collectors.

Promises: an event and its fields make one line, whatever they hold; the worker's logger is its own, so that an app
which sets up logging neither doubles nor silences these lines.
"""

import json
import logging
import sys
from typing import Any, Final, TextIO

LOG: Final = logging.getLogger("fleetd.worker")
_DISPATCHERS: Final = logging.getLogger("fleetd.dispatchers")


def event(level: int, text: str, /, **fields: object) -> None:
    """Log `text` with its fields, each a word or a number."""
    LOG.log(level, text, extra={"fields": fields})


def set_up(log_format: str, stream: TextIO | None = None, **always: object) -> None:
    """Send events to `stream` (stderr) with `always` at the end of every line. May be called again, after a fork."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json(always) if log_format == "json" else _Text(always))
    for log in (LOG, _DISPATCHERS):
        log.handlers[:] = [handler]
        log.setLevel(logging.INFO)
        log.propagate = False


class _Text(logging.Formatter):
    def __init__(self, always: dict[str, object]) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        pairs = {**getattr(record, "fields", {}), **self._always}
        shown = (f"{name}={_word(value)}" for name, value in pairs.items() if value not in (None, ""))
        return "  ".join([super().format(record).replace("\n", " "), " ".join(shown)])


class _Json(logging.Formatter):
    def __init__(self, always: dict[str, object]) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        return json.dumps(line | getattr(record, "fields", {}) | self._always, default=str)


def _word(value: object) -> str:
    """The value as one word, quoted where it holds a space, so that a line can be cut apart again."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if not text.isprintable() or " " in text or '"' in text else text
