"""Coefficients of several devices from few measurements each: robust, in log space, devices informing each other.

Every device has its own logarithms t_d. They are drawn towards what all devices have in common, mu, and away from it in
three ways: each coefficient a little, all together (a faster chip), the arithmetic together (a wider one). mu itself is
drawn towards the style's first guess. This is maximum a posteriori for a Gaussian hierarchy (Gelman & Hill 2006,
ch. 12) with the pseudo-Huber loss on log(estimate/measured); damped Gauss-Newton, devices and mu in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeredux.prediction.features import Style
from edgeredux.prediction.roofline import times

Array = np.ndarray[Any, Any]
_NOISE, _KNEE = 0.2, 0.15  # log error taken for granted, and from where on errors count linearly
_FIRST_ITERATIONS, _LATER_ITERATIONS, _ROUNDS = 40, 6, 4


@dataclass(frozen=True)
class Spread:
    """Standard deviations in log space: one coefficient, all together, arithmetic together, the common mean."""

    one: float = 0.5
    whole: float = 1.0
    arithmetic: float = 0.5
    common: float = 0.8


@dataclass(frozen=True)
class Measured:
    """Models measured on one device: amounts [models, terms], milliseconds [models], and which models are one."""

    amounts: Array
    measured: Array
    names: Sequence[str]

    def keep(self, mask: Array) -> Measured:
        """Those of the mask."""
        return Measured(
            self.amounts[mask], self.measured[mask], [n for n, m in zip(self.names, mask, strict=True) if m]
        )


@dataclass(frozen=True)
class Fitted:
    """Logarithms of the common coefficients and of each device's."""

    common: Array
    devices: Mapping[Any, Array] = field(default_factory=dict)


def guess(style: Style) -> Array:
    """Logarithms of the style's first guesses."""
    logs: Array = np.log(np.array(list(style.terms.values())))
    return logs


def fit(
    groups: Mapping[Any, Measured],
    style: Style,
    spread: Spread = Spread(),
    start: Fitted | None = None,
    first: Array | None = None,
) -> Fitted:
    """The devices' coefficients. With `start` from a fit to nearly the same data it takes two rounds instead of four.

    `first` takes the place of the style's guess: what another numeric format was found to cost.
    """
    first = guess(style) if first is None else first
    away = np.array([term.startswith("m_") for term in style.terms], dtype=float)
    size = len(first)
    covariance = spread.one**2 * np.eye(size) + spread.whole**2 * np.ones((size, size))
    precision = np.linalg.inv(covariance + spread.arithmetic**2 * np.outer(away, away))
    common = first if start is None else start.common
    devices = {} if start is None else dict(start.devices)
    for turn in range(_ROUNDS if start is None else 2):
        steps = _FIRST_ITERATIONS if turn == 0 and start is None else _LATER_ITERATIONS
        for key, group in groups.items():
            devices[key] = one(group, common, precision, style, devices.get(key), steps)
        pull, count = 1 / spread.common**2, len(groups) / spread.one**2
        mean = np.mean([devices[key] for key in groups], axis=0)
        common = (mean * count + first * pull) / (count + pull)
    return Fitted(common, {key: devices[key] for key in groups})


def one(group: Measured, common: Array, precision: Array, style: Style, start: Array | None, iterations: int) -> Array:
    """One device's logarithms given what is common: damped Gauss-Newton on the posterior."""
    logs = np.log(group.measured)
    value, damping = (common if start is None else start).copy(), 1e-3

    def cost(at: Array) -> float:
        error = np.log(times(group.amounts, np.exp(at), style)[0]) - logs
        loss = 2 * _KNEE**2 * (np.sqrt(1 + (error / _KNEE) ** 2) - 1)
        return float(loss.sum() / _NOISE**2 + (at - common) @ precision @ (at - common))

    if not len(logs):
        return value
    now = cost(value)
    for _ in range(iterations):
        total, slope = times(group.amounts, np.exp(value), style)
        jacobian, error = slope / total[:, None], np.log(total) - logs
        weight = 1 / np.sqrt(1 + (error / _KNEE) ** 2) / _NOISE**2
        curvature = (jacobian * weight[:, None]).T @ jacobian + precision
        gradient = (jacobian * weight[:, None]).T @ error + precision @ (value - common)
        while damping < 1e8:
            damped = curvature + damping * np.diag(np.diag(curvature))
            trial = value - np.clip(np.linalg.solve(damped, gradient), -1.5, 1.5)
            then = cost(trial)
            if then < now:
                break
            damping *= 8
        else:
            return value
        gained, value, now, damping = now - then, trial, then, max(damping / 8, 1e-7)
        if gained < 1e-4 * max(1.0, now):
            break
    return value


def left_out(
    groups: Mapping[Any, Measured],
    style: Style,
    spread: Spread = Spread(),
    progress: Callable[[int, int], None] | None = None,
    first: Array | None = None,
) -> dict[Any, Array]:
    """Milliseconds by device for each model, predicted by a fit that saw this model on no device."""
    start = fit(groups, style, spread, first=first)
    found = {key: np.full(len(group.measured), np.nan) for key, group in groups.items()}
    names = sorted({name for group in groups.values() for name in group.names})
    for index, name in enumerate(names):
        masks = {key: np.array([n != name for n in group.names], dtype=bool) for key, group in groups.items()}
        fitted = fit({key: group.keep(masks[key]) for key, group in groups.items()}, style, spread, start, first)
        for key, group in groups.items():
            gone = ~masks[key]
            if gone.any():
                found[key][gone] = times(group.amounts[gone], np.exp(fitted.devices[key]), style)[0]
        if progress is not None:
            progress(index + 1, len(names))
    return found


def ranks(values: Array) -> Array:
    """Ranks from 0, ties averaged."""
    order = np.argsort(values, kind="stable")
    found = np.empty(len(values))
    found[order] = np.arange(len(values), dtype=float)
    for value in np.unique(values):
        same = values == value
        found[same] = found[same].mean()
    return found


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's rho: the correlation of the ranks."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])
