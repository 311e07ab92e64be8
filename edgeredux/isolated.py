"""Run one function in a child process: third-party noise goes to a log, a crash becomes one line, memory comes back.

    call("edgeredux.runners.vela:profile_job", {"job": job}, log=Path("log.txt"), what="Vela")

The child is `python -m edgeredux.isolated`; arguments and the answer are pickled between these two processes of ours
alone. It dies with its parent (prctl PR_SET_PDEATHSIG), so that a killed run leaves nobody writing behind it.
Progress: a function with a `progress` argument gets one that is passed on to the parent's.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from edgeredux.errors import ArtifactError, EdgereduxError, InternalError, StorageError, one_line
from edgeredux.seams import Progress, silent

_HEADER = struct.Struct("<Q")


def call(
    function: str,
    arguments: Mapping[str, Any],
    *,
    log: Path,
    what: str,
    progress: Progress = silent,
    timeout_s: float = 3600.0,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """What `module:function`(**arguments) returns, computed in a child process.

    Errors of our tree come back as they were raised. A crash (signal) is an ArtifactError naming `what` and the log,
    because in practice a hostile or unsupported file did it; any other exception is an InternalError.
    """
    read_fd, write_fd = os.pipe()
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TOKENIZERS_PARALLELISM": "false", **(environment or {})}
    with log.open("ab") as sink:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgeredux.isolated", str(write_fd), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=sink,
            pass_fds=(write_fd,),
            env=env,
        )
    os.close(write_fd)
    started = time.monotonic()
    answer: tuple[str, Any] | None = None
    try:
        with os.fdopen(read_fd, "rb") as results:
            try:
                assert child.stdin is not None
                pickle.dump((function, dict(arguments), list(sys.path)), child.stdin, protocol=5)
                child.stdin.close()
            except BrokenPipeError:
                pass  # the child died at once; its exit status says why
            for message in _messages(results):
                if message[0] == "progress":
                    progress(*message[1])
                else:
                    answer = message
                if time.monotonic() - started > timeout_s:
                    raise ArtifactError(f"{what}: gave no answer within {timeout_s:.0f} s (log: {log})")
        child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if answer is None:
        code = child.returncode
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if "No space left" in _tail(log):
            raise StorageError(f"{what}: no space left on the disk of {log.parent}")
        raise ArtifactError(f"{what}: the process ended with {reason} (log: {log})")
    kind, value = answer
    if kind == "error":
        raise value
    return value


def _messages(stream: IO[bytes]) -> Any:
    while len(header := stream.read(_HEADER.size)) == _HEADER.size:
        (size,) = _HEADER.unpack(header)
        body = stream.read(size)
        if len(body) < size:
            return
        yield pickle.loads(body)


def _tail(log: Path, size: int = 4000) -> str:
    try:
        return log.read_bytes()[-size:].decode(errors="replace")
    except OSError:
        return ""


def _main() -> None:
    write_fd, parent = int(sys.argv[1]), int(sys.argv[2])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before we could ask to die with it
        os._exit(1)
    function, arguments, path = pickle.load(sys.stdin.buffer)
    sys.path[:] = path
    with os.fdopen(write_fd, "wb") as results:

        def send(kind: str, value: Any) -> None:
            body = pickle.dumps((kind, value), protocol=5)
            results.write(_HEADER.pack(len(body)))
            results.write(body)
            results.flush()

        try:
            module_name, _, name = function.partition(":")
            target = getattr(importlib.import_module(module_name), name)
            if "progress" in inspect.signature(target).parameters:
                arguments["progress"] = lambda text, done, total: send("progress", (text, done, total))
            send("result", target(**arguments))
        except EdgereduxError as problem:
            send("error", type(problem)(str(problem)))
        except OSError as problem:
            import traceback

            traceback.print_exc()
            full = problem.errno == 28
            send("error", (StorageError if full else InternalError)(one_line(f"{function}: {problem}")))
        except Exception as problem:
            import traceback

            traceback.print_exc()
            send("error", InternalError(one_line(f"{function}: {type(problem).__name__}: {problem}")))
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
