"""What the benchmarks share: a server that ends with the script, the bare engine, and the bars.

A bar is a ratio (or a time) that must not be passed, and an aim where it ought to be. Ratios are
taken within one run, on one machine, against the bare engine with the server's own settings: only
they can be compared between machines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from naiad.bench.client import Client, parse_target
from naiad.bench.figures import Summary
from naiad.bench.load import Sizes
from naiad.bench.results import StreamResult
from naiad.bench.scenarios import concurrent
from naiad.native.orphans import die_with_parent

HERE = Path(__file__).parent
HOST = "127.0.0.1"
READY_WITHIN_S = 180.0
REQUEST_TIMEOUT_S = 300.0
#: Where naiad keeps prompts on disk.
DISK_CACHE = "NAIAD_DISK_CACHE_DIR"
#: Where servers leave notes by which `naiad run` and `naiad stop` find them.
STATE = "NAIAD_STATE_DIR"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure. `bar` and `aim` are limits; None where there is none.

    at_least: the figure must reach the bar instead of staying below it.
    """

    name: str
    value: float
    unit: str = ""
    bar: float | None = None
    aim: float | None = None
    at_least: bool = False

    def reaches(self, limit: float | None) -> bool | None:
        """Whether the figure is on the right side of a limit; None when there is no limit."""
        if limit is None:
            return None
        return self.value >= limit if self.at_least else self.value <= limit

    @property
    def verdict(self) -> str:
        """aim, holds, FALLS SHORT, or nothing where there is no bar."""
        if self.reaches(self.bar) is None:
            return ""
        if self.reaches(self.aim):
            return "aim"
        return "holds" if self.reaches(self.bar) else "FALLS SHORT"

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        limit = "" if self.bar is None else f"  (bar {sign} {self.bar:g})"
        return f"{self.verdict:12} {self.name}: {self.value:.3f} {self.unit}".rstrip() + limit


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready."""

    url: str
    pid: int
    started_in_s: float
    health: Mapping[str, Any]

    def client(self, dialect: str = "openai", model: str = "default") -> Client:
        target = parse_target(self.url, dialect=dialect, model=model, timeout_s=REQUEST_TIMEOUT_S)
        return Client(target)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def naiad() -> str:
    """The `naiad` command of the environment that runs this script."""
    command = Path(sys.executable).with_name("naiad")
    if not command.exists():
        raise SystemExit(f"there is no {command}: run `make setup` first")
    return str(command)


def starter() -> str:
    """The path of the starter model."""
    shown = subprocess.run(
        [naiad(), "show", "starter", "--json"], capture_output=True, text=True, check=False
    )
    if shown.returncode:
        raise SystemExit(f"no starter model: run `naiad pull starter`\n{shown.stderr.strip()}")
    return str(json.loads(shown.stdout)["path"])


@contextmanager
def serve(
    *args: str, env: Mapping[str, str] | None = None, port: int | None = None
) -> Iterator[Server]:
    """Run `naiad serve ARGS` on a port of this machine, any free one by default.

    It ends with the block. Its disk cache is a folder that ends too, unless `env` names one, and
    other commands of naiad do not find it.
    """
    port = port or free_port()
    command = [naiad(), "serve", *args, "--host", HOST, "--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="naiad-bench-") as folder:
        own = {DISK_CACHE: f"{folder}/cache", STATE: f"{folder}/state", **(env or {})}
        with running(command, f"http://{HOST}:{port}", env=own) as server:
            yield server


@contextmanager
def running(
    command: Sequence[str], url: str, env: Mapping[str, str] | None = None, health: str = "/health"
) -> Iterator[Server]:
    """Run any server that answers GET `health` with 200 and JSON once it is ready."""
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            preexec_fn=die_with_parent,  # noqa: PLW1509  (no threads here; none outlives a killed run)
        )
        try:
            answer = _wait_ready(process, url + health)
            if answer is None:
                log.seek(0)
                tail = log.read().decode("utf-8", "replace")[-2000:]
                raise SystemExit(f"{' '.join(command)} did not become ready:\n{tail}")
            yield Server(url, process.pid, time.perf_counter() - started, answer)
        finally:
            _stop(process)


def _wait_ready(process: subprocess.Popen[bytes], url: str) -> dict[str, Any] | None:
    deadline = time.monotonic() + READY_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return dict(json.load(answer))
        except (OSError, urllib.error.URLError):
            time.sleep(0.01)
    return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def engine_flags(engine: Mapping[str, Any]) -> list[str]:
    """What engine_loop.py must be told to run as the server does, from /health's `engine`."""
    flags = [
        *("--threads", str(engine["threads"])),
        *("--fa", "1" if engine["flash_attention"] else "0"),
        *("--kv", str(engine["kv_type"])),
        *("--n-ubatch", str(engine["n_ubatch"])),
        *("--gpu-layers", str(engine["gpu_layers"])),
    ]
    if not engine["kv_unified"]:
        flags.append("--split-kv")
    if not engine.get("extra_buffers", True):
        flags.append("--no-extra-buffers")
    return flags


def bare(model: str, engine: Mapping[str, Any], *args: str) -> dict[str, Any]:
    """Run the bare engine with the server's settings, in a process of its own."""
    command = [sys.executable, str(HERE / "engine_loop.py"), model, *engine_flags(engine), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        raise SystemExit(f"the bare engine failed:\n{done.stderr.strip()[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def prompt_length(client: Client, prompt_tokens: int) -> int:
    """How many tokens a prompt asked to be about this long really has."""
    sizes = Sizes(concurrency=(1,), tokens=1, prompt_tokens=prompt_tokens)
    (line,) = run(concurrent(client, sizes))
    return line.prompt_tokens or prompt_tokens


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the event loop that costs the client least."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def ttft_ms(result: StreamResult) -> float:
    """Milliseconds to a stream's first text. Ends the script when the stream failed."""
    if result.error is not None or result.ttft is None:
        raise SystemExit(f"a stream failed: {result.error}")
    return 1000 * result.ttft


def must_be_right(line: Summary) -> Summary:
    """The line itself; ends the script when one of its streams failed or was wrong."""
    if line.failed or line.wrong:
        raise SystemExit(f"{line.name}: {line.failed} failed, {line.wrong} wrong: {line.errors}")
    return line


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("--json", type=Path, help="also write the figures to this file")
    made.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing"
    )
    return made


def parse(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """Read the command line. With --quick, `quick` takes the place of the options' defaults."""
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def conclude(figures: Sequence[Figure], args: argparse.Namespace, *remarks: str) -> int:
    """Print the figures, and write them where --json says; 1 when one falls short of its bar.

    With --quick nothing can fall short, since nothing was measured.
    """
    if args.quick:
        figures = [replace(figure, bar=None, aim=None) for figure in figures]
        remarks = (*remarks, "tiny sizes: these figures mean nothing")
    for line in (*figures, *remarks):
        print(line, flush=True)
    if args.json is not None:
        rows = [asdict(figure) | {"verdict": figure.verdict} for figure in figures]
        args.json.write_text(json.dumps({"figures": rows, "remarks": remarks}, indent=2) + "\n")
    return int(any(figure.reaches(figure.bar) is False for figure in figures))
