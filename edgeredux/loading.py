"""Sources to Models, and Models to folders.

`save` writes what stock transformers loads wherever the model's config can say its shapes. Where it cannot (attention
heads removed from a BERT, widths that differ by layer), `edgeredux_shapes.json` beside it says them (shapes.py):
`load` builds the stock model from the config without weights, resizes it, then reads the safetensors.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeredux import decoder_check, shapes
from edgeredux.errors import ModelError, one_line
from edgeredux.model import TASKS, Model
from edgeredux.shapes import SHAPES_FILE
from edgeredux.sources import Source, resolve, weight_files

if TYPE_CHECKING:
    import torch

_TOKENS = ("batch", "sequence")


def load(source: str | Source, *, task: str = "auto", max_length: int = 128, remote_code: bool = False) -> Model:
    """The Model behind a source (see sources.py), in eval mode, weights checked to be complete and finite.

    `task` is "auto" or one of embedding, classification, causal-lm, generic. Raises ModelError.
    """
    found = resolve(source) if isinstance(source, str) else source
    if task != "auto" and task not in TASKS:
        raise ModelError(f"task {task!r}: allowed are auto, {', '.join(TASKS)}")
    if found.kind == "factory":
        model = _from_factory(found, max_length)
    elif found.kind == "huggingface":
        model = _from_folder(found, task, max_length, remote_code)
    else:
        raise ModelError(f"model {found.text}: a {found.kind} graph has no PyTorch module to load")
    _check_finite(model)
    return model


def skeleton(source: Source, *, task: str = "auto", max_length: int = 128, remote_code: bool = False) -> Model:
    """The Model of a Hugging Face folder without its weights: they are on the meta device, computed buffers are real.

    It keeps no key-value cache. Raises ModelError.
    """
    if source.kind != "huggingface":
        raise ModelError(f"model {source.text}: only Hugging Face folders can be read part by part")
    if task != "auto" and task not in TASKS:
        raise ModelError(f"task {task!r}: allowed are auto, {', '.join(TASKS)}")
    return _from_folder(source, task, max_length, remote_code, _without_weights)


def _check_finite(model: Model) -> None:
    import torch

    for name, value in [*model.module.named_parameters(), *model.module.named_buffers()]:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            # An additive mask buffer may hold -inf on purpose; a trained weight never does.
            if not isinstance(value, torch.nn.Parameter) and not bool(torch.isnan(value).any()):
                continue
            bad = int((~torch.isfinite(value)).sum())
            raise ModelError(f"model {model.source}: weight {name!r} has {bad} values that are NaN or infinite")


def _from_factory(source: Source, max_length: int) -> Model:
    import torch

    from edgeredux.example_inputs import describe

    module_name, _, factory_name = source.text.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    import importlib

    try:
        factory = getattr(importlib.import_module(module_name), factory_name, None)
    except ImportError as problem:
        raise ModelError(one_line(f"model {source.text}: the module does not import: {problem}")) from problem
    if not callable(factory):
        raise ModelError(f"model {source.text}: module {module_name!r} has no function {factory_name!r}")
    try:
        made = factory()
    except Exception as problem:
        raise ModelError(one_line(f"model {source.text}: the factory failed: {problem}")) from problem
    module, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"model {source.text}: the factory returned {type(module).__name__}, not an nn.Module")
    if examples is None:
        examples = getattr(module, "example_inputs", None)
        examples = examples() if callable(examples) else examples
    if examples is None:
        raise ModelError(
            f"model {source.text}: no example inputs. Let the factory return (module, inputs), inputs being a tensor, "
            "a tuple or a dict of tensors, or give the module an example_inputs() method"
        )
    return describe(module.eval(), examples, source, max_length)


def _from_folder(
    source: Source,
    task: str,
    max_length: int,
    remote_code: bool,
    make: Callable[[Any, Any, Source, Path, bool], torch.nn.Module] | None = None,
) -> Model:
    import torch
    import transformers

    folder = source.path
    assert folder is not None
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=remote_code, local_files_only=True)
    except Exception as problem:
        hint = " (it needs remote code: add --trust-remote-code if you trust it)" if "remote" in str(problem) else ""
        raise ModelError(
            one_line(f"model {source.text}: config.json cannot be used{hint}: {problem}", 400)
        ) from problem
    decoder_check.check_heads(config, source.text)
    tokenizer = _tokenizer(folder, source, remote_code)
    decoder_check.check_tokens(config, tokenizer, source.text)
    chosen = _task(config, folder) if task == "auto" else task
    auto = {
        "embedding": transformers.AutoModel,
        "generic": transformers.AutoModel,
        "classification": transformers.AutoModelForSequenceClassification,
        "causal-lm": transformers.AutoModelForCausalLM,
    }[chosen]
    module = (make or _module)(auto, config, source, folder, remote_code)
    limit = getattr(config, "max_position_embeddings", None)
    length = min(max_length, limit) if isinstance(limit, int) and limit > 0 else max_length
    inputs = ["input_ids", "attention_mask"]
    if getattr(config, "type_vocab_size", 0) and "token_type_ids" in _forward_names(module):
        inputs.append("token_type_ids")
    output = "last_hidden_state" if chosen in ("embedding", "generic") else "logits"
    labels: tuple[str, ...] = ()
    if chosen == "classification":
        labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    axes: dict[str, tuple[str | None, ...]] = dict.fromkeys(inputs, _TOKENS)
    axes[output] = ("batch", None) if chosen == "classification" else (*_TOKENS, None)
    return Model(
        module=module.to(torch.float32).eval(),
        name=folder.name if folder.name not in ("model", "pytorch") else folder.parent.name,
        task=chosen,  # type: ignore[arg-type]
        input_names=tuple(inputs),
        output_names=(output,),
        axes=axes,
        source=source.text,
        sha256=source.sha256,
        tokenizer=tokenizer,
        max_length=length,
        pooling=_pooling(folder),
        labels=labels,
        is_transformers=True,
    )


def _forward_names(module: torch.nn.Module) -> set[str]:
    import inspect

    return set(inspect.signature(module.forward).parameters)


def task_of(folder: Path) -> str:
    """The task of a Hugging Face folder by its config.json, before anything is loaded. Raises ModelError."""
    import json
    from types import SimpleNamespace

    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as problem:
        raise ModelError(one_line(f"model {folder.name}: config.json cannot be read: {problem}")) from problem
    return _task(SimpleNamespace(architectures=said.get("architectures")), folder)


def _task(config: Any, folder: Path) -> str:
    names = " ".join(getattr(config, "architectures", None) or ())
    if "ForSequenceClassification" in names:
        return "classification"
    if "ForCausalLM" in names or "LMHeadModel" in names:
        return "causal-lm"
    if (folder / "modules.json").is_file() or names.endswith("Model") or "ForMaskedLM" in names:
        return "embedding"
    raise ModelError(
        f"model {folder.name}: the task of architecture {names or 'unknown'} is not known; say task: in the recipe. "
        f"Allowed: {', '.join(TASKS)}"
    )


def _pooling(folder: Path) -> Any:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise ModelError(f"model {folder.name}: 1_Pooling/config.json is no JSON") from problem
    if said.get("pooling_mode_cls_token"):
        return "cls"
    if said.get("pooling_mode_mean_tokens", True):
        return "mean"
    raise ModelError(f"model {folder.name}: its pooling mode is not supported. Allowed: mean, cls")


def _tokenizer(folder: Path, source: Source, remote_code: bool) -> Any:
    import transformers

    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "tokenizer.model", "vocab.json", "spiece.model")
    if not any((folder / name).is_file() for name in names):
        return None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=remote_code, local_files_only=True
        )
    except Exception as problem:
        raise ModelError(one_line(f"model {source.text}: its tokenizer cannot be read: {problem}")) from problem
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # the usual choice for decoders; padding is masked anyway
    return tokenizer


def _module(auto: Any, config: Any, source: Source, folder: Path, remote_code: bool) -> torch.nn.Module:
    import torch
    import transformers

    said = shapes.read(folder, source.text)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"trust_remote_code": remote_code} if remote_code else {}
    try:
        if said is None:
            module, info = auto.from_pretrained(
                folder, config=config, local_files_only=True, output_loading_info=True, dtype=torch.float32, **options
            )
            missing = sorted(info["missing_keys"])
            wrong = sorted(str(item[0]) for item in info.get("mismatched_keys", ()))
        else:
            build = auto.from_config if hasattr(auto, "from_config") else auto._from_config
            module = build(config, **options)
            shapes.resize(module, said, source.text)
            missing, wrong = _read_weights(module, folder, source.text), []
    except ModelError:
        raise
    except Exception as problem:
        raise ModelError(one_line(f"model {source.text}: cannot be loaded: {problem}", 400)) from problem
    if wrong:
        raise ModelError(f"model {source.text}: weight {wrong[0]!r} has another shape than config.json says")
    # A pooler that the checkpoint never had is random; nothing reads it, so it goes rather than being shipped.
    if missing and all(name.split(".")[0] == "pooler" for name in missing) and hasattr(module, "pooler"):
        module.pooler = None
        missing = []
    if missing:
        raise ModelError(f"model {source.text}: {len(missing)} weights are not in the checkpoint, first {missing[0]!r}")
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"model {source.text}: transformers gave no module")
    return module


def _without_weights(auto: Any, config: Any, source: Source, folder: Path, remote_code: bool) -> torch.nn.Module:
    import torch
    import transformers
    from torch.overrides import TorchFunctionMode

    class EmptyOnMeta(TorchFunctionMode):
        """Weights are made by torch.empty; what is computed (rotary frequencies, position numbers) is not."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = dict(kwargs or {})
            if function is torch.empty and given.get("device") is None:
                given["device"] = "meta"
            return function(*args, **given)

    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"model {source.text}: its weights are quantised; give the checkpoint it was made from")
    said = shapes.read(folder, source.text)
    transformers.utils.logging.set_verbosity_error()
    try:
        with EmptyOnMeta():
            module: torch.nn.Module = auto.from_config(
                config, dtype=torch.float32, **({"trust_remote_code": True} if remote_code else {})
            )
        if said is not None:
            shapes.resize(module, said, source.text)
    except ModelError:
        raise
    except Exception as problem:
        raise ModelError(one_line(f"model {source.text}: cannot be built: {problem}", 400)) from problem
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            setattr(part, name, torch.nn.Parameter(value.to("meta"), requires_grad=False))
    module.config.use_cache = False  # type: ignore[union-attr]
    return module


def _read_weights(module: torch.nn.Module, folder: Path, text: str) -> list[str]:
    from safetensors.torch import load_file

    state: dict[str, Any] = {}
    for path in weight_files(folder, text):
        if path.suffix != ".safetensors":
            raise ModelError(f"model {text}: {path.name}: a pruned model is read from safetensors only")
        state.update(load_file(path))
    try:
        answer = module.load_state_dict(state, strict=False)
    except RuntimeError as problem:
        raise ModelError(one_line(f"model {text}: weights and shapes differ: {problem}", 300)) from problem
    tied = set(getattr(module, "_tied_weights_keys", None) or ())
    tie = getattr(module, "tie_weights", None)
    if callable(tie):
        tie()
    if answer.unexpected_keys:
        raise ModelError(f"model {text}: the weight file has an unknown tensor {answer.unexpected_keys[0]!r}")
    return sorted(set(answer.missing_keys) - tied)


def shape_differences(module: torch.nn.Module) -> dict[str, Any] | None:
    """What edgeredux_shapes.json must say of a transformers module: None when its config says all shapes."""
    return shapes.differences(module, shapes.stock(module, module.config))


def save(model: Model, folder: Path) -> None:
    """Write the model as a folder that `load` reads: config, safetensors, tokenizer, pooling, shapes if needed."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if model.is_transformers:
        said = shape_differences(model.module)
        # Where only our loader reads it, the module's own tensor names stay: stock ones may be renamed on the way.
        model.module.save_pretrained(folder, save_original_format=said is None)  # type: ignore[operator]
        if said is not None:
            shapes.write(folder, said)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(folder)
        if model.task == "embedding":
            pooling = folder / "1_Pooling"
            pooling.mkdir(exist_ok=True)
            width = _output_width(model)
            said = {
                "word_embedding_dimension": width,
                "pooling_mode_cls_token": model.pooling == "cls",
                "pooling_mode_mean_tokens": model.pooling == "mean",
            }
            (pooling / "config.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
            modules = [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
            (folder / "modules.json").write_text(json.dumps(modules, indent=1) + "\n", encoding="utf-8")
        return
    state = {name: value.contiguous().clone() for name, value in model.module.state_dict().items()}
    if any(
        value.numel() == 0 or not math.isfinite(float(value.float().sum()))
        for value in state.values()
        if value.is_floating_point()
    ):
        raise ModelError(f"model {model.name}: a weight is empty or not finite; it is not written")
    save_file(
        {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}, folder / "model.safetensors"
    )
    shapes.write(folder, shapes.describe(model.module))
    (folder / "module.txt").write_text(f"{model.source}\n", encoding="utf-8")


def _output_width(model: Model) -> int:
    """Dimensions of an embedding model's output: as it comes out where it takes tokens, since a config may not know."""
    import numpy as np

    if "input_ids" not in model.input_names:
        return int(model.module.config.hidden_size)  # type: ignore[union-attr,arg-type]
    feed = {name: np.full((1, 2), int(name == "attention_mask"), np.int64) for name in model.input_names}
    return int(model.run(feed)[model.output_names[0]].shape[-1])


def reduced_tokenizer(folder: Path, like: Model) -> Any:
    """The tokenizer of the reduced model in `folder`: the dense model's own unless a step rewrote it."""
    if like.tokenizer is None:
        return None
    read = _tokenizer(folder, resolve(str(folder)), False)
    return like.tokenizer if read is None or read.get_vocab() == like.tokenizer.get_vocab() else read


def load_reduced(folder: Path, like: Model) -> Model:
    """The reduced model that `save` wrote to `folder`; `like` is the dense model it came from (for its interface)."""
    import copy
    from dataclasses import replace

    if like.is_transformers:
        # By its own class rather than an Auto class: the folder may be of a task that no Auto class is chosen for here.
        kind: Any = type(like.module)
        config = type(like.module.config).from_pretrained(folder, local_files_only=True)  # type: ignore[union-attr]
        module = _module(kind, config, resolve(str(folder)), folder, False).float().eval()
        read = replace(like, module=module, tokenizer=reduced_tokenizer(folder, like))
        _check_finite(read)
        return read
    module = copy.deepcopy(like.module)
    said = shapes.read(folder, str(folder))
    if said is None:
        raise ModelError(f"{folder}: {SHAPES_FILE} is missing")
    shapes.resize(module, said, str(folder))
    missing = _read_weights(module, folder, str(folder))
    if missing:
        raise ModelError(f"{folder}: weight {missing[0]!r} is missing")
    return replace(like, module=module.eval())
