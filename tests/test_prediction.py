"""Estimates: operators of files, the roofline by hand, fits that find what made the data, errors told with the number."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeredux import host_calibration, host_nets, registry, target
from edgeredux.errors import ArtifactError
from edgeredux.prediction import estimating, fitting, onnx_graph, roofline
from edgeredux.prediction.features import STYLES, Style, features
from edgeredux.prediction.operators import Operator, contraction, total_macs
from edgeredux.readings import Missing, Reading
from edgeredux.seams import ProfileJob

ROOT = Path(__file__).parents[1]


def weight(name: str, *shape: int, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros(shape, dtype=dtype), name)


def graph(path: Path, nodes: list[Any], inputs: dict[str, list[Any]], weights: list[Any], output: str) -> Path:
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    made = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", given, made, weights), opset_imports=[helper.make_opsetid("", 20)]
    )
    onnx.save(model, str(path))
    return path


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A convolution 3 -> 8 of 3x3 with stride 2, ReLU, depthwise 3x3, then tokens through a linear layer and attention."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c", "shape"], ["d"]),
        helper.make_node("MatMul", ["d", "w3"], ["e"]),
        helper.make_node("Transpose", ["e"], ["f"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["e", "f"], ["g"]),
        helper.make_node("Softmax", ["g"], ["y"]),
    ]
    shape = numpy_helper.from_array(np.array([1, 8, 16], dtype=np.int64), "shape")
    weights = [weight("w1", 8, 3, 3, 3), weight("w2", 8, 1, 3, 3), weight("w3", 16, 4), shape]
    return graph(tmp_path / "n.onnx", nodes, {"x": ["n", 3, "h", "w"]}, weights, "y")


def test_an_onnx_file_is_read_as_the_products_that_it_is(network: Path) -> None:
    found = onnx_graph.operators(network, {"x": (1, 3, 8, 8)})
    assert [operator.kind for operator in found] == ["conv", "depthwise", "linear", "move", "matmul", "softmax"]
    # By hand: 4x4 places x 27 x 8; 4x4 places x 9 x 8 channels; [8, 16] x [16, 4]; [8, 4] x [4, 8].
    assert [operator.macs for operator in found if operator.macs] == [3456, 1152, 512, 256]
    assert [operator.weights for operator in found if operator.macs] == [216, 72, 64, 0]
    assert found[0].strided
    assert not found[1].strided


def test_twice_the_places_are_twice_the_products(network: Path, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = graph(tmp_path / "m.onnx", nodes, {"x": ["n", "s", 16]}, [weight("w", 16, 4)], "y")
    small, large = (total_macs(onnx_graph.operators(path, {"x": (1, s, 16)})) for s in (8, 16))
    assert (small, large) == (512, 1024)


def test_what_cannot_be_known_is_said(tmp_path: Path, network: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no file of that kind")
    with pytest.raises(ArtifactError, match=r"bad\.onnx: no ONNX file"):
        onnx_graph.operators(tmp_path / "bad.onnx", {})
    with pytest.raises(ArtifactError, match="cannot be told from the input shapes"):
        onnx_graph.operators(network, {})


def test_channels_fill_vectors() -> None:
    image = contraction("conv", 100, 27, 8, reads=300, writes=800, channels=3)
    assert image.macs == 21600
    assert image.padded_macs(32) == 100 * 9 * 32 * 32
    assert image.padded_elements(4) == 300 / 3 * 4 + 800
    deep = contraction("depthwise", 100, 9, 1, groups=24, reads=2400, writes=2400, channels=1)
    assert deep.padded_macs(32) == 100 * 9 * 32


def test_the_roofline_by_hand() -> None:
    style = Style(1, 1e9, 2.0, {"float": (4, 4)}, {"base": 1.0, "n_product": 1.0, "m_linear": 1.0, "weights": 1.0})
    operators = [contraction("linear", 1000, 1000, 3000, reads=1e6, writes=3e6)]
    amounts = features(operators, style, "float")
    assert amounts == {"base": 1.0, "n_product": 1.0, "m_linear": 3.0, "weights": 12.0}
    # 0.5 + sqrt((0.1 + 3 * 0.3)^2 + (12 * 0.2)^2) = 0.5 + sqrt(1 + 5.76) = 3.1
    coefficients = {"base": 0.5, "n_product": 0.1, "m_linear": 0.3, "weights": 0.2}
    assert math.isclose(roofline.predict(amounts, coefficients, style), 3.1)
    with pytest.raises(KeyError):
        roofline.predict(amounts, {"base": 0.5}, style)


@pytest.mark.parametrize("name", sorted(STYLES))
def test_slopes_are_those_of_the_times(name: str) -> None:
    style, rng = STYLES[name], np.random.default_rng(0)
    amounts, logs = rng.uniform(0.1, 2, (3, len(style.terms))), rng.normal(0, 0.3, len(style.terms))
    _, slope = roofline.times(amounts, np.exp(logs), style)
    for place in range(len(logs)):
        step = np.zeros(len(logs))
        step[place] = 1e-6
        up, down = (roofline.times(amounts, np.exp(logs + s), style)[0] for s in (step, -step))
        np.testing.assert_allclose(slope[:, place], (up - down) / 2e-6, rtol=1e-5)  # central difference


def made_devices(models: int = 40) -> tuple[dict[str, fitting.Measured], Style]:
    """Devices whose times are a roofline's, 5 % of noise, one model in twenty wrong by a factor of five."""
    style, rng = STYLES["npu"], np.random.default_rng(1)
    amounts = np.exp(rng.normal(0, 1.5, (models, len(style.terms)))) * 0.3
    amounts[:, 0] = 1.0
    shared = rng.normal(0, 0.8, len(style.terms))  # how all of them differ from the first guess
    found = {}
    for device, speed in (("slow", 4.0), ("fast", 0.5), ("middle", 1.0)):
        truth = np.exp(fitting.guess(style) + shared + rng.normal(0, 0.3, len(style.terms))) * speed
        times = roofline.times(amounts, truth, style)[0] * np.exp(rng.normal(0, 0.05, models))
        times[::20] *= 5
        found[device] = fitting.Measured(amounts, times, [f"m{i}" for i in range(models)])
    return found, style


def test_a_fit_finds_what_made_the_data_and_wild_points_do_not_move_it() -> None:
    devices, style = made_devices()
    out = fitting.left_out(devices, style)
    for name, group in devices.items():
        error = np.abs(out[name] / group.measured - 1)
        assert np.median(error) < 0.12  # noise 5 %; 23 terms from 39 models
        assert np.all(error[::20] > 0.6)  # the wild ones are seen as such


def test_a_device_of_three_models_borrows_from_its_siblings() -> None:
    devices, style = made_devices()
    few = devices["slow"].keep(np.arange(40) % 13 == 1)
    alone = fitting.fit({"slow": few}, style).devices["slow"]
    together = fitting.fit({**devices, "slow": few}, style).devices["slow"]
    rest = devices["slow"].keep(np.arange(40) % 20 != 0)
    errors = [
        np.median(np.abs(roofline.times(rest.amounts, np.exp(t), style)[0] / rest.measured - 1))
        for t in (alone, together)
    ]
    assert errors[1] < 0.6 * errors[0]


def test_a_fit_that_knows_no_arithmetic_is_caught() -> None:
    """Broken on purpose: without the multiplications the left-out errors must show it."""
    devices, style = made_devices()
    blind = {k: fitting.Measured(v.amounts * [0 if t.startswith("m_") else 1 for t in style.terms], v.measured, v.names) for k, v in devices.items()}  # fmt: skip
    right, wrong = (
        fitting.left_out(group, style)["middle"] / devices["middle"].measured - 1 for group in (devices, blind)
    )
    assert np.median(np.abs(wrong)) > 2 * np.median(np.abs(right))


def test_ranks_share_ties() -> None:
    assert list(fitting.ranks(np.array([3.0, 1.0, 3.0]))) == [1.5, 0.0, 1.5]
    assert fitting.rank_correlation(np.array([1.0, 2, 3, 5]), np.array([2.0, 3, 9, 100])) == pytest.approx(1)


def job(path: Path, model: Any, tmp_path: Path, threads: int = 4) -> ProfileJob:
    feed = {"x": np.zeros((1, 3, 64, 64), dtype=np.float32)}
    return ProfileJob({"dense": path}, {"dense": [feed]}, {"dense": []}, {}, {}, threads, 1, 0, tmp_path, tmp_path / "log", latency_model=model)  # fmt: skip


def small(path: Path) -> Path:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])]
    return graph(path, nodes, {"x": [1, 3, "h", "w"]}, [weight("w", 64, 3, 3, 3)], "y")


@pytest.mark.parametrize("name", ["galaxy-s24-npu", "raspberry-pi-5"])
def test_the_runner_answers_with_its_error_and_device(name: str, tmp_path: Path) -> None:
    section = target.load(name).latency_model
    assert section is not None
    runner = registry.create("runner", "estimate", {}, "test")
    profile = runner.profile(job(small(tmp_path / "s.onnx"), section.model_dump(), tmp_path))["dense"]
    latency = profile.readings["latency_ms"]
    assert isinstance(latency, Reading)
    assert latency.source == "estimated"
    assert "left-out models" in latency.how
    assert section.device in latency.how
    assert latency.p10 is not None
    assert latency.p90 is not None
    assert latency.p10 < latency.value < latency.p90
    assert isinstance(profile.readings["energy_mj"], Missing)
    assert profile.facts["macs"] == 64 * 64 * 27 * 64
    assert profile.outputs is None


def test_no_model_is_no_number(tmp_path: Path) -> None:
    runner = registry.create("runner", "estimate", {}, "test")
    readings = runner.profile(job(small(tmp_path / "s.onnx"), None, tmp_path))["dense"].readings
    assert all(isinstance(readings[name], Missing) for name in ("latency_ms", "energy_mj", "throughput_per_s"))


def test_a_format_without_a_fit_is_no_number() -> None:
    fits = [{"quantity": "latency", "dtype": "float", "runtime": "onnx", "threads": 1, "median_error": 0.1}]
    assert isinstance(estimating.choose(fits, "latency", "w8a8", "onnx", 1), Missing)
    assert isinstance(estimating.choose(fits, "energy", "float", "onnx", 1), Missing)
    assert estimating.choose(fits, "latency", "float", "tflite", 1) == fits[0]


def test_integers_are_told_by_what_feeds_the_product() -> None:
    wide = [
        Operator("linear", 1, 1, rows=1, inner=8, columns=8, bits=16),
        Operator("conv", 1, 1, rows=1, inner=2, columns=2),
    ]
    assert estimating.numeric_format(wide) == "w8a16"
    assert estimating.numeric_format(wide[1:]) == "float"


def test_a_slice_of_the_published_tables_is_predicted(shared_data: Path) -> None:
    """Arm processors: five networks left out, median error at most 20 % and order kept (asked of the whole table)."""
    sys.path[:0] = [str(ROOT / "tools")]
    from calibration import judging, ncnn_param, sources, tables

    root = shared_data
    graphs = {
        p.stem: ncnn_param.operators(p)
        for p in sorted((root / "profiles-ncnn").glob("*.param"))
        if ".ncnn." not in p.name
    }
    assert round(total_macs(graphs["resnet18"]) / 1e9, 2) == 1.83  # torchvision's 1.81 and its classifier's pooling
    rows = [row for row in tables.ncnn(root / "profiles" / "ncnn_benchmark.csv", set(graphs)) if row.device.startswith("Raspberry Pi") and row.dtype == "float" and row.threads == 1]  # fmt: skip
    source = next(source for source in sources.SOURCES if source.name == "ncnn")
    judged = judging.judge(source, rows, graphs)
    assert len(judged) >= 4
    for item in judged:
        found = judging.summary(item.predicted, item.measured)
        assert found["median_error"] <= 0.20
        assert found["rank_correlation"] >= 0.95


def test_written_blocks_replace_and_stay(tmp_path: Path) -> None:
    sys.path[:0] = [str(ROOT / "tools")]
    from calibration import writing

    path = tmp_path / "t.yaml"
    path.write_text("name: t\nsources: []\n", encoding="utf-8")
    assert writing.write(path, "latency_model:\n  device: a\n")
    assert writing.write(path, "latency_model:\n  device: b\n")
    assert not writing.write(path, "latency_model:\n  device: b\n")
    assert path.read_text(encoding="utf-8") == "name: t\nsources: []\nlatency_model:\n  device: b\n"


def test_the_host_is_calibrated_and_asked(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty generated networks left out one by one, then a convolution that is none of them, in time of the thread."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    done = cli("targets", "calibrate", "host", "--networks", "40", "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)[0]
    assert row["networks"] == 40
    assert row["median_error"] < 0.4  # other people load the machine, 40 networks are few; 120 gave 0.07
    found = target.load("host")
    assert found.latency_model is not None
    runner = registry.create("runner", "estimate", {}, "test")
    latency = runner.profile(job(small(tmp_path / "s.onnx"), found.latency_model.model_dump(), tmp_path))["dense"].readings["latency_ms"]  # fmt: skip
    assert isinstance(latency, Reading)
    feed = {"x": np.zeros((1, 3, 64, 64), dtype=np.float32)}
    measured = host_calibration.measure({tmp_path / "s.onnx": feed}, rounds=3)[tmp_path / "s.onnx"]
    assert 0.3 < latency.value / measured < 3
    assert cli("targets", "calibrate", "raspberry-pi-5").returncode == 2


def test_generated_networks_are_the_same_each_time(tmp_path: Path) -> None:
    files = [host_nets.make(tmp_path / str(i), 8, seed=3) for i in (1, 2) if not (tmp_path / str(i)).mkdir()]
    first, second = ([path.read_bytes() for path in found] for found in files)
    assert first == second
    assert len({len(content) for content in first}) > 4


def test_an_npu_is_not_promised_what_it_does_not_run(tmp_path: Path) -> None:
    model = target.load("galaxy-s24-npu").latency_model
    assert model is not None
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["p"]),
        helper.make_node("Cast", ["p"], ["y"], to=1),
    ]
    path = graph(tmp_path / "d.onnx", nodes, {"x": ["n", 64]}, [weight("w", 64, 64, dtype=np.int8)], "y")
    found = estimating.estimate(path, {"x": (8, 64)}, model.model_dump())
    assert isinstance(found.latency, Missing)
    assert "static QDQ" in found.latency.reason


def test_shapes_that_only_a_run_tells(tmp_path: Path) -> None:
    """A reshape to a shape computed from the input's size, which ONNX's inference may not follow."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("NonZero", ["s"], ["places"]),
        helper.make_node("Gather", ["s", "places"], ["found"]),
        helper.make_node("Reshape", ["found", "flat"], ["shape"]),
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    flat = numpy_helper.from_array(np.array([-1], dtype=np.int64), "flat")
    path = graph(tmp_path / "r.onnx", nodes, {"x": ["n", "s", 16]}, [weight("w", 16, 4), flat], "y")
    assert total_macs(onnx_graph.operators(path, {"x": (1, 8, 16)})) == 8 * 16 * 4
