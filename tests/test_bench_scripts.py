"""The benchmark scripts' own arithmetic, and the bare engine that every ratio is taken of."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from naiad.bench.figures import summarize
from naiad.bench.results import StreamResult
from naiad.testing.exact_models import FIRST_CHARACTER, exact_model
from patience import PATIENCE_S

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ENGINE = {
    "threads": 1,
    "flash_attention": False,
    "kv_type": "f16",
    "kv_unified": True,
    "n_ubatch": 256,
    "gpu_layers": 0,
}


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import each other by their bare names."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def script(name: str) -> ModuleType:
    return import_module(name)


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("p*.py")), ids=lambda path: path.stem)
def test_every_benchmark_starts_from_its_main_and_says_what_it_measures(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bars = path.stem.upper().split("_")
    said = (ast.get_docstring(tree) or "").splitlines()[0]
    assert all(bar in said for bar in bars if bar[1:].isdigit())
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("value", "at_least", "verdict"),
    [
        (1.0, False, "aim"),
        (2.0, False, "aim"),
        (2.1, False, "holds"),
        (5.0, False, "holds"),
        (5.1, False, "FALLS SHORT"),
        (5.0, True, "holds"),
        (4.9, True, "FALLS SHORT"),
    ],
)
def test_a_figure_is_held_against_its_bar(value: float, at_least: bool, verdict: str) -> None:
    aim = 9.0 if at_least else 2.0
    assert script("common").Figure("x", value, "", 5, aim, at_least).verdict == verdict


def test_a_figure_without_a_bar_has_no_verdict() -> None:
    figure = script("common").Figure("step", 5.8, "ms")
    assert (figure.verdict, str(figure).strip()) == ("", "step: 5.800 ms")


def test_falling_short_fails_the_script_and_is_written_down(tmp_path: Path) -> None:
    common = script("common")
    out = tmp_path / "figures.json"
    good, bad = (common.Figure("x", value, "", 5, 2) for value in (1, 6))
    assert common.conclude([good], Namespace(json=None, quick=False)) == 0
    assert common.conclude([good, bad], Namespace(json=out, quick=False), "a remark") == 1
    written = json.loads(out.read_text())
    assert [row["verdict"] for row in written["figures"]] == ["aim", "FALLS SHORT"]
    assert written["remarks"] == ["a remark"]


def test_a_quick_run_judges_nothing(tmp_path: Path) -> None:
    common = script("common")
    out = tmp_path / "figures.json"
    bad = common.Figure("x", 6, "", 5, 2)
    assert common.conclude([bad], Namespace(json=out, quick=True)) == 0
    written = json.loads(out.read_text())
    assert [row["verdict"] for row in written["figures"]] == [""]
    assert written["remarks"] == ["tiny sizes: these figures mean nothing"]


@pytest.mark.parametrize(
    ("typed", "rounds"), [([], 5), (["--quick"], 1), (["--quick", "--rounds", "3"], 3)]
)
def test_quick_changes_defaults_and_nothing_that_is_typed(
    typed: list[str], rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = script("common")
    parser = common.options("Measure. More.")
    parser.add_argument("--rounds", type=int, default=5)
    monkeypatch.setattr(sys, "argv", ["p0", *typed])
    assert common.parse(parser, rounds=1).rounds == rounds


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("p[0-9]*.py")), ids=lambda path: path.stem)
def test_every_benchmark_has_a_quick_way_through(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "options(__doc__)" in text
    assert "parse(" in text
    assert "conclude(" in text


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({}, {"--fa": "0", "--kv": "f16", "--n-ubatch": "256", "--threads": "1"}),
        ({"flash_attention": True, "kv_type": "q8_0"}, {"--fa": "1", "--kv": "q8_0"}),
    ],
)
def test_the_bare_engine_gets_the_servers_settings(
    change: dict[str, Any], flags: dict[str, str]
) -> None:
    got = script("common").engine_flags(ENGINE | change)
    assert {name: got[got.index(name) + 1] for name in flags} == flags
    assert not {"--split-kv", "--no-extra-buffers"} & set(got)


def test_switches_are_passed_only_when_they_are_on() -> None:
    got = script("common").engine_flags(ENGINE | {"kv_unified": False, "extra_buffers": False})
    assert got[-2:] == ["--split-kv", "--no-extra-buffers"]


def test_the_bare_engine_understands_every_flag_it_gets() -> None:
    pytest.importorskip("llama_cpp")
    flags = script("common").engine_flags(ENGINE | {"kv_unified": False})
    args = script("engine_loop").parser().parse_args(["m.gguf", *flags])
    assert (args.split_kv, args.n_ubatch, args.no_extra_buffers) == (True, 256, False)


def test_failed_streams_end_a_benchmark() -> None:
    common = script("common")
    failed = StreamResult(0.0, 1.0, error="died")
    with pytest.raises(SystemExit, match="a stream failed: died"):
        common.ttft_ms(failed)
    with pytest.raises(SystemExit, match="1 failed, 0 wrong"):
        common.must_be_right(summarize("x", [failed]))


def test_lateness_is_measured_from_the_streams_own_schedule() -> None:
    late = script("p13_front").lateness
    on_time = StreamResult(0.0, 1.0, (1.0, 1.1, 1.2), (" a", " b", " c"), 3)
    assert late(on_time, 10.0) == pytest.approx([0.0, 0.0, 0.0])
    slow = StreamResult(0.0, 1.0, (1.0, 1.15, 1.2), (" a", " b", " c"), 3)
    assert late(slow, 10.0) == pytest.approx([0.0, 0.05, 0.0])


def test_a_merged_event_is_as_late_as_its_first_word() -> None:
    late = script("p13_front").lateness
    merged = StreamResult(0.0, 1.0, (1.0, 1.3, 1.4), (" a", " b c d", " e"), 5)
    assert late(merged, 10.0) == pytest.approx([0.0, 0.2, 0.0])


def test_benchmarks_are_found_in_the_order_of_their_numbers() -> None:
    scripts = script("run").scripts
    numbers = [int(p.stem.split("_")[0][1:]) for p in scripts([])]
    assert numbers == sorted(numbers)
    assert {1, 3, 5, 6, 8, 10, 11, 13, 14, 15, 16, 17} <= set(numbers)
    assert [p.stem for p in scripts(["p16", "p3_"])] == ["p3_p4_throughput", "p16_idle"]
    assert scripts(["p99"]) == []


@pytest.mark.engine
def test_the_bare_engine_decodes_each_stream_after_its_own_prompt(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    loop = script("engine_loop")
    model = str(exact_model("watermark", tmp_path))
    args = loop.parser().parse_args([model, "--threads", "1", "--n-ctx", "4096", "--seqs", "4"])
    engine = loop.Engine(args)
    prompts: list[Any] = []
    draw = engine.prompt

    def remember(n: int) -> Any:
        prompts.append(draw(n).clip(FIRST_CHARACTER))
        return prompts[-1]

    engine.prompt = remember
    first = loop.prefill_all(engine, 4, 700)
    assert first == [int(prompt[-1]) + 1 for prompt in prompts]


@pytest.mark.engine
def test_the_bare_engines_streams_read_the_prefix_they_share(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    loop = script("engine_loop")
    model = str(exact_model("lookback", tmp_path))
    args = loop.parser().parse_args([model, "--threads", "1", "--n-ctx", "2048", "--seqs", "4"])
    engine = loop.Engine(args)
    prefix = engine.prompt(64).clip(FIRST_CHARACTER, FIRST_CHARACTER + 3000)
    engine.clear()
    loop.prefill(engine, prefix, 3)
    for _ in range(2):
        for sequence in range(3):
            engine.share(3, sequence)
        first = loop.prefill_all(engine, 3, 10, start=64)
        assert first == [int(prefix[64 + 10 - 41]) + 1] * 3


@pytest.mark.engine
@pytest.mark.parametrize("layout", [[], ["--split-kv"]])
def test_the_bare_engine_times_sharers_cold_and_warm(tmp_path: Path, layout: list[str]) -> None:
    pytest.importorskip("llama_cpp")
    command = [sys.executable, str(BENCHMARKS / "engine_loop.py")]
    command += [str(exact_model("watermark", tmp_path)), "--threads", "1", "--repeat", "1"]
    command += ["--seqs", "3", "--n-ctx", "768", "--batch", "--prefill", *layout]
    command += ["--shared", "2", "64", "8", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    shared = json.loads(done.stdout)["shared"]
    assert set(shared) == {"cold", "warm"}
    assert shared["cold"]["total_s"] >= shared["cold"]["ttft_ms"] / 1000 > 0


@pytest.mark.engine
def test_the_bare_engine_reports_what_was_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    command = [sys.executable, str(BENCHMARKS / "engine_loop.py")]
    command += [str(exact_model("watermark", tmp_path)), "--threads", "1", "--repeat", "1"]
    command += ["--batch", "1", "2", "--prompt", "8", "--tokens", "3", "--prefill", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    got = json.loads(done.stdout)
    assert set(got["decode"]) == {"1", "2"}
    assert set(got["prefill"]["16"]) == {"median_ms", "best_ms", "tok_s"}
    assert got["load_ms"] > 0
