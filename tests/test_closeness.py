"""How near a model is to the dense one, against the formulas written out in torch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import images, tiny_bert, tiny_classifier, tiny_llama, tokens, two_heads
from torch.nn import functional as F

from edgeredux.closeness import Gauge
from edgeredux.errors import DataError, ModelError
from edgeredux.model import Model
from edgeredux.seams import Feed


def disturbed(model: Model) -> Model:
    module = copy.deepcopy(model.module)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.after(module, "disturbed")


def outputs(model: Model, feed: Feed) -> torch.Tensor:
    with torch.no_grad():
        return model.forward({name: torch.from_numpy(feed[name]) for name in model.input_names})[model.output_names[0]]


@pytest.mark.parametrize("make", [tiny_bert, tiny_classifier, tiny_llama])
def test_the_dense_model_itself_is_at_no_distance(make: Any) -> None:
    model = make()
    near = Gauge(model, tokens(model, (4, 12), (3, 7))).of_model(model)
    assert near.loss == 0.0
    assert near.quality == 1.0


def test_embeddings_against_cosine() -> None:
    model = tiny_bert()
    other, feeds = disturbed(model), tokens(model, (4, 12), (3, 7))
    cosines = []
    for feed in feeds:
        mask = torch.from_numpy(feed["attention_mask"])[..., None].double()
        a, b = ((outputs(m, feed).double() * mask).sum(1) / mask.sum(1) for m in (model, other))
        cosines.append(F.cosine_similarity(a, b, dim=-1))
    near = Gauge(model, feeds).of_model(other)
    # The gauge regroups the batches by length: float32 sums in another order.
    assert near.quality == pytest.approx(float(torch.cat(cosines).mean()), abs=1e-6)
    assert near.loss == pytest.approx(1 - near.quality, abs=1e-12)


def test_classes_against_kl_divergence() -> None:
    model = tiny_classifier()
    other, feeds = disturbed(model), tokens(model, (4, 12), (3, 7))
    a, b = (torch.cat([outputs(m, feed).double() for feed in feeds]).log_softmax(-1) for m in (model, other))
    near = Gauge(model, feeds).of_model(other)
    assert near.loss == pytest.approx(float(F.kl_div(b, a, reduction="batchmean", log_target=True)), rel=1e-4)
    assert near.quality == float((a.argmax(-1) == b.argmax(-1)).double().mean())


def test_labels_against_accuracy_and_cross_entropy() -> None:
    model = tiny_classifier()
    rng = np.random.default_rng(0)
    feeds = [{**feed, "labels": rng.integers(0, 3, len(feed["input_ids"]))} for feed in tokens(model, (4, 12), (3, 7))]
    other = disturbed(model)
    labels = torch.cat([torch.from_numpy(feed["labels"]) for feed in feeds])
    gauge = Gauge(model, feeds)
    for m, near in ((other, gauge.of_model(other)), (model, gauge.dense)):
        logits = torch.cat([outputs(m, feed) for feed in feeds]).double()
        assert near.quality == float((logits.argmax(-1) == labels).double().mean())
        assert near.task_loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert gauge.quality_unit == "accuracy"
    for bad in (np.array([0, 1, 2, 3]), np.array([0.0, 1.0, 1.0, 1.0]), np.array([0, -100, 1, 1])):
        with pytest.raises(DataError, match=r"whole numbers of 0\.\.2"):
            Gauge(model, [{**feeds[0], "labels": bad}])


def test_next_tokens_against_kl_divergence_and_perplexity() -> None:
    model = tiny_llama()
    other, feeds = disturbed(model), tokens(model, (2, 12), (3, 7), padded=False)
    rows: list[list[torch.Tensor]] = [[], []]
    true = []
    for feed in feeds:
        true.append(torch.from_numpy(feed["input_ids"][:, 1:]).flatten())
        for place, m in enumerate((model, other)):
            rows[place].append(outputs(m, feed)[:, :-1].double().flatten(0, 1))
    a, b = (torch.cat(part) for part in rows)
    perplexity = [float(F.cross_entropy(x, torch.cat(true)).exp()) for x in (a, b)]
    near = Gauge(model, feeds).of_model(other)
    kl = F.kl_div(b.log_softmax(-1), a.log_softmax(-1), reduction="batchmean", log_target=True)
    assert near.loss == pytest.approx(float(kl), rel=1e-4)
    assert near.quality == pytest.approx(perplexity[0] / perplexity[1], rel=1e-5)
    assert near.task_loss == pytest.approx(np.log(perplexity[1]), rel=1e-5)
    assert Gauge(model, feeds).dense.task_loss == pytest.approx(np.log(perplexity[0]), rel=1e-5)


def test_padding_does_not_count() -> None:
    model = tiny_llama()
    other = disturbed(model)
    feed = tokens(model, (1, 6), padded=False)[0]
    padded = {name: np.pad(value, [(0, 0), (0, 3)]) for name, value in feed.items()}
    assert Gauge(model, [padded]).of_model(other) == Gauge(model, [feed]).of_model(other)


def test_the_first_samples_alone() -> None:
    model = two_heads()
    feeds = images(3, 3)
    gauge = Gauge(model, feeds, samples=4)
    assert gauge.samples == 4
    one = {name: value[:1] for name, value in feeds[1].items()}
    other = disturbed(model)
    expected = Gauge(model, [feeds[0], one]).of_model(other)
    assert gauge.of_model(other).loss == pytest.approx(expected.loss, rel=1e-6)


def test_small_distances_are_told_apart() -> None:
    """1 - cosine in floating point is rounding below 1e-7; half the squared distance is not."""
    model = tiny_bert()
    other = model.after(copy.deepcopy(model.module), "")
    with torch.no_grad():
        other.module.get_parameter("encoder.layer.1.output.dense.weight")[0, 0] += 1e-4
    assert 0 < Gauge(model, tokens(model, (4, 12))).of_model(other).loss < 1e-7


def test_no_data_and_nan_are_errors() -> None:
    model = tiny_bert()
    with pytest.raises(DataError, match="no data"):
        Gauge(model, [])
    broken = model.after(copy.deepcopy(model.module), "")
    with torch.no_grad():
        broken.module.get_parameter("encoder.layer.1.output.LayerNorm.weight").fill_(torch.nan)
    with pytest.raises(ModelError, match="NaN"):
        Gauge(model, tokens(model, (2, 5))).of_model(broken)
