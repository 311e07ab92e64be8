"""Two processes that `accelerate launch` starts prune as one does; what cannot be shared out is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_prune_structured import context
from tiny_models import tiny_llama, tokens

from edgeredux.errors import DataError, EnvironmentProblem, ModelError, RecipeError
from edgeredux.processes import ALONE, Accelerated, share_of
from edgeredux.pruning.statistics import agreed
from edgeredux.pruning.unstructured import Prune

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import edgeredux
from edgeredux.processes import Accelerated
from safetensors.torch import save_file
from tiny_models import tiny_llama, tokens

model = tiny_llama()
processes = Accelerated()
assert processes.count == 2
for method in ("wanda", "sparsegpt"):
    batches = tokens(model, (2, 16), (3, 12), (2, 9), (1, 16), (4, 8))
    pruned = edgeredux.prune(model, method=method, pattern="2:4", data=batches, processes=processes)
    state = {{name: value.clone() for name, value in pruned.module.model.layers.state_dict().items()}}
    save_file(state, f"{{method}}-{{processes.index}}.safetensors")
"""


@pytest.mark.slow
def test_two_processes_prune_as_one_does(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    script = tmp_path / "prune_together.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)), encoding="utf-8")
    # Without MPI, accelerate's --cpu starts one process whatever --num_processes says; without a GPU this is gloo.
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [
            sys.executable,
            *command,
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            "0",
            str(script),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **settings},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    model = tiny_llama()
    batches = tokens(model, (2, 16), (3, 12), (2, 9), (1, 16), (4, 8))
    for method in ("wanda", "sparsegpt"):
        first, second = (load_file(tmp_path / f"{method}-{index}.safetensors") for index in range(2))
        alone, _ = Prune(method=method, pattern="2:4").apply(model, context(model, tmp_path, batches))
        wanted = alone.module.model.layers.state_dict()
        assert set(first) == set(wanted)
        for name, value in wanted.items():
            assert torch.equal(first[name], second[name])  # all processes solve from the same sums
            assert torch.equal(first[name] == 0, value == 0)
            # The sums are taken in another order: float32 rounding (1e-7) times the Gram matrices' condition, some 1e3.
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-5)


class Half:
    """The first of two processes, the other of which holds the same."""

    count = 2
    index = 0

    def total(self, value: torch.Tensor) -> torch.Tensor:
        return 2 * value


class Elsewhere(Half):
    """The first of two processes, the other of which is always somewhere else."""

    def total(self, value: torch.Tensor) -> torch.Tensor:
        return 2 * value + 1


def test_batches_are_shared_out() -> None:
    assert share_of(ALONE, range(5), "prune") == range(5)
    assert list(share_of(Half(), range(5), "prune")) == [0, 2, 4]
    with pytest.raises(DataError, match="1 calibration batches cannot be shared by 2"):
        share_of(Half(), [0], "prune")


def test_processes_that_differ_are_found() -> None:
    weights = {"a": torch.zeros(2, 2), "b": torch.ones(2)}
    agreed(ALONE, weights)
    agreed(Half(), weights)
    with pytest.raises(ModelError, match="the processes solved a differently"):
        agreed(Elsewhere(), weights)


def test_processes_at_different_layers_stop(tmp_path: Path) -> None:
    model = tiny_llama()
    apart = replace(context(model, tmp_path, tokens(model, (4, 16), (4, 16))), processes=Elsewhere())
    with pytest.raises(ModelError, match="not every process' calibration data reaches"):
        Prune(method="wanda").apply(model, apart)


def test_gradients_take_one_process(tmp_path: Path) -> None:
    model = tiny_llama()
    both = replace(context(model, tmp_path, tokens(model, (4, 16), (4, 16))), processes=Half())
    with pytest.raises(RecipeError, match="one process"):
        Prune(method="fisher").apply(model, both)


def test_sums_of_twice_the_same_batches_prune_alike(tmp_path: Path) -> None:
    model = tiny_llama()
    batch = tokens(model, (4, 16))[0]
    alone, _ = Prune(method="wanda").apply(model, context(model, tmp_path, [batch, batch]))
    both = replace(context(model, tmp_path, [batch, batch]), processes=Half())
    shared, _ = Prune(method="wanda").apply(model, both)
    for a, b in zip(alone.module.parameters(), shared.module.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


def test_an_absent_accelerate_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'edgeredux\[scale\]'"):
        Accelerated()
