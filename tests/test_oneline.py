"""edgeredux.prune and edgeredux.distill in one line: on a Model, a transformers module and any module, with data of every kind."""

from __future__ import annotations

import pytest
import torch
from test_prune_structured import bert, feeds
from transformers import LlamaConfig, LlamaForCausalLM, ResNetConfig, ResNetForImageClassification

import edgeredux
from edgeredux.errors import DataError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.layers import layers
from edgeredux.wrapping import as_model


def zeros(module: torch.nn.Module) -> float:
    weights = [part.weight for part in module.modules() if isinstance(part, (torch.nn.Linear, torch.nn.Conv2d))]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def test_a_model_comes_back_as_a_model() -> None:
    model = bert()
    pruned = edgeredux.prune(model, method="wanda", zeros=0.25, data=feeds())
    assert isinstance(pruned, Model)
    assert all(bool(((w := layer.matrix()) == 0).sum() == w.numel() // 4) for layer in layers(pruned))
    assert all(not bool((layer.matrix() == 0).any()) for layer in layers(model))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).eval()


@pytest.mark.parametrize("method", ["magnitude", "taylor", "fisher", "wanda", "sparsegpt", "alps"])
def test_a_transformers_decoder_with_grouped_queries(method: str) -> None:
    module = llama()
    tokens = torch.randint(0, 50, (3, 4, 12), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in tokens]
    pruned = edgeredux.prune(module, method=method, pattern="2:4", data=data)
    assert isinstance(pruned, LlamaForCausalLM)
    assert all(
        layer.matrix().count_nonzero() == layer.matrix().numel() // 2 for layer in layers(as_model(pruned, data))
    )
    assert not bool((pruned.lm_head.weight == 0).any())
    assert torch.isfinite(pruned(data[0]["input_ids"]).logits).all()


def test_a_transformers_resnet() -> None:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3, layer_type="basic")
    module = ResNetForImageClassification(config).eval()
    data = [{"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(i))} for i in range(3)]
    pruned = edgeredux.prune(module, method="sparsegpt", zeros=0.5, data=data)
    found = layers(as_model(pruned, data))
    assert all((layer.matrix() == 0).sum() == layer.matrix().numel() // 2 for layer in found)
    assert {type(layer.module) for layer in found} == {torch.nn.Conv2d}


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "loader"])
def test_any_module_with_data_of_every_kind(form: str) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4))
    batches = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    data = {
        "tensor": batches,
        "tuple": [(batch,) for batch in batches],
        "dict": [{"input": batch} for batch in batches],
        "loader": torch.utils.data.DataLoader(torch.cat(batches), batch_size=8),
    }[form]
    pruned = edgeredux.prune(module, method="sparsegpt", zeros=0.5, data=data)
    assert zeros(pruned) == 0.5
    assert zeros(module) == 0


def test_magnitude_needs_no_data() -> None:
    assert zeros(edgeredux.prune(torch.nn.Sequential(torch.nn.Linear(8, 8)), zeros=0.25)) == 0.25


def test_mistakes_are_one_clear_error() -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with pytest.raises(RecipeError, match="did you mean 'wanda'"):
        edgeredux.prune(plain, method="wandas", zeros=0.5)
    with pytest.raises(RecipeError, match="zeros"):
        edgeredux.prune(plain, zeros=1.0)
    for pattern in ("hidden", "3:2", "odd"):
        with pytest.raises(RecipeError, match=r"shrink: neurons, heads, channels, width, depth, vocabulary"):
            edgeredux.prune(plain, pattern=pattern)
    with pytest.raises(DataError, match="no calibration data"):
        edgeredux.prune(plain, method="wanda")
    with pytest.raises(DataError, match="tokenizer"):
        edgeredux.prune(plain, method="wanda", data=["some text"])
    with pytest.raises(ModelError, match=r"no nn\.Module"):
        edgeredux.prune(3, method="wanda")
    with pytest.raises(DataError, match="no 'attention_mask'"):
        edgeredux.prune(bert(), method="wanda", data=[{"input_ids": torch.ones(2, 3, dtype=torch.int64)}])


def test_distillation_of_a_decoder_in_one_line() -> None:
    teacher = llama()
    tokens = torch.randint(0, 50, (4, 8, 12), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in tokens]
    student = edgeredux.prune(teacher, zeros=0.7)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    options = {"steps": 30, "losses": {"reverse_kl": 1.0}, "learning_rate": 3e-3}
    trained = edgeredux.distill(student, teacher, data=data, **options)
    assert isinstance(trained, LlamaForCausalLM)

    def distance(module: torch.nn.Module) -> float:
        with torch.no_grad():
            p, q = (m(tokens[0]).logits.log_softmax(-1) for m in (module, teacher))
        return float((p.exp() * (p - q)).sum(-1).mean())

    assert distance(trained) < 0.7 * distance(student)
    assert zeros(trained) == zeros(student) > 0.5
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_distillation_keeps_labels_and_refuses_what_is_unknown() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    module = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=2, **sizes)).eval()
    ids = torch.randint(0, 50, (3, 8, 6), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": batch, "attention_mask": torch.ones_like(batch), "labels": batch[:, 0] % 2} for batch in ids]
    trained = edgeredux.distill(module, module, data=data, steps=2, losses={"task": 1.0, "logits": 0.5})
    assert isinstance(trained, BertForSequenceClassification)
    with pytest.raises(RecipeError, match="unknown option 'step'; did you mean 'steps'"):
        edgeredux.distill(module, module, data=data, options={"step": 2})
    with pytest.raises(RecipeError, match=r"unknown loss 'embedding'.*Allowed: attention"):
        edgeredux.distill(module, module, data=data, losses={"embedding": 1.0})
    with pytest.raises(DataError, match="no training data"):
        edgeredux.distill(module, module, data=[])


@pytest.mark.parametrize(("pattern", "shape"), [("neurons", (32, 32)), ("heads", (64, 16))])
def test_structured_patterns_shrink_shapes(pattern: str, shape: tuple[int, int]) -> None:
    model = bert()
    pruned = edgeredux.prune(model, pattern=pattern, zeros=0.5, data=feeds())
    block = pruned.module.encoder.layer[0]
    assert (block.intermediate.dense.out_features, block.attention.self.query.out_features) == shape


def test_depth_and_channels_by_pattern() -> None:
    model = bert()
    assert len(edgeredux.prune(model, pattern="depth", data=feeds()).module.encoder.layer) == 1
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    batches = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    assert edgeredux.prune(net, pattern="channels", zeros=0.5, data=batches)[0].out_channels == 4
    with pytest.raises(RecipeError, match="takes no zeros"):
        edgeredux.prune(model, pattern="vocabulary", zeros=0.5, data=feeds())
    with pytest.raises(RecipeError, match="influence"):
        edgeredux.prune(model, pattern="depth", method="wanda", data=feeds())


def test_the_given_module_stays_in_the_mode_it_was_in() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8).eval(), torch.nn.Linear(8, 8))
    modes = [part.training for part in module.modules()]
    assert modes == [True, True, False, True]
    batches = [torch.randn(16, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    edgeredux.prune(module, method="wanda", zeros=0.5, data=batches)
    assert [part.training for part in module.modules()] == modes
    with pytest.raises(DataError):
        edgeredux.prune(module, method="wanda", zeros=0.5)
    assert [part.training for part in module.modules()] == modes
