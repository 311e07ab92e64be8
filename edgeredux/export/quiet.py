"""Where an exporter's noise goes: into the log file, never to the terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

_LOGGERS = ("torch", "torch.onnx", "onnxscript", "onnx_ir", "optimum", "transformers")


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """What the exporter prints, warns and logs goes to the log file."""
    handler = logging.FileHandler(log, encoding="utf-8")
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    with log.open("a", encoding="utf-8") as sink, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
        try:
            with redirect_stdout(sink), redirect_stderr(sink):
                yield
        finally:
            for logger, handlers, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate
            handler.close()
            sink.writelines(f"{item.category.__name__}: {item.message}\n" for item in caught)
