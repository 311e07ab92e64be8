"""The page for people: everything in it, nothing from outside, hostile names harmless, legible in light and dark."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_samples import SAMPLES, artifact, cosine, failing, missing_heavy, passing

from edgeredux import charts
from edgeredux.readings import Missing, Reading
from edgeredux.report import METRICS, Check, Report
from edgeredux.report_html import headline, render, tiles
from edgeredux.report_target import view
from edgeredux.report_words import limit, margin, show_bytes, show_fact, spread

VOID = {"meta", "br", "path", "circle", "rect", "line", "polyline", "link", "img", "input"}
CSS = (Path(charts.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")


class Page(HTMLParser):
    """The page's text, tags and attributes; fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> inside <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All visible text, white space folded."""
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module", params=list(SAMPLES))
def report(request: pytest.FixtureRequest) -> Report:
    """Each sample in turn."""
    return SAMPLES[request.param]()


def test_the_page_is_well_formed_and_links_inside_it_lead_somewhere(report: Report) -> None:
    page = Page(render(report))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = [str(a["href"])[1:] for tag, a in page.tags if tag == "a" and str(a["href"]).startswith("#")]
    assert anchors
    assert set(anchors) <= set(ids)
    labels = [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
    assert set(labels) <= set(ids)


def test_nothing_is_loaded_and_nothing_can_run(report: Report) -> None:
    html = render(report)
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "form", "base", "video", "audio"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "xlink:href")], (
            tag
        )
        href = str(attributes.get("href", "#"))
        assert href.startswith(("#", "https://", "http://")), href
    assert not re.search(r"url\(|@import|expression\(", html)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_names_from_strangers_stay_text() -> None:
    html = render(missing_heavy())
    evil = '<script>alert(1)</script>"onload="x'
    assert "<script" not in html
    assert 'onload="x' not in html.replace("&#34;onload=&#34;x", "")
    assert Page(html).text.count(evil) > 10


def test_an_address_that_is_none_of_the_web_is_no_link() -> None:
    page = Page(render(missing_heavy()))
    assert "javascript:alert(1)" in page.text
    assert not [a for tag, a in page.tags if tag == "a" and "javascript" in str(a.get("href"))]
    assert [a for tag, a in Page(render(passing())).tags if "developer.arm.com" in str(a.get("href"))]


def test_verdict_first(report: Report) -> None:
    page = Page(render(report))
    word = "PASS" if report.passed else "FAIL"
    assert word in page.text[:200]
    assert page.text.index(word) < page.text.index("Dense beside reduced")
    for line in report.failures():
        assert page.text.index(" ".join(line.split())) < page.text.index("Dense beside reduced")


def test_every_number_has_its_source_beside_it_and_every_absence_its_reason(report: Report) -> None:
    page = Page(render(report))
    for target in report.targets:
        sections = page.text.split("Every reading, dense beside reduced")
        assert len(sections) == len(report.targets) + 1
        for profile in (target.dense, target.reduced):
            assert set(METRICS) <= profile.keys()
            for value in profile.values():
                if isinstance(value, Missing):
                    assert value.reason in page.text
                else:
                    assert value.how in page.text
    badges = [a["class"] for tag, a in page.tags if tag == "span" and str(a.get("class", "")).startswith("badge")]
    assert badges
    assert {str(c).split()[1] for c in badges} <= {"measured", "simulated", "estimated", "replayed", "missing", "noisy"}


def test_hashes_commands_and_recipe_are_there(report: Report) -> None:
    page = Page(render(report))
    for item in report.artifacts:
        assert item.sha256 in page.text
    assert report.model["sha256"] in page.text
    assert report.recipe["sha256"] in page.text
    assert "edgeredux run recipe.yaml" in page.text
    assert "edgeredux: 1" in page.text


def test_only_the_judged_targets_are_reproduced() -> None:
    assert "--target ethos-u55-128 --out" in render(missing_heavy())
    assert "--target" not in render(passing())


def test_tables_have_captions_and_headings_go_down_one_by_one(report: Report) -> None:
    page = Page(render(report))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") - (1 if view(report.targets[0])["layers"] else 0) <= tags.count("caption")
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true"


def test_a_page_drawn_from_report_json_is_the_same_page(report: Report) -> None:
    again = Report.from_json(json.loads(json.dumps(report.to_json())))
    assert render(again) == render(report)


def test_the_same_page_in_processes_with_other_hash_seeds() -> None:
    program = "import hashlib, report_samples as s; from edgeredux.report_html import render; print(hashlib.sha256(render(s.passing()).encode()).hexdigest())"
    found = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)}
        found.add(
            subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True).stdout
        )
    assert len(found) == 1


def test_the_page_stays_light_whatever_the_number_of_samples_and_layers() -> None:
    report = passing()
    many = replace(
        report.targets[2],
        latency_samples={"dense": [1 + i % 7 / 10 for i in range(20_000)], "reduced": [0.5] * 20_000},
        layers={"reduced": [{"operator": "CONV_2D", "cycles": float(i), "name": "x" * 200} for i in range(5000)]},
    )
    assert len(render(replace(report, targets=(*report.targets, many))).encode()) < 1_000_000


def test_a_report_of_nothing_renders() -> None:
    bare = Report("profiled", {"name": "m", "source": "m", "sha256": "0" * 64, "task": "generic"}, {"name": "r", "sha256": "0" * 64}, (), (), (), {}, {}, {})  # fmt: skip
    page = Page(render(bare))
    assert "FAIL Nothing was judged." in page.text
    assert "no target was profiled" in page.text


def test_bytes_that_are_no_text_do_not_break_the_page() -> None:
    report = replace(passing(), warnings=("file \udcff.txt",))
    assert "file ?.txt" in render(report).encode("utf-8").decode("utf-8")


def test_headline_counts() -> None:
    assert headline(passing()) == "All 10 checks passed."
    assert headline(failing()) == "3 of 4 checks missed."
    broken = replace(failing(), artifacts=(artifact("onnx-int8", "reduced", "onnx", 1, [], passed=False),))
    assert headline(broken) == "3 of 4 checks missed and 2 other failures."
    one = passing()
    one = replace(one, targets=(replace(one.targets[0], checks=one.targets[0].checks[:1]),))
    assert headline(one) == "The one check passed."


@pytest.mark.parametrize(
    ("ratio", "said"),
    [(0.25, "4.0× faster"), (0.8, "1.25× faster"), (1.001, "as dense"), (1.5, "1.50× slower"), (3.0, "3.0× slower")],
)
def test_tiles_say_faster_or_slower(ratio: float, said: str) -> None:
    report = passing()
    ratios = {"latency_ratio": Reading(ratio, "x", "measured")}
    report = replace(report, targets=(replace(report.targets[0], ratios=ratios),))
    assert tiles(report)[0].big == said


def test_tiles_of_the_unknown_say_why() -> None:
    found = tiles(missing_heavy())
    assert [tile.big for tile in found] == ["not known", "as dense", "not known"]
    assert found[0].small.startswith("none of 12 operators")


def test_noise_is_told_from_damage() -> None:
    text = Page(render(passing())).text
    assert "Beyond that noise: host-cpu (by 0.043), host-cpu:litert (by 0.045), ethos-u85-512 (by 0.061)" in text
    report = passing()
    noise = {"quality": cosine(0.957, 0.01, "dense against itself")}
    text = Page(render(replace(report, repeatability=noise))).text
    assert (
        "Beyond that noise: ethos-u85-512 (by 0.018). Not to be told from it: host-cpu, host-cpu:litert, snap" in text
    )
    without = Page(render(replace(report, repeatability={}))).text
    assert "The dense model's own noise is not known here." in without


def test_a_rolled_back_pass_is_marked_where_it_happened() -> None:
    assert "tile_sparse rolled back" in Page(render(failing())).text


def test_fallbacks_are_named_by_kind() -> None:
    found = view(missing_heavy().targets[0])["fallbacks"]
    assert [(kind, count) for kind, count, _ in found] == [
        ("CONV_2D", 8), ("ADD", 1), ("MEAN", 1), ("RESHAPE", 1), ("SOFTMAX", 1)
    ]  # fmt: skip
    counted = replace(missing_heavy().targets[0], fallbacks={"reduced": ["CAST x3", "ADD x1", "CAST late"]})
    assert view(counted)["fallbacks"] == [("CAST", 4, ["late"]), ("ADD", 1, [])]
    text = Page(render(passing())).text
    assert "GATHER × 2" in text
    assert "bert/embeddings/position_embeddings" in text


def test_the_cpu_beside_an_accelerator_has_the_warning_colour() -> None:
    def kinds(**placement: int) -> dict[str, str]:
        target = replace(passing().targets[0], placement={"dense": {}, "reduced": placement})
        return {part["name"]: part["kind"] for part in view(target)["placement"][0]["parts"]}

    assert kinds(CPU=900, NPU=3) == {"NPU": "part0", "CPU": "part1"}
    assert kinds(CPUExecutionProvider=3) == {"CPUExecutionProvider": "part0"}
    assert kinds(XNNPACK=348, builtin=8) == {"XNNPACK": "part0", "builtin": "part1"}
    assert kinds(CPU=1, NPU=5, GPU=2) == {"NPU": "part0", "GPU": "part2", "CPU": "part1"}


def test_layers_come_costliest_first_with_their_share() -> None:
    table = view(passing().targets[2])["layers"]
    shares = [float(line["share"].removesuffix(" %")) for line in table["lines"]]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == 12
    assert table["all"] == 31
    cycles = [float(row["cycles"]) for row in passing().targets[2].layers["reduced"]]
    top = sum(sorted(cycles, reverse=True)[:12]) / sum(cycles)
    assert table["covered"] == f"{100 * top:.0f} %"


def test_bytes_by_memory_are_drawn_and_empty_memories_left_out() -> None:
    drawn = {part["title"]: part for part in view(passing().targets[2])["drawn"]}
    moved = drawn["Bytes moved per inference"]
    assert [row["name"] for row in moved["rows"]] == ["dram", "sram"]
    assert [(side, text) for side, _, text in moved["rows"][0]["pairs"]] == [("dense", "23.40 MB"), ("reduced", "18.02 MB")]  # fmt: skip


def test_a_clipped_axis_says_how_many_runs_it_hides() -> None:
    report = passing()
    samples = {"dense": [10.0] * 39 + [500.0], "reduced": [5.0] * 40}
    page = Page(render(replace(report, targets=(replace(report.targets[0], latency_samples=samples),))))
    assert "1 dense run lies beyond the right edge." in page.text
    assert page.text.count("beyond the right edge") == 1


def luminance(colour: str) -> float:
    """WCAG 2.2 relative luminance of #rgb or #rrggbb."""
    digits = colour.lstrip("#")
    digits = "".join(2 * c for c in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """WCAG 2.2 contrast ratio."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_contrast(mode: int) -> None:
    blocks = [dict(re.findall(r"--(\w+):(#[0-9a-f]+)", block)) for block in re.findall(r":root\{([^}]*)\}", CSS)]
    colours = blocks[mode]
    assert len(blocks) == 2
    for ground in ("bg", "card", "track", "goodbg", "badbg"):
        assert contrast(colours["ink"], colours[ground]) >= 7, ground
    words = ("soft", "good", "bad", "measured", "simulated", "estimated", "replayed", "missing", "noise")
    for word in words:
        for ground in ("bg", "card"):
            assert contrast(colours[word], colours[ground]) >= 4.5, (word, ground)
    assert contrast(colours["good"], colours["goodbg"]) >= 4.5
    assert contrast(colours["bad"], colours["badbg"]) >= 4.5
    assert contrast(colours["soft"], colours["goodbg"]) >= 4.5
    assert contrast(colours["soft"], colours["track"]) >= 4.5
    for shape in ("dense", "reduced", "noise", "simulated", "bad"):
        assert contrast(colours[shape], colours["card"]) >= 3, shape


def numbers(svg: str, tag: str, attribute: str) -> list[float]:
    """The values of an attribute, per cent signs dropped."""
    return [float(v) for v in re.findall(rf'<{tag}[^>]* {attribute}="([\d.]+)%?"', svg)]


def test_bars_are_as_long_as_their_value() -> None:
    assert numbers(charts.bar(3.0, 12.0, "reduced"), "rect", "width") == [100, 25]
    assert numbers(charts.bar(15.0, 12.0, "reduced"), "rect", "width") == [100, 100]
    assert numbers(charts.bar(0.0, 12.0, "reduced"), "rect", "width") == [100, 0]
    assert numbers(charts.bar(0.001, 12.0, "reduced"), "rect", "width") == [100, 0.5]


def test_an_interval_lies_where_its_numbers_are() -> None:
    svg = charts.interval(0.5, 0.25, 0.75, (0.0, 1.0), "reduced", band=(0.9, 1.0), limit=0.4)
    assert numbers(svg, "circle", "cx") == [50]
    assert 'class="whisker reduced" x1="25.00%" x2="75.00%"' in svg
    assert 'class="band" x="90.00%" width="10.00%"' in svg
    assert 'class="limit" x1="40.00%"' in svg
    assert "limit" not in charts.interval(0.5, None, None, (0.0, 1.0), "reduced", limit=2.0)


def test_a_histogram_counts_every_sample_on_its_scale() -> None:
    svg = charts.histogram([1.0] * 9 + [2.0] * 3, (0.0, 4.0), "dense")
    columns = [(h - 6) / 30 for h in numbers(svg, "rect", "height")[1:]]
    assert columns == pytest.approx([1.0, 1 / 3])
    assert numbers(svg, "rect", "x")[1:] == pytest.approx([25, 50], abs=0.8)


def test_parts_fill_the_whole() -> None:
    svg = charts.shares([(228.0, "part0"), (12.0, "part1"), (0.0, "part2")])
    assert numbers(svg, "rect", "width") == [95, 5]
    assert numbers(svg, "rect", "x") == [0, 95]


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0.0, 12.0, [0, 5, 10]),
        (0.93, 1.0, [0.94, 0.96, 0.98, 1.0]),
        (0.0, 1e-6, [0, 2e-7, 4e-7, 6e-7, 8e-7, 1e-6]),
        (5.0, 5.0, [5.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, found: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(found)


def test_class_names_are_escaped() -> None:
    assert "<b>" not in charts.bar(1, 1, '"><b>')


def test_words() -> None:
    half = cosine(0.9573, 0.0021, "")
    assert spread(half) == "95 % 0.9552\u00a0– 0.9594, n\u00a0=\u00a0256"
    timed = replace(half, low=None, high=None, unit="ms", p10=1.0, p90=2.0)
    assert spread(timed) == "p10–p90 1.00\u00a0– 2.00, n\u00a0=\u00a0256"
    assert spread(Reading(1.0, "MB", "measured")) == ""
    assert show_bytes(999) == "999 B"
    assert show_bytes(18_240_771) == "18.24 MB"
    assert show_fact({"a": 1, "b": [1.5, None, True]}) == "a 1, b 1.5, not known, yes"
    assert margin(Check("latency_ratio", 0.4, "at_most", Reading(0.3, "x", "measured"))) == "25.0 % below"
    assert margin(Check("fallbacks", 0, "at_most", Reading(3, "operators", "measured"))) == ""
    assert limit(Check("energy_mj", 250, "at_most", Missing("no meter"))) == "≤ 250 mJ"
    assert limit(Check("quality", 0.93, "at_least", Missing("no data"))) == "≥ 0.93"


def test_a_different_source_on_each_side_is_shown() -> None:
    target: Any = passing().targets[0]
    dense = {**target.dense, "latency_ms": Reading(9.0, "ms", "replayed")}
    row = next(row for row in view(replace(target, dense=dense))["rows"] if row["metric"] == "latency_ms")
    assert row["sources"] == ["measured", "replayed"]
