"""Any module and any data as the Model and feeds that steps work on: what the one-line functions begin with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeredux.errors import DataError, ModelError
from edgeredux.model import Model, Task
from edgeredux.seams import Feed

if TYPE_CHECKING:
    import torch

# A Model, any module, or what `edgeredux.load` takes.
AnyModel: TypeAlias = "Model | torch.nn.Module | str"
# Texts (for a Model with a tokenizer), or batches: dicts, tuples or single tensors or arrays; a DataLoader gives those.
AnyData: TypeAlias = "Iterable[Any] | None"
BATCH = 16  # texts that are encoded together


def as_model(model: AnyModel, data: Sequence[Any]) -> Model:
    """The Model of a module; the first batch of `data` says what its inputs are. Raises ModelError or DataError."""
    import torch

    if isinstance(model, Model):
        return model
    if isinstance(model, str):
        from edgeredux import loading

        return loading.load(model)
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"model: {type(model).__name__} is no nn.Module, no edgeredux Model and no name of one")
    if hasattr(model, "config") and hasattr(model, "save_pretrained"):
        return _transformers(model, data)
    if not data:
        return _bare(model)
    from edgeredux.example_inputs import describe
    from edgeredux.sources import Source

    examples = data[0]
    if isinstance(examples, str):
        raise DataError("data: texts need a model with a tokenizer; give batches of tensors")
    if isinstance(examples, Mapping):
        examples = {name: torch.as_tensor(value) for name, value in examples.items()}
    else:
        parts = examples if isinstance(examples, (tuple, list)) else (examples,)
        examples = tuple(torch.as_tensor(part) for part in parts)
    return describe(model.eval(), examples, Source(type(model).__name__, "factory", None, ""), 128)


def as_feeds(model: Model, data: Sequence[Any]) -> list[Feed]:
    """Batches as dicts of arrays by input name. Raises DataError for a batch that does not fit the model's inputs."""
    if data and all(isinstance(item, str) for item in data):
        return [model.encode(list(data[place : place + BATCH])) for place in range(0, len(data), BATCH)]
    feeds: list[Feed] = []
    for place, item in enumerate(data):
        if isinstance(item, Mapping):
            named = dict(item.items())
        else:
            parts = item if isinstance(item, (tuple, list)) else (item,)
            named = dict(zip(model.input_names, parts, strict=False))
        for name in model.input_names:
            if name not in named:
                given = ", ".join(map(str, named)) or "nothing"
                raise DataError(f"data: batch {place} has no {name!r} for model {model.name}; it has: {given}")
        beside = [name for name in ("labels",) if name in named]  # no input, but what a loss may train by
        feeds.append({name: _array(named[name], place, name) for name in (*model.input_names, *beside)})
    return feeds


def _array(value: Any, place: int, name: str) -> Any:
    import numpy as np
    import torch

    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise DataError(f"data: batch {place}: {name!r} holds {array.dtype}, not numbers")
    return array


def _transformers(module: torch.nn.Module, data: Sequence[Any]) -> Model:
    """The Model of a transformers module: inputs as the first batch names them, the task from the class."""
    kind = type(module).__name__
    inputs: tuple[str, ...] = (str(getattr(module, "main_input_name", "input_ids")),)
    if data and isinstance(data[0], Mapping):
        inputs = tuple(str(name) for name in data[0] if name != "labels")
    elif data and isinstance(data[0], str):
        raise DataError("data: texts need a tokenizer; give encoded batches, or a Model from edgeredux.load")
    task: Task = "embedding" if "input_ids" in inputs else "generic"
    if kind.endswith(("ForCausalLM", "LMHeadModel")):
        task = "causal-lm"
    elif kind.endswith(("ForSequenceClassification", "ForImageClassification")):
        task = "classification"
    elif "For" in kind:  # ForConditionalGeneration, ForMaskedLM, ForTokenClassification: a head, but no one vector
        task = "generic"
    output = "logits" if "For" in kind or task == "causal-lm" else "last_hidden_state"
    axes: dict[str, tuple[str | None, ...]] = dict.fromkeys(inputs, ("batch", None))
    if "input_ids" in inputs:
        axes = dict.fromkeys(inputs, ("batch", "sequence"))
    axes[output] = ("batch", None)
    return Model(
        module=module.eval(),
        name=kind,
        task=task,
        input_names=inputs,
        output_names=(output,),
        axes=axes,
        source=kind,
        sha256="",
        is_transformers=True,
    )


def _bare(module: torch.nn.Module) -> Model:
    """A Model that can be looked at but not run: enough for what needs no data."""
    return Model(
        module=module.eval(),
        name=type(module).__name__,
        task="generic",
        input_names=(),
        output_names=(),
        axes={},
        source=type(module).__name__,
        sha256="",
    )
