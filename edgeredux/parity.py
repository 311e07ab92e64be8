"""Whether two sets of outputs agree: by name, with absent outputs, other shapes, NaN and empty sets refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from edgeredux.errors import ParityError
from edgeredux.seams import Feed, Tolerance

Array: TypeAlias = "np.ndarray[Any, Any]"


def compare(
    reference: Sequence[Feed], candidate: Sequence[Feed], tolerance: Tolerance, masks: Sequence[Array] | None = None
) -> dict[str, Any]:
    """How far `candidate` is from `reference`, and whether that is within `tolerance`. Feeds pair up by position.

    The answer is JSON: passed, max_abs (largest absolute difference), mean_cosine (of the worst output), min_cosine
    (of the worst single vector), samples (feeds compared), shapes (of every reference output, per feed), outputs
    (the same figures by output name), tolerance (its reason) and, when passed is False, reason. A figure is None
    where nothing could be compared. A vector is the last axis of an output, or the whole output where that axis has
    one element; two zero vectors agree (cosine 1), a zero vector beside another one does not (cosine 0).

    `masks` holds one attention mask [batch, sequence] per feed: positions where it is 0 are padding, whose values
    mean nothing, and are left out of outputs of shape [batch, sequence, width].
    Raises ParityError when the call itself makes no sense: numbers of feeds or masks differ, the tolerance is empty.
    """
    if len(reference) != len(candidate):
        raise ParityError(f"{len(candidate)} outputs cannot be compared with {len(reference)}: one each is needed")
    if masks is not None and len(masks) != len(reference):
        raise ParityError(f"{len(masks)} attention masks for {len(reference)} outputs: one each is needed")
    if tolerance.atol is None and tolerance.cosine is None:
        raise ParityError("a tolerance with neither atol nor cosine checks nothing: give one of them")
    found: dict[str, _Figures] = {}
    reason = "there are no samples, so nothing was compared" if not reference else None
    for index, (expected, actual) in enumerate(zip(reference, candidate, strict=True)):
        mask = None if masks is None else masks[index]
        reason = reason or _names_differ(expected, actual, index)
        for name in expected:
            if name in actual:
                figures = found.setdefault(name, _Figures())
                problem = figures.add(expected[name], actual[name], mask, tolerance)
                reason = reason or (problem and f"output {name!r} of sample {index}: {problem}")
    for name, figures in found.items():
        reason = reason or figures.verdict(name, tolerance)
    outputs = {name: figures.to_json() for name, figures in found.items()}
    answer: dict[str, Any] = {
        "passed": reason is None,
        "max_abs": _worst(outputs, "max_abs", max),
        "mean_cosine": _worst(outputs, "mean_cosine", min),
        "min_cosine": _worst(outputs, "min_cosine", min),
        "samples": len(reference),
        "shapes": [{name: list(np.shape(value)) for name, value in feed.items()} for feed in reference],
        "outputs": outputs,
        "tolerance": tolerance.reason,
    }
    return answer if reason is None else {**answer, "reason": reason}


def token_masks(feeds: Sequence[Feed]) -> list[Array] | None:
    """The attention mask of each feed's own tokens, without those of a decoder's past; None where feeds have none."""
    masks = [mask for feed in feeds if (mask := token_mask(feed)) is not None]
    return masks if len(masks) == len(feeds) else None


def token_mask(feed: Feed) -> Array | None:
    """The attention mask of one feed's own tokens: all of it where it has no "input_ids" [batch, sequence]."""
    mask, tokens = feed.get("attention_mask"), feed.get("input_ids")
    if mask is None or tokens is None or mask.ndim != 2 or tokens.ndim != 2:
        return mask
    return mask[:, -tokens.shape[1] :]


def require(agreement: dict[str, Any], what: str) -> dict[str, Any]:
    """The agreement itself when it passed. Raises ParityError, naming `what`, when it did not."""
    if agreement["passed"] is not True:
        raise ParityError(f"{what}: {agreement['reason']}")
    return agreement


def _names_differ(expected: Feed, actual: Feed, index: int) -> str | None:
    if not expected:
        return f"sample {index} has no outputs to compare with"
    absent, more = sorted(set(expected) - set(actual)), sorted(set(actual) - set(expected))
    if absent:
        return f"sample {index}: output {absent[0]!r} is absent. There is: {', '.join(sorted(actual)) or 'none'}"
    if more:
        return f"sample {index}: output {more[0]!r} was not there before. There was: {', '.join(sorted(expected))}"
    return None


def _worst(outputs: dict[str, dict[str, Any]], figure: str, pick: Any) -> float | None:
    values = [item[figure] for item in outputs.values()]
    return None if not values or None in values else float(pick(values))


@dataclass
class _Figures:
    """What is known of one output over all samples. `complete` is False once a sample could not be compared."""

    max_abs: float = 0.0
    elements: int = 0
    beyond: int = 0  # elements outside atol + rtol * |reference|
    cosines: list[Array] = field(default_factory=list)
    complete: bool = True

    def add(self, expected: Array, actual: Array, mask: Array | None, tolerance: Tolerance) -> str | None:
        """Take one sample in; the reason when it cannot be compared or holds values that nothing allows."""
        problem = self._add(np.asarray(expected), np.asarray(actual), mask, tolerance)
        self.complete = self.complete and problem is None
        return problem

    def _add(self, expected: Array, actual: Array, mask: Array | None, tolerance: Tolerance) -> str | None:
        if expected.shape != actual.shape:
            return f"shape {list(actual.shape)}, expected {list(expected.shape)}"
        if (expected.dtype.kind in "fV") != (actual.dtype.kind in "fV"):
            return f"{actual.dtype} values, expected {expected.dtype}"
        if mask is not None and expected.ndim == 3 and np.shape(mask) == expected.shape[:2]:
            kept = np.asarray(mask) != 0
            expected, actual = expected[kept], actual[kept]
        if expected.size == 0:
            return None  # nothing to see in this sample; `verdict` refuses an output that never showed anything
        a, b = actual.astype(np.float64), expected.astype(np.float64)
        if np.isnan(b).any():
            return f"{int(np.isnan(b).sum())} values of the reference itself are NaN"
        finite = np.isfinite(b)
        wrong = ~np.isfinite(a) & finite | (~finite & (a != b))  # an infinity must be the same infinity
        if wrong.any():
            return (
                f"{int(wrong.sum())} of {wrong.size} values are NaN or infinite where the reference is not, or differ"
            )
        a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
        difference = np.abs(a - b)
        self.max_abs = max(self.max_abs, float(difference.max()))
        self.elements += a.size
        if tolerance.atol is not None:
            self.beyond += int((difference > tolerance.atol + tolerance.rtol * np.abs(b)).sum())
        self.cosines.append(cosine(a, b))
        return None

    def verdict(self, name: str, tolerance: Tolerance) -> str | None:
        """The reason why this output misses the tolerance, None when it meets it."""
        if not self.elements:
            return f"output {name!r} has no values, so nothing was compared"
        if self.beyond:
            assert tolerance.atol is not None
            allowed = f"{tolerance.atol:g}" + (f" + {tolerance.rtol:g} * |reference|" if tolerance.rtol else "")
            return (
                f"output {name!r}: {self.beyond} of {self.elements} values are off by more than {allowed}, "
                f"at most by {self.max_abs:.3g} ({tolerance.reason})"
            )
        mean = float(np.concatenate(self.cosines).mean())
        if tolerance.cosine is not None and not mean >= tolerance.cosine:
            return f"output {name!r}: mean cosine {mean:.6f} is below {tolerance.cosine:g} ({tolerance.reason})"
        return None

    def to_json(self) -> dict[str, Any]:
        if not self.elements:
            return {"max_abs": None, "mean_cosine": None, "min_cosine": None, "elements": 0}
        joined = np.concatenate(self.cosines)
        known = self.complete  # figures over a part of the samples would look better than the whole is
        return {
            "max_abs": self.max_abs if known else None,
            "mean_cosine": float(joined.mean()) if known else None,
            "min_cosine": float(joined.min()) if known else None,
            "elements": self.elements,
        }


def cosine(a: Array, b: Array) -> Array:
    """Cosine of each pair of vectors on the last axis, one flat array, in [-1, 1].

    Zero vectors have no direction: two of them count as 1, one beside a vector that is not zero as 0.
    """
    whole = a.ndim < 2 or a.shape[-1] == 1
    x, y = (value.astype(np.float64).reshape(1 if whole else -1, -1 if whole else a.shape[-1]) for value in (a, b))
    # Scaled first, so that neither tiny nor huge vectors lose their squares.
    x_top, y_top = np.abs(x).max(axis=1, keepdims=True), np.abs(y).max(axis=1, keepdims=True)
    x, y = x / np.where(x_top == 0, 1, x_top), y / np.where(y_top == 0, 1, y_top)
    length = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    zero_x, zero_y = x_top[:, 0] == 0, y_top[:, 0] == 0
    direction = (x * y).sum(axis=1) / np.where(length == 0, 1, length)
    return np.clip(np.where(zero_x & zero_y, 1.0, np.where(zero_x | zero_y, 0.0, direction)), -1.0, 1.0)
