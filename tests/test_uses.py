"""What the planner chooses for a target, and the zeros that it does not sell there."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Cli

from edgeredux import paying, recipe, records, registry, target, uses
from edgeredux.errors import EnvironmentProblem, RecipeError, TargetError
from edgeredux.recipe import Recipe
from edgeredux.remote.link import HOST_VARIABLE


def steps(*given: tuple[str, dict[str, Any]]) -> paying.Steps:
    return [(name, options, registry.create("reduce step", name, options, "test")) for name, options in given]


def chosen(
    said: Recipe, name: str, *reduce: tuple[str, dict[str, Any]], task: str = "causal-lm", runs: bool = False
) -> tuple[Recipe, uses.Use]:
    made, found = uses.choose(said, [name], steps=steps(*reduce), task=lambda: task, there=None, runs=runs)
    (use,) = found
    return made, use


def passes(made: Recipe, artifact: str) -> list[str]:
    return [name for name, _ in made.artifacts[artifact].passes]


LLM = recipe.load("llm-quickstart")
STRUCTURED = ("structured", {"ffn": 0.25})


def test_a_cpu_gets_int4_weights_and_structured_zeros() -> None:
    made, use = chosen(LLM, "raspberry-pi-5", STRUCTURED)
    assert passes(made, use.reduced) == ["fold", "int4_weights"]
    assert use.dense == "onnx-float"  # the recipe's own says the same
    assert made.artifacts[use.reduced].cache
    assert "reads every weight for every token" in use.notes[0]
    assert len(use.notes) == 1
    assert made.targets["raspberry-pi-5"].keys() == {"ssh"}
    assert use.budget == {"latency_ratio": 1.0, "size_ratio": 1.0}
    assert recipe.parse(made.to_json(), "again") == made  # a bundle's next stage reads it so
    made, use = chosen(LLM, "raspberry-pi-5", STRUCTURED, task="embedding")
    assert passes(made, use.reduced)[-1] == "int8_dynamic"


def test_a_snapdragon_gets_static_qdq_16_8() -> None:
    made, use = chosen(LLM, "snapdragon-8-gen-3", STRUCTURED)
    assert passes(made, use.reduced) == passes(made, use.dense) == ["fold", "clamp_mask", "qdq_static"]
    qdq = registry.create("pass", "qdq_static", {}, "test")
    assert (qdq.activation, made.artifacts[use.reduced].cache) == ("uint16", False)
    assert made.artifacts[use.reduced].shapes == {"batch": 1, "sequence": 128}  # the recipe's texts have 128 tokens
    assert "16-bit activations and 8-bit weights" in use.notes[0]


def test_one_device_is_not_taken_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOST_VARIABLE, "nobody@192.0.2.1")  # an address for documentation: asking it would hang
    monkeypatch.delenv(records.VARIABLE, raising=False)
    there = {role: ["onnx-float", "onnx-int8"] for role in ("dense", "reduced")}
    _, found = uses.choose(LLM, ["all"], steps=(), task=lambda: "causal-lm", there=there, runs=True)
    said = {use.target.name: use for use in found}
    assert set(said) == set(target.shipped())
    assert "name the one that the device is" in (said["laptop-x86"].unavailable or "")
    assert not any(use.runtime.runner == "ssh" and use.unavailable is None for use in found)


@pytest.mark.skipif(find_spec("onnxruntime_qnn") is None, reason="Qualcomm's library is not installed")
def test_each_target_s_pick_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOST_VARIABLE, raising=False)
    made, found = uses.choose(
        LLM,
        ["raspberry-pi-5", "snapdragon-8-gen-3", "host-cpu"],
        steps=steps(STRUCTURED),
        task=lambda: "causal-lm",
        there=None,
        runs=True,
    )
    last = {use.target.name: passes(made, use.reduced)[-1] for use in found}
    assert last == {"raspberry-pi-5": "int4_weights", "snapdragon-8-gen-3": "qdq_static", "host-cpu": "int8_dynamic"}
    # An estimate takes any file: that a bundle has one for a Raspberry Pi says nothing of what a Snapdragon takes.
    quickstart = recipe.load("quickstart")
    targets = {"raspberry-pi-5": made.targets["raspberry-pi-5"], **quickstart.targets}
    both = quickstart.model_copy(update={"targets": targets, "artifacts": {**quickstart.artifacts, **made.artifacts}})
    there = {role: list(both.artifacts) for role in ("dense", "reduced")}
    _, found = uses.choose(both, ["galaxy-s24-npu"], steps=(), task=lambda: "causal-lm", there=there, runs=True)
    assert passes(both, found[0].reduced)[-1] == "qdq_static"


def test_nvidia_is_offered_two_of_four() -> None:
    made, use = chosen(LLM, "h200", STRUCTURED)
    assert passes(made, use.reduced) == ["fold", "fp16", "two_four"]
    assert use.notes[1].startswith("offered on h200: 2:4 zeros from 50% on: NVIDIA: sparse Tensor Cores")
    _, taken = chosen(LLM, "h200", ("prune", {"pattern": "2:4"}))
    assert len(taken.notes) == 1
    with pytest.raises(EnvironmentProblem, match=r"target h200: .*no NVIDIA|target h200: .*GPU"):
        chosen(LLM, "h200", STRUCTURED, runs=True)


@pytest.mark.skipif(find_spec("onnxruntime_qnn") is None, reason="Qualcomm's library is not installed")
def test_what_takes_no_time_is_not_asked_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qualcomm's simulator computes, and somebody else has to say how long it takes on the device."""

    def asked(said: Recipe, there: uses.There | None) -> list[str]:
        _, found = uses.choose(
            said, ["galaxy-s24-npu"], steps=steps(STRUCTURED), task=lambda: "causal-lm", there=there, runs=True
        )
        assert found[0].budget == {"size_ratio": 1.0}
        assert all(use.budget == {"latency_ratio": 1.0, "size_ratio": 1.0} for use in found[1:])
        return [use.runtime.runner for use in found]

    quickstart = recipe.load("quickstart")  # which has artifacts for a Snapdragon
    there = {role: ["onnx-qdq"] for role in ("dense", "reduced")}
    monkeypatch.delenv(records.VARIABLE, raising=False)
    estimated = [r.runner for r in target.load("galaxy-s24-npu").runtimes if r.runner == "estimate"]
    assert asked(LLM, None) == asked(quickstart, None) == asked(quickstart, there) == ["qnn", *estimated]
    (tmp_path / "r.json").write_text(records.text([]), encoding="utf-8")
    monkeypatch.setenv(records.VARIABLE, str(tmp_path / "r.json"))
    assert asked(LLM, None) == asked(quickstart, None) == asked(quickstart, there) == ["qnn", "replay"]


@pytest.mark.parametrize(
    ("name", "step", "words"),
    [
        ("raspberry-pi-5", ("prune", {"zeros": 0.5}), "expands sparse initializers"),
        ("raspberry-pi-5", ("prune", {"pattern": "2:4"}), "no CPU kernel"),
        ("raspberry-pi-5", ("rigl", {"zeros": 0.9}), "expands sparse initializers"),
        ("snapdragon-8-gen-3", ("prune", {"pattern": "2:4"}), "keeps its bytes with 2:4 zeros"),
        ("galaxy-s25-npu", ("prune", {"zeros": 0.9}), "keeps its bytes at 50, 75 and 90 % zeros"),
        ("h200", ("prune", {"zeros": 0.5}), "cannot use the vector and matrix instructions"),
        ("h200", ("prune", {"pattern": "4:8"}), "has no rule that says so"),
        ("laptop-x86", ("prune", {"pattern": "tile:2x16", "zeros": 0.25}), "below 50% of them, 25% are asked for"),
        ("laptop-x86", ("prune", {"pattern": "tile:2x16", "zeros": 0.5}), "without the pass tile"),
    ],
)
def test_what_does_not_pay_is_refused_with_its_source(name: str, step: tuple[str, dict[str, Any]], words: str) -> None:
    with pytest.raises(RecipeError) as problem:
        chosen(LLM, name, step)
    said = str(problem.value)
    assert said.startswith(f"recipe llm-quickstart: reduce: {step[0]}: ")
    assert words in said
    assert "\n" not in said
    assert f"name {name} under targets: to have them all the same" in said


def test_a_named_target_has_its_way_and_is_told() -> None:
    made, found = uses.choose(
        LLM, None, steps=steps(("prune", {"zeros": 0.5})), task=lambda: "causal-lm", there=None, runs=False
    )
    assert made == LLM
    assert len(found[0].notes) == 1
    assert found[0].notes[0].startswith("not sold: prune: unstructured zeros do not pay on host-cpu (onnxruntime): ")
    assert "what pays there: structured, tile from 50%" in found[0].notes[0]
    _, found = uses.choose(LLM, None, steps=steps(STRUCTURED), task=lambda: "causal-lm", there=None, runs=False)
    assert found[0].notes == ()


def test_a_rule_may_be_one_runtime_s() -> None:
    host = target.load("host-cpu")
    (blocks,) = paying.made_by(steps(("prune", {"pattern": "1x4", "zeros": 0.9})))
    assert blocks == ("prune", "block", 0.9)
    assert "has no rule" in (paying.unpaid(host, "onnxruntime", blocks, []) or "")
    assert "without the pass tflite_sparse_weights" in (paying.unpaid(host, "litert", blocks, []) or "")
    assert paying.unpaid(host, "litert", blocks, ["tflite_sparse_weights"]) is None


def test_each_step_s_zeros_have_a_pattern() -> None:
    made = paying.made_by(
        steps(
            ("prune_until", {"limit": 0.9, "pattern": "heads"}),
            ("depth", {"share": 0.25}),
            ("gradual", {"zeros": 0.8, "pattern": "tile"}),
            ("movement", {"zeros": 0.5}),
            ("distill", {}),
        )
    )
    assert [(zeros.pattern, zeros.share) for zeros in made] == [
        ("structured", None),
        ("structured", None),
        ("tile", 0.8),
        ("unstructured", 0.5),
    ]


def test_a_target_of_ones_own_takes_the_artifacts_of_its_runner(tmp_path: Path) -> None:
    said = yaml.safe_load(target.shipped()["host-cpu"].read_text(encoding="utf-8"))
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({**said, "name": "mine", "picks": []}), encoding="utf-8")
    _, use = chosen(LLM, str(mine), STRUCTURED)
    assert (use.entry, use.dense, use.reduced) == ("mine", "onnx-float", "onnx-int8")
    bare = {**said, "name": "bare", "picks": [], "runtimes": [{"runner": "ssh", "format": "onnx"}]}
    mine.write_text(yaml.safe_dump(bare), encoding="utf-8")
    with pytest.raises(TargetError, match=r"has no artifacts for its runner .*picks none for causal-lm"):
        chosen(LLM, str(mine), STRUCTURED)


def test_the_command_line_refuses_before_any_work(cli: Cli, tmp_path: Path) -> None:
    setting = "reduce=[{prune: {pattern: '2:4'}}]"
    done = cli("run", "quickstart", "--target", "raspberry-pi-5", "--set", setting, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "2:4 zeros do not pay on raspberry-pi-5" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    everywhere = cli("run", "quickstart", "--target", "all", "--out", tmp_path / "out")
    assert everywhere.returncode == 2
    assert "for profile" in everywhere.stderr
    assert json.loads(cli("targets", "--json").stdout)[0].keys() == {"name", "runtimes", "description"}
