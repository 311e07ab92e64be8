"""Decoders' attention as one operator: same outputs with and without a past, in batches, padded, for uneven heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from test_cache_export import decoder, export, feed
from tiny_graphs import clean

from edgeredux import caching
from edgeredux.execute import execute, onnx_session
from edgeredux.generation import Decoder, Sampling, Timing, generate
from edgeredux.parity import compare
from edgeredux.passes.onnx.decoder_fusions import DecoderFusions
from edgeredux.pruning.groups import find, remove
from edgeredux.rewrite import malformed
from edgeredux.seams import PassContext

# batch, tokens, past, padding at the right
SIZES = ((1, 5, 0), (1, 1, 5), (1, 1, 9), (1, 3, 40), (2, 40, 0), (2, 1, 9), (2, 3, 5), (2, 7, 0, 3), (3, 3, 5, 2))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a family's tiny decoder, exported once."""

    @cache
    def made(family: str) -> Path:
        return export(decoder(family), tmp_path_factory.mktemp(family))[0]

    return made


def greedy(path: Path) -> list[int]:
    tokens = generate(
        Decoder(path, lambda: onnx_session(path, 1)), [5, 9, 33, 71], 24, frozenset(), Sampling(), Timing()
    )
    return list(tokens)


def fuse(source: Path, folder: Path) -> tuple[Path, dict[str, object]]:
    out = folder / "fused.onnx"
    step = DecoderFusions()
    change = step.run(source, out, PassContext(calibration=[], log=folder / "log.txt", scratch=folder))
    assert change.changed, change.why
    assert malformed(source, out) is None
    kept = caching.of_onnx(source)
    assert caching.of_onnx(out) == kept
    feeds = [feed(kept, *size) for size in SIZES]
    before, after = (execute(path, feeds, log=folder / "log.txt") for path in (source, out))
    found = compare(before, after, step.tolerance)
    assert found["passed"], found["reason"]
    assert found["max_abs"] < 1e-5  # float32 on sums of at most 48 numbers of size 1
    return out, change.details


@pytest.mark.parametrize(
    ("family", "window", "rotations"),
    [("qwen3", None, 4), pytest.param("gemma3", 16, 4, marks=pytest.mark.slow), ("gpt2", None, 0)],
)
def test_one_operator_a_layer(
    family: str, window: int | None, rotations: int, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    source = exported(family)
    out, details = fuse(source, tmp_path)
    assert (details["attentions"], details["rotations"], details["left"]) == (2, rotations, {})
    assert details["windows"] == {"0": window, "1": window}
    assert greedy(out) == greedy(source)
    kinds = [node.op_type for node in ir.load(out).graph]
    assert kinds.count("GroupQueryAttention") == 2
    assert "Softmax" not in kinds


def loaded(path: Path, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime executes, after what it fuses itself when it loads a file."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in ir.load(folder / "loaded.onnx").graph)


def test_as_much_fuses_where_layers_differ_in_heads_and_widths(exported: Callable[[str], Path], tmp_path: Path) -> None:
    model = decoder("qwen3")
    groups = find(model.module)
    remove(model.module, next(group for group in groups if group.kind == "heads"), torch.tensor([1]))
    remove(model.module, next(group for group in groups if group.kind == "ffn"), torch.arange(0, 48, 3))
    dense, _ = fuse(exported("qwen3"), tmp_path)
    before = loaded(dense, tmp_path)
    source, _ = export(model, tmp_path)
    out, details = fuse(source, tmp_path)
    fused = [node for node in ir.load(out).graph if node.op_type == "GroupQueryAttention"]
    heads = [(node.attributes["num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()) for node in fused]
    assert heads == [(2, 1), (4, 2)]
    after = loaded(out, tmp_path)
    assert after == before
    norms = after["SimplifiedLayerNormalization"] + after["SkipSimplifiedLayerNormalization"]
    assert norms == details["norms"] == 9  # two a layer, two more for its queries and keys, one at the end
    # QuickGelu with alpha 1 is the SiLU of the SwiGLU; no operator of the CPU provider holds its product as well.
    assert [after[kind] for kind in ("GroupQueryAttention", "RotaryEmbedding", "QuickGelu")] == [2, 4, 2]
    assert not {"Softmax", "Sigmoid", "ReduceMean", "Neg"} & set(after)


def test_a_mask_that_is_not_causal_stays(exported: Callable[[str], Path], tmp_path: Path) -> None:
    model = ir.load(exported("qwen3"))
    for node in model.graph:
        if node.op_type == "LessOrEqual":  # the token after is seen, too
            node.op_type = "GreaterOrEqual"
    changed = tmp_path / "changed.onnx"
    ir.save(model, changed)
    context = PassContext(calibration=[], log=tmp_path / "log.txt", scratch=tmp_path)
    change = DecoderFusions().run(changed, tmp_path / "no.onnx", context)
    assert not change.changed
    assert "not causal" in change.why
    assert not (tmp_path / "no.onnx").exists()


def test_other_graphs_are_declined(tmp_path: Path) -> None:
    source = clean(tmp_path / "clean.onnx")
    context = PassContext(calibration=[], log=tmp_path / "log.txt", scratch=tmp_path)
    assert "no decoder" in DecoderFusions().run(source, tmp_path / "no.onnx", context).why
