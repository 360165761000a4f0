"""Servers side by side: how each is started, in which order they run, what the table says."""

from __future__ import annotations

import json
import re
import string
import sys
import urllib.request
from argparse import Namespace
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from naiad.bench.figures import Summary, summarize
from naiad.bench.results import StreamResult
from naiad.bench.wire import DIALECTS

ROOT = Path(__file__).parents[1]
WORDS = {"binary", "model", "port", "threads", "ctx", "parallel", "cells", "folder"}


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import each other by their bare names."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def servers() -> Any:
    return import_module("servers")


@pytest.fixture
def compare() -> Any:
    return import_module("compare")


def words_in(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def test_every_template_uses_only_words_that_are_filled_in(servers: Any) -> None:
    for adapter in servers.ADAPTERS.values():
        steps = [part for step in adapter.prepare for part in step]
        templates = [*adapter.command, *steps, *adapter.env.values(), *adapter.files.values()]
        assert set().union(*map(words_in, templates)) <= WORDS
        assert adapter.dialect in DIALECTS
    plan = servers.Plan("m.gguf", 2)
    assert set(servers.words_for(plan, "bin", 1, "dir")) == WORDS


def test_a_command_line_is_filled_in(servers: Any) -> None:
    plan = servers.Plan("m.gguf", threads=2, ctx=100, parallel=3)
    words = servers.words_for(plan, "/opt/llama-server", 8080, "/tmp/x")
    assert servers.command_line(servers.ADAPTERS["llama-server"], words) == [
        *("/opt/llama-server", "-m", "m.gguf", "--host", "127.0.0.1", "--port", "8080"),
        *("-t", "2", "-c", "300", "-np", "3", "-no-kvu"),
    ]


def test_koboldcpp_may_be_its_python_file(servers: Any) -> None:
    words = servers.words_for(servers.Plan("m.gguf", 2), "/opt/koboldcpp.py", 1, "/tmp/x")
    command = servers.command_line(servers.ADAPTERS["koboldcpp"], words)
    assert command[1] == "/opt/koboldcpp.py"
    assert Path(command[0]).name.startswith("python")


def test_ollama_is_told_by_its_environment_and_a_file(servers: Any) -> None:
    adapter = servers.ADAPTERS["ollama"]
    words = servers.words_for(servers.Plan("/m.gguf", threads=2), "ollama", 11, "/tmp/x")
    env = {name: servers.fill(value, words) for name, value in adapter.env.items()}
    assert (env["OLLAMA_HOST"], env["OLLAMA_NUM_PARALLEL"]) == ("127.0.0.1:11", "16")
    assert servers.fill(adapter.files["Modelfile"], words).startswith("FROM /m.gguf\n")


def test_llama_servers_quantised_cache_needs_flash_attention(servers: Any) -> None:
    assert len(servers.llama_variants("f16")) == 4
    quantised = servers.llama_variants("q8_0")
    assert len(quantised) == 2
    assert all("off" not in flags for flags in quantised.values())


def test_what_is_missing_is_said_in_a_sentence(servers: Any, tmp_path: Path) -> None:
    there = tmp_path / "llama-server"
    there.touch()
    assert servers.missing(there) == ""
    assert "--llama-server PATH" in servers.missing(None)
    assert "there is no" in servers.missing(tmp_path / "gone")
    assert servers.find_program("koboldcpp", "/given") == "/given"


def test_servers_that_are_not_there_are_left_out(
    compare: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    args = Namespace(ollama=None, koboldcpp="/opt/kcpp")
    found = compare.found_programs(["koboldcpp", "ollama", "koboldcpp-batching"], args)
    assert found == {"koboldcpp": "/opt/kcpp", "koboldcpp-batching": "/opt/kcpp"}
    assert "ollama is left out: no ollama found (--ollama PATH)" in capsys.readouterr().err


def test_rounds_run_forwards_and_backwards(compare: Any) -> None:
    assert [compare.order_of(["a", "b", "c"], turn) for turn in range(3)] == [
        ["a", "b", "c"],
        ["c", "b", "a"],
        ["a", "b", "c"],
    ]


def test_servers_of_one_round_get_the_same_questions(compare: Any) -> None:
    draws = [compare.sizes_of(False, seed).rng.random() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert compare.sizes_of(True, 1).streams < compare.sizes_of(False, 1).streams


def line(name: str, *, error: str | None = None, **extra: float) -> Summary:
    result = StreamResult(0.0, 2.0, (0.5, 1.5), ("a", "b"), 2, error=error)
    return summarize(name, [result], extra=dict(extra))


def test_each_scenario_shows_the_figures_that_matter(compare: Any) -> None:
    assert list(compare.row_values(line("sweep 4"))) == [
        *("tokens/s", "TTFT p50, ms", "TTFT p99, ms", "gap p99, ms"),
    ]
    assert compare.row_values(line("running streams", gap_during_max=7.0)) == {
        "longest gap, ms": 7.0
    }
    assert compare.row_values(line("shared prefix, cold"))["total, s"] == 2.0
    assert compare.row_values(line("newcomer")) == {"TTFT p50, ms": 500.0}


def test_the_table_has_a_column_for_each_server(compare: Any) -> None:
    results = {
        "naiad": [line("sweep 1"), line("newcomer")],
        "other": [line("sweep 1", error="died")],
    }
    page = StringIO()
    Console(width=100, file=page).print(compare.table(results))
    text = page.getvalue()
    assert re.search(r"scenario +naiad +other", text)
    assert re.search(r"newcomer +TTFT p50, ms +500\.0 +-", text)
    assert re.search(r"failed streams +0 +1", text)


def test_the_report_says_how_each_server_was_started(compare: Any, servers: Any) -> None:
    plan = servers.Plan("/models/m.gguf", 2)
    got = compare.report({"naiad": [line("sweep 1")]}, plan, Namespace(rounds=3))
    assert (got["model"], got["rounds"]) == ("m.gguf", 3)
    assert "--threads {threads}" in got["servers"]["naiad"]["command"]
    assert got["servers"]["naiad"]["results"][0]["name"] == "sweep 1"


def test_every_server_is_in_the_guide(servers: Any) -> None:
    guide = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    assert [name for name in servers.ADAPTERS if f"`{name}`" not in guide] == []
    described = [import_module("compare").describe(*item) for item in servers.ADAPTERS.items()]
    assert all("{port}" in text for text in described)


#: A server in one file: its health is what its folder holds; `import` notes what it was given.
FAKE_SERVER = """
import http.server, json, os, pathlib, sys

folder = pathlib.Path(os.environ["FAKE_FOLDER"])
if sys.argv[1] == "import":
    sys.exit(3 if sys.argv[2] == "bad" else (folder / "imported").write_text(sys.argv[2]) * 0)

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({p.name: p.read_text() for p in folder.iterdir()}).encode()
        self.send_response(200 if self.path == "/ready" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


def fake_adapter(servers: Any, model: str) -> Any:
    return servers.Adapter(
        "fake",
        ("{binary}", "{port}"),
        health="/ready",
        env={"FAKE_FOLDER": "{folder}"},
        files={"about": "{threads} threads\n"},
        prepare=((*(sys.executable, "{binary}"), "import", model),),
    )


def test_a_server_gets_its_files_and_environment_and_ends_with_the_block(
    servers: Any, tmp_path: Path
) -> None:
    program = tmp_path / "fake.py"
    program.write_text(FAKE_SERVER)
    plan = servers.Plan("m.gguf", threads=2)
    with servers.start(fake_adapter(servers, "{model}"), str(program), plan) as server:
        assert server.health == {"about": "2 threads\n"}
        with urllib.request.urlopen(f"{server.url}/ready") as answer:
            assert json.load(answer)["imported"] == "m.gguf"
    assert not psutil.pid_exists(server.pid)


def test_a_preparation_that_fails_ends_the_run_and_the_server(servers: Any, tmp_path: Path) -> None:
    program = tmp_path / "fake.py"
    program.write_text(FAKE_SERVER)
    adapter = fake_adapter(servers, "bad")
    with (
        pytest.raises(SystemExit, match="import bad failed"),
        servers.start(adapter, str(program), servers.Plan("m.gguf", 2)),
    ):
        pytest.fail("the server was handed out")
