"""A small Llama and its tokenizer, trained on the training part of the texts and on more of their kind (texts.py).

The rest of the texts stays held out, and so does what would tell of it. The tokenizer is made of the texts alone, so
that tokens are those of the subject.

The same settings, texts and versions give the same bytes on one kind of processor: every random number comes from the
seed, the thread count is fixed, and a training that was killed goes on to the same weights. PyTorch promises no more:
on a processor with other vector instructions the last bits differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux.data import TextData
from edgeredux.demo.settings import DemoSettings
from edgeredux.seams import Feed, Progress

if TYPE_CHECKING:
    import torch

BEGIN, END = "<s>", "</s>"


def train_into(folder: Path, settings: DemoSettings, texts: TextData, checkpoint: Path, progress: Progress) -> None:
    """Write config, weights, tokenizer and README.md into an empty folder, as any Hugging Face folder has them."""
    import torch

    from edgeredux.demo.texts import library_sentences
    from edgeredux.model import Model
    from edgeredux.training.batches import Batches
    from edgeredux.training.loop import tenths, train
    from edgeredux.training.losses.task import task_loss
    from edgeredux.training.muon import MuonAndAdamW
    from edgeredux.training.settings import Settings
    from edgeredux.training.trainable import finished, matrices, trainable

    said = [example.text for example in texts.parts["training"]]
    held_out = [example.text for part in ("calibration", "evaluation") for example in texts.parts[part]]
    more = library_sentences(held_out) if settings.library else []
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        read = tokenizer(said, settings)
        module = decoder(settings, read)
        inputs = ("input_ids", "attention_mask")
        axes: dict[str, tuple[str | None, ...]] = dict.fromkeys(inputs, ("batch", "sequence"))
        model = Model(
            module=module,
            name="demo",
            task="causal-lm",
            input_names=inputs,
            output_names=("logits",),
            axes={**axes, "logits": ("batch", "sequence", None)},
            source=settings.data,
            sha256=texts.sha256,
            tokenizer=read,
            max_length=settings.max_length,
            is_transformers=True,
        )
        samples = windows(read, said, more, settings)
        weights = trainable(module, embeddings=True)
        # The head is the table, and is named as that.
        inside = [weights[name] for name in matrices(module) if name in weights]
        rest = [value for value in weights.values() if not any(value is other for other in inside)]
        history = train(
            Settings(
                steps=settings.steps,
                learning_rate=settings.learning_rate,
                weight_decay=settings.weight_decay,
                schedule="cosine",
                warmup=settings.warmup,
                checkpoint_every=settings.checkpoint_every,
            ),
            weights,
            Batches(samples, settings.batch, settings.seed),
            lambda feed: task_loss(model, model.forward(feed)["logits"], feed),
            optimizer=MuonAndAdamW(inside, rest, settings.learning_rate, settings.weight_decay),
            checkpoint=checkpoint,
            identity=repr(settings),
            progress=progress,
            label="demo model: training",
        )
        finished(module)
    finally:
        torch.set_num_threads(before)
    read.save_pretrained(folder)
    module.save_pretrained(folder)  # type: ignore[operator]
    first, last = tenths(history)
    (folder / "README.md").write_text(
        f"A decoder of {model.parameters():,} parameters that edgeredux trained on {len(said)} sentences of "
        f"{texts.source} and {len(more)} of the standard library's docstrings and comments: {settings.steps} steps of "
        f"{settings.batch} times {settings.max_length} tokens.\n\nTraining loss {first:.3f} to {last:.3f} "
        "(mean of the first and last tenth). It writes sentences that look like their texts and knows nothing.\n",
        encoding="utf-8",
    )


def windows(read: Any, texts: Sequence[str], more: Sequence[str], settings: DemoSettings) -> list[Feed]:
    """Samples of `max_length` tokens: of `more` as it stands, then of `texts`, each time in another order."""
    import numpy as np

    random = np.random.default_rng(settings.seed)
    orders = [random.permutation(len(texts)) for _ in range(settings.repeats)]
    tokens = [*read(list(more))["input_ids"]] if more else []
    own = read(list(texts))["input_ids"]
    tokens += [own[index] for order in orders for index in order]
    flat = np.array([token for text in tokens for token in text], np.int64)
    whole = flat[: len(flat) // settings.max_length * settings.max_length].reshape(-1, 1, settings.max_length)
    return [{"input_ids": window, "attention_mask": np.ones_like(window)} for window in whole]


def tokenizer(texts: list[str], settings: DemoSettings) -> Any:
    """Byte-level BPE of these texts; every text is closed in <s> and </s>, which is padding, too."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    found.train_from_iterator(texts, trainer)
    ends = [(name, found.token_to_id(name)) for name in (BEGIN, END)]
    found.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=found,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        model_max_length=settings.context,
        padding_side="right",
    )


def decoder(settings: DemoSettings, read: Any) -> torch.nn.Module:
    """The untrained module, its weights drawn from the seed; the caller's random numbers go on undisturbed."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=len(read),
        hidden_size=settings.hidden,
        intermediate_size=settings.ffn,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=read.bos_token_id,
        eos_token_id=read.eos_token_id,
        pad_token_id=read.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        module: torch.nn.Module = transformers.LlamaForCausalLM(config)
    return module.eval()
