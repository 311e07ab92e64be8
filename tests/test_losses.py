"""Losses against other implementations of the papers' formulas, on cases small enough to read."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_prune_structured import context
from tiny_models import images, tiny_bert, tiny_classifier, tiny_llama, tokens, two_heads
from torch.nn import functional as F

from edgeredux.distillation.step import Distill
from edgeredux.errors import DataError, ModelError, RecipeError
from edgeredux.model import Model
from edgeredux.pruning.structured import Structured
from edgeredux.training.answers import Needs, answers
from edgeredux.training.attention import projections
from edgeredux.training.losses import LOSSES, allowed, divergence, parse
from edgeredux.training.losses.hidden import layer_map
from edgeredux.training.losses.relations import relation, relation_loss
from edgeredux.training.losses.task import task_loss
from edgeredux.training.objective import Objective

STUDENT = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], dtype=torch.float64)
TEACHER = torch.tensor([[0.1, 3.0, -1.0], [1.0, 1.0, 2.0]], dtype=torch.float64)


def softmax(logits: torch.Tensor, temperature: float) -> np.ndarray[Any, Any]:
    grown = np.exp(logits.numpy() / temperature)
    return np.asarray(grown / grown.sum(-1, keepdims=True))


def kl(p: np.ndarray[Any, Any], q: np.ndarray[Any, Any]) -> float:
    return float((p * np.log(p / q)).sum(-1).mean())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_against_the_formulas(temperature: float) -> None:
    p, q = softmax(TEACHER, temperature), softmax(STUDENT, temperature)
    square = temperature**2
    exact = {"rel": 1e-12}  # float64 on both sides
    got = divergence.forward_kl(STUDENT, TEACHER, temperature)
    assert float(got) == pytest.approx(kl(p, q) * square, **exact)
    assert float(divergence.reverse_kl(STUDENT, TEACHER, temperature)) == pytest.approx(kl(q, p) * square, **exact)
    for beta in (0.1, 0.5, 0.9):
        middle = beta * p + (1 - beta) * q
        wanted = (beta * kl(p, middle) + (1 - beta) * kl(q, middle)) * square
        assert float(divergence.jsd(STUDENT, TEACHER, temperature, beta)) == pytest.approx(wanted, **exact)
    entropy = float(-(p * np.log(p)).sum(-1).mean()) * square
    soft = float(divergence.soft_labels(STUDENT, TEACHER, temperature))
    assert soft - entropy == pytest.approx(kl(p, q) * square, **exact)  # H(p, q) = H(p) + KL(p || q)


def test_top_k_renormalises_both_sides() -> None:
    best = TEACHER.topk(2)
    two = [[1, 0], [2, 0]]  # the teacher's two likeliest classes; in the second row 0 and 1 are equally likely
    assert best.indices[0].tolist() == two[0]
    chosen = best.indices
    p, q = softmax(TEACHER.gather(1, chosen), 2.0), softmax(STUDENT.gather(1, chosen), 2.0)
    assert float(divergence.top_k(STUDENT, best.values, chosen, 2.0)) == pytest.approx(4 * kl(p, q), rel=1e-12)
    everything = TEACHER.topk(3)
    whole = divergence.top_k(STUDENT, everything.values, everything.indices, 2.0)
    assert float(whole) == pytest.approx(float(divergence.forward_kl(STUDENT, TEACHER, 2.0)), rel=1e-12)


def test_forward_kl_is_torchs() -> None:
    """Its gradient, too: that of torch's batchmean."""
    mine, theirs = STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    divergence.forward_kl(mine, TEACHER, 1.0).backward()
    F.kl_div(F.log_softmax(theirs, -1), F.softmax(TEACHER, -1), reduction="batchmean").backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_relations_against_the_paper_row_by_row() -> None:
    """MiniLM eq. 3-5 with loops: 1 / (heads * |x|) * sum over heads and positions of KL, mean over the samples."""
    torch.manual_seed(0)
    heads, mask = 2, torch.tensor([[1, 1, 1], [1, 1, 0]])
    teacher, student = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    samples = []
    for row, length in ((0, 3), (1, 2)):
        total = 0.0
        for head in range(heads):
            t, s = teacher[row, :length, 4 * head : 4 * head + 4], student[row, :length, 2 * head : 2 * head + 2]
            p, q = F.softmax(t @ t.T / math.sqrt(4), -1), F.softmax(s @ s.T / math.sqrt(2), -1)
            total += float((p * (p / q).log()).sum())
        samples.append(total / heads / length)
    allowed = mask.bool()[:, None, :].expand(-1, 3, -1)
    got = relation_loss(relation(teacher, teacher, heads, allowed), relation(student, student, heads, allowed), mask)
    assert float(got) == pytest.approx(sum(samples) / 2, rel=1e-12)


def test_attention_of_queries_and_keys_is_the_models_own() -> None:
    model = tiny_bert()
    model.module.set_attn_implementation("eager")
    feed = {name: torch.from_numpy(value) for name, value in tokens(model, (2, 6))[0].items()}
    with torch.no_grad():
        wanted = model.module(**feed, output_attentions=True).attentions[1]
        parts = answers(model, feed, Needs(attention=frozenset({1}))).attention[1]
    allowed = feed["attention_mask"].bool()[:, None, :].expand(-1, 6, -1)
    torch.testing.assert_close(relation(parts["query"], parts["key"], 2, allowed).exp(), wanted, rtol=1e-5, atol=1e-6)


def test_grouped_keys_are_repeated_for_their_queries() -> None:
    model = tiny_llama(key_value_heads=2)
    feed = {name: torch.from_numpy(value) for name, value in tokens(model, (2, 5))[0].items()}
    layer = model.module.model.layers[0].self_attn
    seen: list[torch.Tensor] = []
    handle = layer.k_proj.register_forward_hook(lambda _, given, made: seen.append(made))
    with torch.no_grad():
        parts = answers(model, feed, Needs(attention=frozenset({0}))).attention[0]
    handle.remove()
    assert parts["key"].shape == parts["query"].shape == (2, 5, 16)
    for head in range(4):
        torch.testing.assert_close(
            parts["key"][..., 4 * head : 4 * head + 4], seen[0].view(2, 5, 2, 4)[:, :, head // 2]
        )
    assert not any(part._forward_hooks for part in model.module.modules())


def test_gpt2_keeps_its_three_parts_in_one_layer() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    like = tiny_llama()
    module = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16)).eval()
    model = like.after(module, "")
    feed = {name: torch.from_numpy(value) for name, value in tokens(model, (1, 4))[0].items()}
    parts = answers(model, feed, Needs(attention=frozenset({1}))).attention[1]
    assert {name: tuple(part.shape) for name, part in parts.items()} == dict.fromkeys(parts, (1, 4, 16))
    assert len(projections(model)) == 2
    assert not torch.equal(parts["query"], parts["value"])


def test_a_model_without_attention_says_so() -> None:
    with pytest.raises(ModelError, match="q_proj/k_proj/v_proj"):
        projections(two_heads())


def objective(losses: dict[str, Any], student: Model, teacher: Model, feeds: Any = None) -> Objective:
    feeds = feeds or tokens(student, (4, 8), (4, 6))
    return Objective(parse(losses, student, "test"), student, teacher, lambda number: feeds[number % 2])


def value_of(made: Objective, feed: dict[str, Any]) -> torch.Tensor:
    return made({name: torch.from_numpy(value) for name, value in feed.items()})


def number(made: Objective, feed: dict[str, Any]) -> float:
    return float(value_of(made, feed).detach())


@pytest.mark.parametrize("make", [tiny_bert, tiny_classifier, tiny_llama])
def test_every_loss_of_a_task_is_zero_against_itself_and_padding_does_not_count(make: Any) -> None:
    """Or its minimum, for cross entropies: the gradient vanishes. What padded tokens hold changes nothing."""
    model = make()
    feed = tokens(model, (4, 8))[0]
    filled = {**feed, "input_ids": np.where(feed["attention_mask"] == 1, feed["input_ids"], 7)}
    names = [name for name in allowed(model) if name != "task"]
    assert len(names) >= 6
    for name in names:
        made = objective({name: 1.0}, model, make())
        value = value_of(made, feed)
        model.module.zero_grad()
        value.backward()
        slope = max(float(p.grad.abs().max()) for p in model.module.parameters() if p.grad is not None)
        # 1e-5: float32 of two identical computations; cosine of equal vectors is 1 to 1e-7, its gradient to 1e-6.
        assert slope < 1e-5, name
        if name != "logits":
            assert abs(float(value.detach())) < 1e-6, name
        assert number(made, filled) == pytest.approx(float(value.detach()), abs=1e-6), name


@pytest.mark.parametrize(("make", "names"), [(tiny_bert, ("embedding", "hidden", "attention", "value_relation"))])
def test_a_sum_is_weighted(make: Any, names: tuple[str, ...]) -> None:
    student, teacher = make(), make()
    with torch.no_grad():
        for value in student.module.parameters():
            value.mul_(1.2)
    feed = tokens(student, (4, 8))[0]
    alone = {name: number(objective({name: 1.0}, student, teacher), feed) for name in names}
    assert all(value > 0 for value in alone.values())
    weights = {name: place + 0.5 for place, name in enumerate(names)}
    together = number(objective(weights, student, teacher), feed)
    assert together == pytest.approx(sum(weights[name] * alone[name] for name in names), rel=1e-6)


def test_next_token_loss_is_transformers() -> None:
    model = tiny_llama()
    feed = {name: torch.from_numpy(value) for name, value in tokens(model, (3, 7))[0].items()}
    labels = feed["input_ids"].masked_fill(feed["attention_mask"] == 0, -100)
    with torch.no_grad():
        wanted = model.module(**feed, labels=labels).loss
        got = task_loss(model, model.forward(feed)["logits"], feed)
    assert float(got) == pytest.approx(float(wanted), rel=1e-6)


def test_labels_are_asked_for() -> None:
    model = tiny_classifier()
    feed = tokens(model, (4, 6))[0]
    made = objective({"task": 1.0}, model, model)
    with pytest.raises(DataError, match=r"data\.label"):
        value_of(made, feed)
    labels = np.array([0, 2, 1, 1])
    with torch.no_grad():
        logits = model.forward({name: torch.from_numpy(value) for name, value in feed.items()})["logits"]
    wanted = -logits.log_softmax(-1)[range(4), labels].mean()
    assert number(made, {**feed, "labels": labels}) == pytest.approx(float(wanted), rel=1e-6)


def test_layer_maps() -> None:
    assert layer_map("uniform", 6, 6, "") == {layer: layer for layer in range(6)}
    assert layer_map("uniform", 3, 6, "") == {0: 1, 1: 3, 2: 5}
    assert layer_map("uniform", 4, 6, "") == {0: 0, 1: 2, 2: 3, 3: 5}
    assert layer_map({2: 5, 0: 1}, 3, 6, "") == {0: 1, 2: 5}
    with pytest.raises(RecipeError, match=r"student layers are 0\.\.2, teacher layers 0\.\.5"):
        layer_map({3: 5}, 3, 6, "")
    with pytest.raises(RecipeError, match="student has 6 layers, the teacher 3"):
        layer_map("uniform", 6, 3, "")


def narrow() -> Model:
    from tiny_models import TOKENS, bert_config, model_of
    from transformers import BertModel

    torch.manual_seed(3)
    module = BertModel(bert_config(hidden_size=12, num_hidden_layers=1, intermediate_size=16), add_pooling_layer=False)
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    return model_of(module, "embedding", inputs, "last_hidden_state", (*TOKENS, None))


def test_a_narrower_student_is_projected(tmp_path: Path) -> None:
    """The least-squares matrix is that of numpy's lstsq on the stacked system, and a learnt one moves on from it."""
    student, teacher = narrow(), tiny_bert()
    feeds = tokens(student, (4, 8), (4, 6))
    made = objective({"hidden": {"projection": "least_squares"}}, student, teacher, feeds)
    assert not made.parameters
    states = []
    for number in range(8):
        feed = {name: torch.from_numpy(value) for name, value in feeds[number % 2].items()}
        with torch.no_grad():
            a, b = (answers(model, feed, Needs(hidden=True)).hidden for model in (student, teacher))
        keep = feed["attention_mask"].bool()
        states.append((a[1][keep], b[2][keep]))
    small, large = (torch.cat(part).double().numpy() for part in zip(*states, strict=True))
    ridge = math.sqrt(1e-3 * (small**2).sum(0).mean())
    stacked = np.concatenate([small, ridge * np.eye(12)])
    fitted = np.linalg.lstsq(stacked, np.concatenate([large, np.zeros((12, 16))]), rcond=None)[0]
    feed = {name: torch.from_numpy(value) for name, value in feeds[0].items()}
    with torch.no_grad():
        a, b = (answers(model, feed, Needs(hidden=True)).hidden for model in (student, teacher))
    keep = feed["attention_mask"].bool()
    error = a[1][keep] @ torch.from_numpy(fitted).float() - b[2][keep]
    wanted = float(error.square().mean() / b[2][keep].square().mean())
    # 1e-4: both solve in float64, the product is taken in float32.
    assert float(made(feed).detach()) == pytest.approx(wanted, rel=1e-4)
    learnt = objective({"hidden": 1.0, "embedding": 1.0}, student, teacher, feeds)
    assert {name: list(value.shape) for name, value in learnt.parameters.items()} == {
        "hidden.projection.0": [12, 16],
        "embedding.projection.0": [12, 16],
    }
    step = Distill(steps=60, learning_rate=1e-2, losses={"hidden": 1.0, "embedding": 1.0, "value_relation": 1.0})
    trained, change = step.apply(student, dataclasses.replace(context(teacher, tmp_path), training=feeds))
    assert change.details["loss_last"] < 0.7 * change.details["loss_first"]
    assert set(trained.module.state_dict()) == set(student.module.state_dict())


def test_relations_of_pruned_heads(tmp_path: Path) -> None:
    """The student lost one head of four: widths 24 and 32 have 8 as common divisor, so there are 4 relation heads."""
    from test_prune_structured import bert

    teacher = bert()
    student, _ = Structured(ffn=0.5, heads=0.25, repair="none").apply(teacher, context(teacher, tmp_path))
    feed = context(teacher, tmp_path).training[0]
    for name in ("attention", "query_relation", "key_relation", "value_relation"):
        made = objective({name: 1.0}, student, teacher, [feed, feed])
        assert 0 < number(made, feed) < 5, name
    with pytest.raises(RecipeError, match="Allowed: 1, 2, 4, 8"):
        objective({"attention": {"relation_heads": 3}}, student, teacher, [feed, feed])
    with pytest.raises(RecipeError, match=r"student_layer: 9 is none of the 2 layers \(0\.\.1"):
        objective({"attention": {"student_layer": 9}}, student, teacher, [feed, feed])


def test_a_causal_models_attention_does_not_look_ahead() -> None:
    model = tiny_llama()
    feed = tokens(model, (2, 6), padded=False)[0]
    changed = {**feed, "input_ids": feed["input_ids"].copy()}
    changed["input_ids"][:, -1] = 3
    student = tiny_llama()
    with torch.no_grad():
        student.module.model.layers[1].self_attn.k_proj.weight.mul_(0.5)
    made = objective({"attention": 1.0}, student, model, [feed, feed])

    def by_token(feed: dict[str, Any]) -> torch.Tensor:
        given = {name: torch.from_numpy(value) for name, value in feed.items()}
        rows = []
        for token in range(5):
            rows.append(made({**{n: v[:, : token + 1] for n, v in given.items()}}))
        return torch.stack(rows)

    torch.testing.assert_close(by_token(feed), by_token(changed))  # none of the first five sees the sixth
    assert number(made, feed) > 0


def test_outputs_of_any_module() -> None:
    student, teacher = two_heads(), two_heads()
    with torch.no_grad():
        student.module.head.bias.add_(2.0)
    feeds = images(3, 3)
    made = objective({"output": 1.0}, student, teacher, feeds)
    assert number(made, feeds[0]) == pytest.approx((4.0 + 0.0) / 2, rel=1e-5)


def test_models_of_other_vocabularies_are_refused() -> None:
    student = tiny_llama()
    student.module.resize_token_embeddings(40, mean_resizing=False)
    feed = {name: value % 40 for name, value in tokens(student, (2, 5))[0].items()}
    for name in ("logits", "top_k"):
        with pytest.raises(ModelError, match="40 classes or tokens, the teacher 50"):
            objective({name: 1.0}, student, tiny_llama(), [feed, feed])


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({"logits": 1.0}, "unknown loss 'logits'.*Allowed: attention, embedding, hidden"),
        ({"hiden": 1.0}, "did you mean 'hidden'"),
        ({"hidden": {"wieght": 1}}, "loss hidden: unknown option 'wieght'; did you mean 'weight'"),
        ({"hidden": {"layers": {}}}, "loss hidden: layers"),
        ({"embedding": {"weight": 0}}, "loss embedding: weight"),
        ({}, "losses is empty"),
    ],
)
def test_wrong_losses_are_refused_with_what_is_allowed(losses: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse(losses, tiny_bert(), "distill")


def test_every_loss_has_a_task() -> None:
    models = [tiny_bert(), tiny_classifier(), tiny_llama(), two_heads()]
    assert set(LOSSES) == {name for model in models for name in allowed(model)}
