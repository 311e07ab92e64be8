"""parity.compare: what agrees passes, and nothing passes by accident."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from edgeredux.errors import ParityError
from edgeredux.parity import compare, cosine, require, token_masks
from edgeredux.seams import Tolerance

EXACT = Tolerance("a rewrite of the same arithmetic", atol=1e-5, rtol=1e-5)
CLOSE = Tolerance("int8 weights", cosine=0.99)
DATA = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)


def feeds(value: Any = DATA, name: str = "y") -> list[dict[str, Any]]:
    return [{name: value}]


def test_equal_outputs_pass_and_are_json() -> None:
    said = compare(feeds(), feeds(DATA.copy()), EXACT)
    assert said["passed"] is True
    assert said["max_abs"] == 0
    assert said["min_cosine"] == pytest.approx(1)
    assert said["shapes"] == [{"y": [2, 5, 8]}]
    assert said["tolerance"] == EXACT.reason
    assert "reason" not in said
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert require(said, "model.onnx") is said


def test_elementwise_limit_is_atol_plus_rtol_times_reference() -> None:
    tolerance = Tolerance("t", atol=0.1, rtol=0.01)
    assert compare(feeds(np.array([[100.0]])), feeds(np.array([[101.09]])), tolerance)["passed"]
    said = compare(feeds(np.array([[100.0]])), feeds(np.array([[101.11]])), tolerance)
    assert not said["passed"]
    assert "1 of 1 values" in said["reason"]
    # |b| is the reference: the candidate's own size must not widen the limit
    assert not compare(feeds(np.array([[0.0]])), feeds(np.array([[0.1005]])), tolerance)["passed"]


def test_one_bad_value_among_many_fails() -> None:
    other = DATA.copy()
    other[1, 4, 7] += 0.01
    said = compare(feeds(), feeds(other), EXACT)
    assert not said["passed"]
    assert said["max_abs"] == pytest.approx(0.01, rel=1e-3)


def test_cosine_limit_is_on_the_mean_and_the_worst_vector_is_told() -> None:
    other = DATA.copy()
    other[0, 0] *= -1
    said = compare(feeds(), feeds(other), CLOSE)
    assert not said["passed"]
    assert said["min_cosine"] == pytest.approx(-1)
    assert said["mean_cosine"] == pytest.approx(0.8)
    assert "mean cosine" in said["reason"]


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        ([{}], "'y' is absent"),
        ([{"z": DATA}], "'y' is absent"),
        ([{"y": DATA, "z": DATA}], "'z' was not there"),
        (feeds(DATA[:1]), "shape [1, 5, 8]"),
        (feeds(DATA.astype(np.int32)), "int32"),
        (feeds(np.where(DATA > 2, np.nan, DATA)), "NaN"),
        (feeds(np.where(DATA > 2, np.inf, DATA)), "infinite"),
        (feeds(DATA.reshape(2, 8, 5)), "shape [2, 8, 5]"),
    ],
)
@pytest.mark.parametrize("tolerance", [EXACT, CLOSE, Tolerance("anything", atol=1e30, cosine=-1.0)])
def test_refused_at_any_tolerance(candidate: list[dict[str, Any]], says: str, tolerance: Tolerance) -> None:
    said = compare(feeds(), candidate, tolerance)
    assert said["passed"] is False
    assert says in said["reason"]
    json.dumps(said, allow_nan=False)
    with pytest.raises(ParityError, match=r"model.onnx: "):
        require(said, "model.onnx")


@pytest.mark.parametrize("reference", [[], [{}], feeds(np.zeros((0, 4))), feeds(np.zeros((1, 2, 3)))])
def test_an_empty_set_never_passes(reference: list[dict[str, Any]]) -> None:
    masks = [np.zeros((1, 2))] if reference and "y" in reference[0] and reference[0]["y"].size else None
    said = compare(reference, reference, EXACT, masks)
    assert said["passed"] is False
    assert said["max_abs"] is None


def test_an_output_that_fails_in_one_sample_gives_no_flattering_figures() -> None:
    said = compare([{"y": DATA}, {"y": DATA}], [{"y": DATA}, {"y": DATA * np.nan}], EXACT)
    assert not said["passed"]
    assert said["outputs"]["y"]["max_abs"] is None


def test_padding_is_left_out_and_nothing_else() -> None:
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    other = DATA.copy()
    other[1, 2:] = np.nan
    assert not compare(feeds(), feeds(other), EXACT)["passed"]
    assert compare(feeds(), feeds(other), EXACT, [mask])["passed"]
    other[1, 1, 0] += 1
    assert not compare(feeds(), feeds(other), EXACT, [mask])["passed"]
    pooled = np.ones((2, 5), np.float32)  # same leading dimensions, but no [batch, sequence, width]
    assert not compare(feeds(pooled), feeds(pooled + mask[::-1] * 0 + (mask == 0)), EXACT, [mask])["passed"]


def test_the_mask_of_a_feed_is_that_of_its_own_tokens() -> None:
    mask = np.array([[1, 1, 1, 0, 1]])
    past = {"attention_mask": mask, "input_ids": np.ones((1, 2))}
    np.testing.assert_array_equal(token_masks([past]), [[[0, 1]]])
    embedded = {"attention_mask": mask, "inputs_embeds": np.ones((1, 5, 8))}  # no tokens to count
    np.testing.assert_array_equal(token_masks([embedded]), [mask])
    assert token_masks([embedded, {"x": mask}]) is None


def test_infinities_of_the_reference_must_be_the_same() -> None:
    masked = np.array([[0.0, -np.inf]])
    assert compare(feeds(masked), feeds(masked.copy()), EXACT)["passed"]
    assert not compare(feeds(masked), feeds(-masked), EXACT)["passed"]
    assert not compare(feeds(masked), feeds(np.array([[0.0, -3e38]])), EXACT)["passed"]
    assert not compare(feeds(np.array([[np.nan]])), feeds(np.array([[np.nan]])), EXACT)["passed"]


def test_zero_vectors_have_no_direction() -> None:
    zero, one, tiny = np.zeros((1, 3)), np.ones((1, 3)), np.full((1, 3), 1e-200)
    assert cosine(zero, zero) == [1]
    assert cosine(zero, one) == [0]
    assert cosine(one, zero) == [0]
    assert cosine(tiny, one) == pytest.approx(1)
    assert not compare(feeds(one), feeds(zero), CLOSE)["passed"]
    assert not compare(feeds(zero), feeds(one), CLOSE)["passed"]


def test_cosine_against_the_formula() -> None:
    a, b = DATA, np.random.default_rng(1).standard_normal(DATA.shape)
    expected = [
        float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
        for x, y in zip(a.reshape(-1, 8).astype(float), b.reshape(-1, 8), strict=True)
    ]
    assert cosine(a, b) == pytest.approx(expected)
    # a last axis of one element has a sign, not a direction: the whole output is the vector
    assert cosine(np.array([[1.0], [2.0]]), np.array([[2.0], [4.1]])) == pytest.approx(1, abs=1e-3)


def test_calls_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ParityError, match="2 outputs cannot be compared with 1"):
        compare(feeds(), feeds() * 2, EXACT)
    with pytest.raises(ParityError, match="0 attention masks"):
        compare(feeds(), feeds(), EXACT, [])
    with pytest.raises(ParityError, match="checks nothing"):
        compare(feeds(), feeds(), Tolerance("no limits"))
