"""One TFLite file under every set of kernels that LiteRT can resolve its operators to, beside the file it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeredux import isolated, parity
from edgeredux.delegates import misread, unguarded
from edgeredux.errors import ArtifactError, DataError, one_line
from edgeredux.execute import call_tflite
from edgeredux.seams import Feed, Tolerance

RESOLVERS = ("AUTO", "BUILTIN", "BUILTIN_REF", "BUILTIN_WITHOUT_DEFAULT_DELEGATES")
THREADS = (1, 2, 4)
_DELEGATING = ("AUTO", "BUILTIN")
_ALONE = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
_MISREAD = "a delegate reads its sparse weights as dense ones"
_SLOW = "BUILTIN_REF"  # plain loops on one thread, whatever it is given: one input will do


def agree_everywhere(
    before: Path, after: Path, feeds: Sequence[Feed], tolerance: Tolerance, log: Path
) -> dict[str, Any]:
    """Outputs of `after` against those of `before` under the same resolver on one thread, for 1, 2 and 4 threads.

    {"passed", "reason", "resolvers": {"AUTO/1": {"max_abs", "mean_cosine"}, ...}}. `tolerance.atol` is a share of the
    largest value of an output, of the smallest output where there are several. A resolver under which `before` itself
    cannot run is left out, and named in "skipped"; one whose delegate misreads `before` is compared with LiteRT's
    built-in kernels alone.
    Raises DataError without feeds.
    """
    if not feeds:
        raise DataError(f"{after.name}: there are no inputs to compare its outputs on")
    ran = [
        isolated.call(
            "edgeredux.resolvers:run", {"path": str(path), "feeds": list(feeds), "threads": threads}, log=log, what=what
        )
        for path, threads, what in ((before, (1,), before.name), (after, THREADS, f"{after.name} (rewritten)"))
    ]
    found: dict[str, Any] = {"passed": True, "reason": None, "resolvers": {}, "skipped": []}
    for resolver in RESOLVERS:
        expected = ran[0][resolver, 1]
        if expected == _MISREAD:
            expected = ran[0][_ALONE, 1]
        if isinstance(expected, str):
            found["skipped"].append(f"{resolver}: {expected}")
            continue
        for threads in THREADS:
            actual = ran[1].get((resolver, threads))
            if actual is None:
                continue
            name = f"{resolver}/{threads}"
            if isinstance(actual, str):
                return {**found, "passed": False, "reason": f"under {name} thread(s): {actual}"}
            said = parity.compare(expected, actual, _scaled(tolerance, expected))
            found["resolvers"][name] = {"max_abs": said["max_abs"], "mean_cosine": said["mean_cosine"]}
            if not said["passed"]:
                return {**found, "passed": False, "reason": f"under {name} thread(s): {said['reason']}"}
    if not found["resolvers"]:
        return {**found, "passed": False, "reason": f"no resolver runs the file it came from: {found['skipped'][0]}"}
    return found


def _scaled(tolerance: Tolerance, expected: Sequence[Feed]) -> Tolerance:
    """The tolerance with its atol in the outputs' own unit; outputs of zeros say nothing about it."""
    import numpy as np

    if tolerance.atol is None:
        return tolerance
    largest = [
        max(float(np.abs(feed[name][np.isfinite(feed[name])]).max(initial=0.0)) for feed in expected)
        for name in expected[0]
    ]
    return replace(tolerance, atol=tolerance.atol * min([value for value in largest if value > 0], default=1.0))


def run(path: str, feeds: Sequence[Feed], threads: Sequence[int]) -> dict[tuple[str, int], list[Feed] | str]:
    """In a child: the outputs under each resolver and thread count, or why there are none, in one line."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    found: dict[tuple[str, int], list[Feed] | str] = {}
    try:
        harmful = unguarded(path) > 0
    except (ValueError, RuntimeError) as problem:
        raise ArtifactError(one_line(f"{Path(path).name}: LiteRT cannot load it: {problem}", 300)) from problem
    for resolver in RESOLVERS:
        for count in threads if resolver != _SLOW else (1,):
            if harmful and resolver in _DELEGATING:
                found[resolver, count] = _MISREAD
                continue
            kind = getattr(OpResolverType, resolver)
            try:
                interpreter = Interpreter(model_path=path, num_threads=count, experimental_op_resolver_type=kind)
                interpreter.allocate_tensors()
                if misread(interpreter):
                    found[resolver, count] = _MISREAD
                    continue
                call = call_tflite(interpreter)
                found[resolver, count] = [call(feed) for feed in (feeds[:1] if resolver == _SLOW else feeds)]
            except (ValueError, RuntimeError, KeyError) as problem:
                found[resolver, count] = one_line(f"LiteRT cannot run it: {problem}", 200)
    return found
