"""Models of a few thousand weights, seeded, that exporters are tried on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgeredux.model import Model
from edgeredux.seams import Feed

TOKENS = ("batch", "sequence")


def bert_config(**changes: Any) -> Any:
    from transformers import BertConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertConfig(**{**sizes, "vocab_size": 50, "max_position_embeddings": 32, **changes})


def model_of(module: torch.nn.Module, task: Any, inputs: tuple[str, ...], output: str, last: Any, **more: Any) -> Model:
    return Model(
        module=module.eval(),
        name="tiny",
        task=task,
        input_names=inputs,
        output_names=(output,),
        axes={**dict.fromkeys(inputs, TOKENS), output: last},
        source="tiny",
        sha256="0" * 64,
        max_length=16,
        is_transformers=True,
        **more,
    )


def tiny_bert() -> Model:
    from transformers import BertModel

    torch.manual_seed(0)
    module = BertModel(bert_config(), add_pooling_layer=False)
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    return model_of(module, "embedding", inputs, "last_hidden_state", (*TOKENS, None))


def tiny_classifier() -> Model:
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    module = BertForSequenceClassification(bert_config(num_labels=3))
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    return model_of(module, "classification", inputs, "logits", ("batch", None))


def tiny_llama(key_value_heads: int = 2) -> Model:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        intermediate_size=24,
        vocab_size=50,
        max_position_embeddings=32,
    )
    return model_of(LlamaForCausalLM(config), "causal-lm", ("input_ids", "attention_mask"), "logits", (*TOKENS, None))


class TwoHeads(torch.nn.Module):
    """An image in, two tensors out; the second says which weights were used."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 3, 3)
        self.head = torch.nn.Linear(3, 4)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, image: torch.Tensor, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.convolution(image).relu().mean((2, 3)) * self.scale
        return {"scores": self.head(features) + shift, "features": features}


def two_heads(batch: str | None = "batch") -> Model:
    torch.manual_seed(0)
    axes = {"image": (batch, None, None, None), "shift": (batch, None)}
    return Model(
        module=TwoHeads().eval(),
        name="two-heads",
        task="generic",
        input_names=("image", "shift"),
        output_names=("scores", "features"),
        axes={**axes, "scores": (batch, None), "features": (batch, None)},
        source="tiny",
        sha256="0" * 64,
    )


def images(*sizes: int) -> list[Feed]:
    random = np.random.default_rng(0)
    return [
        {
            "image": random.standard_normal((size, 1, 8, 8)).astype(np.float32),
            "shift": random.standard_normal((size, 4)).astype(np.float32),
        }
        for size in sizes
    ]


def tokens(model: Model, *sizes: tuple[int, int], padded: bool = True) -> list[Feed]:
    """Random tokens of shape (batch, sequence); the second half of every second row is padding."""
    random = np.random.default_rng(0)
    feeds = []
    for batch, sequence in sizes:
        mask = np.ones((batch, sequence), np.int64)
        if padded and sequence > 1:
            mask[::2, (sequence + 1) // 2 :] = 0
        feed = {"input_ids": random.integers(1, 50, (batch, sequence)), "attention_mask": mask}
        if "token_type_ids" in model.input_names:
            feed["token_type_ids"] = np.zeros((batch, sequence), np.int64)
        feeds.append(feed)
    return feeds


def decoder_of(config: Any, name: str) -> Model:
    """A causal language model of random weights, as transformers builds it from the config."""
    import transformers

    axes: dict[str, tuple[str | None, ...]] = dict.fromkeys(("input_ids", "attention_mask"), TOKENS)
    return Model(
        module=transformers.AutoModelForCausalLM.from_config(config).eval(),
        name=name,
        task="causal-lm",
        input_names=("input_ids", "attention_mask"),
        output_names=("logits",),
        axes={**axes, "logits": ("batch", "sequence", None)},
        source=name,
        sha256="0" * 64,
        is_transformers=True,
    )


def greedy_of_transformers(module: Any, prompt: list[int], count: int) -> list[int]:
    """The `count` tokens that transformers itself goes on with; nothing ends them."""
    ids = torch.tensor([prompt])
    made = module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return list(made[0, len(prompt) :].tolist())
