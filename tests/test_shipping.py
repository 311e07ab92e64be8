"""Packed files: bit for bit the same, small where zeros are, and no harm from a hostile one."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import zstandard
from conftest import Cli
from onnx import TensorProto, helper
from tiny_graphs import save

from edgeredux.errors import ArtifactError, BundleError, StorageError
from edgeredux.shipping import codes, packed
from edgeredux.shipping.regions import regions

Array = np.ndarray[Any, Any]
FLOAT = TensorProto.FLOAT


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(9)


def sparse(rng: np.random.Generator, zeros: float, size: int, kind: str = "float32") -> Array:
    values = rng.normal(size=size) * (30 if kind == "int8" else 1)
    values[rng.random(size) < zeros] = 0
    return np.rint(values).astype(kind) if kind == "int8" else values.astype(kind)


def model(path: Path, rng: np.random.Generator, zeros: float, kind: str = "float32") -> Path:
    w = sparse(rng, zeros, 200 * 300, kind).reshape(200, 300)
    nodes = [helper.make_node("Cast", ["w"], ["f"], to=FLOAT), helper.make_node("MatMul", ["x", "f"], ["y"])]
    return save(path, nodes, {"x": (FLOAT, ["n", 200])}, {"y": (FLOAT, ["n", 300])}, {"w": w, "w2": w.copy()})


EDGES = [b"", b"\0", b"\0" * 5000, bytes(range(256)) * 7, b"\xff" * 3001, np.full(999, -0.0, np.float32).tobytes()]


@pytest.mark.parametrize("item", codes.ITEMS)
@pytest.mark.parametrize("code", codes.CODES)
def test_every_code_is_exact(rng: np.random.Generator, item: int, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        codes, "min", lambda made, key: next((c for c in made if c.code == code), made[0]), raising=False
    )
    runs = [sparse(rng, zeros, 4000, "float32").tobytes() for zeros in (0.0, 0.3, 0.9, 0.999, 1.0)]
    used = set()
    for data in [*EDGES, *runs, sparse(rng, 0.8, 9000, "int8").tobytes() + b"\x01"]:
        coded = codes.encode(data, item)
        used.add(coded.code)
        assert codes.decode(coded) == data
    assert code in used or (code == "planes" and item == 1)


def test_gaps_are_counted_over_long_runs() -> None:
    for places in ([0], [254], [255], [256], [510, 511], [0, 1, 2000], [7999]):
        other = np.zeros(8000, np.bool_)
        other[places] = True
        np.testing.assert_array_equal(codes._from_gaps(codes._gaps(other), 8000), other)
    assert codes._gaps(np.arange(600) == 520).tolist() == [255, 255, 10]


@pytest.mark.parametrize(("kind", "item"), [("float32", 4), ("float16", 2), ("int8", 1)])
@pytest.mark.parametrize("zeros", [0.5, 0.75, 0.9])
def test_zeros_cost_little_and_no_more_than_zstd(rng: np.random.Generator, kind: str, item: int, zeros: float) -> None:
    data = sparse(rng, zeros, 60_000, kind).tobytes()
    coded = codes.encode(data, item)
    dense = len(zstandard.ZstdCompressor(level=codes.LEVEL).compress(data))
    assert coded.packed <= dense
    if item > 1:
        assert coded.packed < 0.95 * dense
        # Entropy of where the numbers are, and the numbers themselves at most as they stand.
        where = -zeros * np.log2(zeros) - (1 - zeros) * np.log2(1 - zeros)
        assert coded.packed < 60_000 * (where / 8 * 1.15 + (1 - zeros) * item) + 200


def test_a_zero_point_that_is_not_zero(rng: np.random.Generator) -> None:
    data = np.where(rng.random(50_000) < 0.95, 128, rng.integers(0, 256, 50_000)).astype(np.uint8).tobytes()
    coded = codes.encode(data, 1)
    assert (coded.code in ("mask", "index"), coded.fill) == (True, 128)
    assert codes.decode(coded) == data


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    source = model(tmp_path / "m.onnx", rng, 0.8, kind)
    told = packed.pack(source, tmp_path / "m.erpack")
    assert told["plain_bytes"] == source.stat().st_size
    assert told["packed_bytes"] == (tmp_path / "m.erpack").stat().st_size <= told["zstd_bytes"] + 400
    assert packed.is_packed(tmp_path / "m.erpack")
    assert not packed.is_packed(source)
    assert packed.unpack(tmp_path / "m.erpack", tmp_path / "out") == {"files": 1, "bytes": source.stat().st_size}
    assert (tmp_path / "out" / "m.onnx").read_bytes() == source.read_bytes()
    packed.pack(source, tmp_path / "again.erpack")
    assert (tmp_path / "again.erpack").read_bytes() == (tmp_path / "m.erpack").read_bytes()


def test_weights_are_found_with_their_width(tmp_path: Path, rng: np.random.Generator) -> None:
    source = model(tmp_path / "m.onnx", rng, 0.5, "float16")
    data = source.read_bytes()
    found = regions(source, data)
    assert [length for _, length, item in found if item == 2] == [120_000, 120_000]
    assert sum(length for _, length, _ in found) == len(data)
    assert [start for start, _, _ in found] == [sum(length for _, length, _ in found[:i]) for i in range(len(found))]


def test_external_weights_travel_along(tmp_path: Path, rng: np.random.Generator) -> None:
    proto = onnx.load(model(tmp_path / "in.onnx", rng, 0.9))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    told = packed.pack(tmp_path / "m.onnx", tmp_path / "m.erpack")
    assert told["files"] == 2
    assert told["codes"].get("mask", 0) + told["codes"].get("index", 0) == 200 * 300 * 4
    assert told["codes"]["repeat"] == 200 * 300 * 4
    packed.unpack(tmp_path / "m.erpack", tmp_path / "out")
    for name in ("m.onnx", "m.onnx.data"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_tflite_file(tmp_path: Path, shared_data: Path) -> None:
    source = next(
        path for path in sorted((shared_data / "model-mlperf-tiny").rglob("*.tflite")) if "float" in path.name
    )
    found = regions(source, source.read_bytes())
    assert sum(length for _, length, item in found if item == 4) > 0.5 * source.stat().st_size
    packed.pack(source, tmp_path / "m.erpack")
    packed.unpack(tmp_path / "m.erpack", tmp_path / "out")
    assert (tmp_path / "out" / source.name).read_bytes() == source.read_bytes()


def test_a_folder_keeps_its_names_and_stores_equal_files_once(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = tmp_path / "bundle"
    (folder / "reduced").mkdir(parents=True)
    model(folder / "model.onnx", rng, 0.7)
    (folder / "reduced" / "onnx-float.onnx").write_bytes((folder / "model.onnx").read_bytes())
    (folder / "empty").write_bytes(b"")
    (folder / "manifest.json").write_text('{"a": "é"}')
    told = packed.pack(folder, tmp_path / "b.erpack")
    assert told["files"] == 4
    once = packed.pack(folder / "model.onnx", tmp_path / "m.erpack")
    assert told["packed_bytes"] < once["packed_bytes"] + 1000
    packed.unpack(tmp_path / "b.erpack", tmp_path / "out")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()
    )
    assert all((tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.erpack", "bundle", "m.erpack", "out"]


def rewritten(path: Path, change: Any) -> Path:
    """The packed file with another header."""
    data = path.read_bytes()
    start = len(packed._MAGIC) + 4
    (length,) = struct.unpack("<I", data[start - 4 : start])
    header = json.loads(data[start : start + length])
    change(header["files"])
    made = json.dumps(header).encode()
    out = path.with_name("hostile.erpack")
    out.write_bytes(packed._MAGIC + struct.pack("<I", len(made)) + made + data[start + length :])
    return out


def part(field: int, value: Any) -> Any:
    return lambda files: files[0]["parts"][1].__setitem__(field, value)


HOSTILE = {
    "up": lambda files: files[0].update(path="../m.onnx"),
    "absolute": lambda files: files[0].update(path="/tmp/m.onnx"),
    "dot": lambda files: files[0].update(path="a/./b"),
    "backslash": lambda files: files[0].update(path="..\\m.onnx"),
    "nul": lambda files: files[0].update(path="m\0.onnx"),
    "no name": lambda files: files[0].update(path=""),
    "number": lambda files: files[0].update(path=3),
    "twice": lambda files: files.append({**files[0], "path": "M.onnx", "parts": []}),
    "itself": lambda files: files.append(
        {k: v for k, v in {**files[0], "path": "b", "same_as": 1}.items() if k != "parts"}
    ),
    "other": lambda files: files.append({"path": "b", "size_bytes": 0, "sha256": "0" * 64, "same_as": 0}),
    "negative": lambda files: files[0].update(size_bytes=-1),
    "huge": lambda files: files[0].update(size_bytes=1 << 60),
    "bool": lambda files: files[0].update(size_bytes=True),
    "hash": lambda files: files[0].update(sha256="0" * 64),
    "no hash": lambda files: files[0].update(sha256="x"),
    "no parts": lambda files: files[0].update(parts=[]),
    "code": part(0, "pickle"),
    "item": part(2, 3),
    "fill": part(3, 900),
    "big part": part(1, 1 << 40),
    "stream": part(5, [1 << 40, 1 << 40]),
    "streams": part(5, [1]),
    "frames": part(4, []),
    "float": part(4, [1.5, 2.5]),
    "repeat": lambda files: files[0]["parts"].__setitem__(1, ["repeat", files[0]["parts"][1][1], 1, 0, [], [100_000]]),
    "nothing": lambda files: files.clear(),
    "text": lambda files: files.__setitem__(0, "file"),
}


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_hostile_headers_write_nothing(tmp_path: Path, rng: np.random.Generator, case: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    packed.pack(model(folder / "m.onnx", rng, 0.9), folder / "m.erpack")
    bad = rewritten(folder / "m.erpack", HOSTILE[case])
    with pytest.raises(BundleError) as caught:
        packed.unpack(bad, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_bombs_are_refused_before_they_are_read(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "zeros").mkdir()
    (tmp_path / "zeros" / "a").write_bytes(b"\0" * 50_000_000)
    told = packed.pack(tmp_path / "zeros", tmp_path / "z.erpack")
    assert told["packed_bytes"] < 10_000
    with pytest.raises(BundleError, match="would expand to 50000000 bytes, allowed are 1000"):
        packed.unpack(tmp_path / "z.erpack", tmp_path / "out", limit_bytes=1000)
    bomb = zstandard.ZstdCompressor().compress(b"\0" * 100_000_000)
    lies = codes.Coded("plain", 100, 1, 0, (bomb,), (100,))  # says 100 bytes, the frame holds a million times as many
    with pytest.raises(BundleError, match="another length"):
        codes.decode(lies)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * 1000)
    with pytest.raises(BundleError, match="another length"):
        codes.decode(codes.Coded("plain", 1000, 1, 0, (unsized,), (1000,)))
    wide = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=29, write_content_size=True, enable_ldm=True)
    )
    stream = wide.compressobj(size=1 << 29)  # a window that the reader would have to hold
    frame = stream.compress(b"\0" * 100) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    with pytest.raises(BundleError, match="damaged"):
        codes.decode(codes.Coded("plain", 1 << 29, 1, 0, (frame,), (1 << 29,)))


@pytest.mark.parametrize("damage", ["cut", "more", "junk", "empty", "flip", "header"])
def test_damage_is_one_line(tmp_path: Path, rng: np.random.Generator, damage: str) -> None:
    packed.pack(model(tmp_path / "m.onnx", rng, 0.9), tmp_path / "m.erpack")
    data = bytearray((tmp_path / "m.erpack").read_bytes())
    if damage == "flip":
        data[-2000] ^= 255
    made = {"cut": data[:-10], "more": data + b"x", "junk": b"PK" + data[2:], "empty": b"", "header": data[:40]}
    (tmp_path / "bad.erpack").write_bytes(made.get(damage, data))
    with pytest.raises(BundleError) as caught:
        packed.unpack(tmp_path / "bad.erpack", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path, rng: np.random.Generator) -> None:
    source = model(tmp_path / "m.onnx", rng, 0.9)
    packed.pack(source, tmp_path / "m.erpack")
    with pytest.raises(StorageError, match="already"):
        packed.pack(source, tmp_path / "m.erpack")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(BundleError, match="not empty"):
        packed.unpack(tmp_path / "m.erpack", tmp_path / "full")
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 2000)
    with pytest.raises(ArtifactError, match="no readable ONNX"):
        packed.pack(tmp_path / "bad.onnx", tmp_path / "bad.erpack")
    with pytest.raises(BundleError, match="no such file"):
        packed.pack(tmp_path / "none", tmp_path / "bad.erpack")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "l").symlink_to(source)
    with pytest.raises(BundleError, match="is a link"):
        packed.pack(tmp_path / "links", tmp_path / "bad.erpack")
    assert not (tmp_path / "bad.erpack").exists()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".edgeredux")]


def test_from_the_command_line(cli: Cli, tmp_path: Path, rng: np.random.Generator) -> None:
    source = model(tmp_path / "m.onnx", rng, 0.9)
    done = cli("pack", "m.onnx", "m.erpack", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["packed_bytes"] < 0.3 * source.stat().st_size
    done = cli("unpack", "m.erpack", "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "m.onnx").read_bytes() == source.read_bytes()
    done = cli("unpack", "m.onnx", "other")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "edgeredux pack writes one" in done.stderr
