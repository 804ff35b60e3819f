"""The log of a run, in its folder: what the library says through ``logging`` while it trains, a line a message."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LOG", "logging_to"]

LOG = "log.txt"
LOGGERS = ("ppgen", "py.warnings")

log = logging.getLogger(__name__)


class _Line(logging.Formatter):
    """Time (UTC), level and message in one line, whatever the message is made of."""

    converter = time.gmtime  # type: ignore[assignment]  # as the logging module's own documentation sets it

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    def format(self, record: logging.LogRecord) -> str:
        line = " ".join(super().format(record).split())
        return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)


@contextmanager
def logging_to(folder: Path) -> Iterator[None]:
    """Adds what the library says inside to ``log.txt`` in a folder; warnings go to standard error as before.

    An error that ends the block is the last line. The loggers are given back as they were.
    """
    file = logging.FileHandler(folder / LOG, encoding="utf-8", delay=True)
    file.setFormatter(_Line())
    handlers: list[logging.Handler] = [file]
    if not logging.getLogger().handlers and logging.lastResort is not None:
        handlers.append(logging.lastResort)  # which a logger with a handler of its own would not come to
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        for handler in handlers:
            logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        file.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, f"{type(error).__name__}: {error}", (), None))
        raise
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
            for handler in handlers:
                logger.removeHandler(handler)
        file.close()
