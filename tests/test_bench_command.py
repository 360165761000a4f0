"""`naiad bench` as it is typed: options, report, exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner, Result

from naiad.bench import plot, scenarios
from naiad.bench.client import parse_target
from naiad.bench.command import bench
from naiad.bench.figures import Summary, summarize
from naiad.bench.report import as_json, notes, table
from naiad.bench.results import StreamResult
from naiad.errors import ConfigError


class Kobold(BaseHTTPRequestHandler):
    """Answers every request with two tokens; remembers nothing."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(
            b'data: {"token":"one "}\n\ndata: {"token":"two","finish_reason":"stop"}\n\n'
        )

    def log_message(self, format: str, *args: object) -> None:
        """Tests stay quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Kobold) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def invoke(*args: str) -> Result:
    return CliRunner().invoke(bench, args)


def test_the_report_is_a_table_and_json(url: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    got = invoke(
        *("concurrent", "--url", url, "--dialect", "kobold", "--concurrency", "1,2"),
        *("--key", "sesame", "--json", str(report)),
    )
    assert got.exit_code == 0, got.output
    assert "concurrent 2" in got.stdout
    assert "sesame" not in report.read_text()
    results = json.loads(report.read_text())["results"]
    assert [(r["name"], r["streams"], r["failed"]) for r in results] == [
        ("concurrent 1", 1, 0),
        ("concurrent 2", 2, 0),
    ]
    assert results[1]["ttft"]["n"] == 2


def test_json_on_standard_output_stands_alone(url: str) -> None:
    got = invoke(
        "consecutive", "--url", url, "--dialect", "kobold", "--streams", "2", "--json", "-"
    )
    assert json.loads(got.stdout)["target"]["dialect"] == "kobold"
    assert "consecutive" in got.stderr


def test_a_failed_stream_fails_the_run() -> None:
    got = invoke("consecutive", "--url", "http://127.0.0.1:1", "--streams", "1")
    assert got.exit_code == 1
    assert "cannot connect" in got.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--url", "gopher://h"], "no http:// or https:// URL"),
        (["--concurrency", "1,x"], "numbers with commas between"),
        (["--concurrency", "0"], "from 1 to 4096"),
        (["--streams", "0"], "1<=x<=10000"),
        (["--priorities", "0,2000"], "from -1000 to 1000"),
        (["restart"], "the restart scenario needs --restart-command"),
        (["everything"], "is not one of"),
    ],
)
def test_bad_options_say_what_is_wrong(args: list[str], message: str) -> None:
    got = invoke(*args)
    assert got.exit_code == 2
    assert message in " ".join(got.stderr.split())


def test_the_time_limit_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def give_up(*_args: object) -> list[object]:
        raise TimeoutError

    monkeypatch.setitem(scenarios.SCENARIOS, "concurrent", give_up)
    got = invoke("concurrent", "--time-limit", "5")
    assert got.exit_code == 1
    assert "stopped at the time limit of 5 s" in got.stderr


def test_ctrl_c_shows_what_there_is(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupt(*_args: object) -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setitem(scenarios.SCENARIOS, "concurrent", interrupt)
    got = invoke("all", "--url", url, "--dialect", "kobold", "--streams", "2", "--json", "-")
    assert got.exit_code not in (0, 2)
    assert [line["name"] for line in json.loads(got.stdout)["results"]] == ["consecutive"]


def test_all_includes_a_restart_when_it_is_told_how(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def note(name: str) -> scenarios.Scenario:
        async def scenario(*_args: object) -> list[Summary]:
            ran.append(name)
            return []

        return scenario

    for name in scenarios.SCENARIOS:
        monkeypatch.setitem(scenarios.SCENARIOS, name, note(name))
    assert invoke("all", "--url", url).exit_code == 0
    without = list(ran)
    assert invoke("all", "--url", url, "--restart-command", "true").exit_code == 0
    assert set(scenarios.SCENARIOS) - set(without) == {"sweep", "restart"}
    assert ran == [*without, *without, "restart"]


def test_a_restart_is_run_and_reported(url: str) -> None:
    got = invoke(
        *("restart", "--url", url, "--dialect", "kobold", "--restart-command", "true"),
        *("--conversations", "2", "--turns", "1", "--system-tokens", "5"),
    )
    assert got.exit_code == 0, got.output
    assert "after the restart" in got.stdout


def test_a_failed_restart_shows_what_there_is_and_why(url: str) -> None:
    got = invoke(
        *("all", "--url", url, "--dialect", "kobold", "--restart-command", "exit 3"),
        *("--streams", "1", "--concurrency", "1", "--sharers", "1", "--running", "1"),
        *("--conversations", "1", "--turns", "1", "--histories", "1", "--per-priority", "1"),
    )
    assert isinstance(got.exception, ConfigError)
    assert "consecutive" in got.stdout


def test_a_report_can_be_drawn(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []

    def note(series: plot.Series, folder: Path) -> list[Path]:
        drawn.extend([line.name for line in lines] for lines in series.values())
        return [folder / "throughput.png"]

    monkeypatch.setattr(plot, "draw", note)
    got = invoke(
        *("sweep", "--url", url, "--dialect", "kobold", "--sweep", "1,2"),
        *("--plot", str(tmp_path)),
    )
    assert got.exit_code == 0, got.output
    assert drawn == [["sweep 1", "sweep 2"]]
    assert "throughput.png" in got.stderr


def test_notes_tell_what_the_table_cannot() -> None:
    lumped = StreamResult(0.0, 2.0, (1.0,), ("x",), 9)
    failed = StreamResult(0.0, 1.0, error="died")
    line = summarize("here", [lumped, failed], extra={"ratio": 1.5, "none": None})
    assert notes([line]) == [
        "here: ratio 1.5, 1 answers came in one event",
        "here: error: died",
    ]
    assert notes([summarize("here", [StreamResult(0.0, 1.0, (0.5,), ("x",), 1)])]) == []


def test_table_and_json_stand_missing_times() -> None:
    line = summarize("here", [StreamResult(0.0, 1.0, error="died")])
    assert table([line]).row_count == 1
    target = parse_target("http://h", key="sesame", timeout_s=1)
    assert json.loads(as_json(target, [line]))["results"][0]["ttft"] is None
