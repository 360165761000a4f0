"""What `naiad serve` shows: one screen for people, JSON lines for programs, or nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from naiad.cli.layout import wrapped
from naiad.cli.listen import is_any_address
from naiad.cli.progress import LineReporter, QuietReporter, Reporter, mebibytes, reporter
from naiad.config import Config, EngineConfig

if TYPE_CHECKING:
    from naiad.types import ModelInfo

log = logging.getLogger(__name__)

#: What nearly every processor and build has, or what a better one that is named implies.
_COMMON = frozenset({
    "SSE3", "SSSE3", "AVX", "F16C", "FMA", "BMI2",
    "AVX_VNNI", "AVX512_VBMI", "LLAMAFILE", "OPENMP", "REPACK",
})  # fmt: skip


class Greeter(Protocol):
    """Shows the load, then that the server is ready."""

    def progress(self) -> Reporter:
        """What shows how far the load is."""
        ...

    def greet(self, model: ModelInfo, url: str, load_s: float) -> None:
        """Say that the model is loaded and where the server is; load_s: how long it took."""
        ...


def greeter_for(config: Config, new_key: str | None, *, as_json: bool) -> Greeter:
    """The greeter that suits. new_key: a key that was made for this run, which must be shown."""
    if as_json:
        return JsonGreeter(config, new_key)
    return QuietGreeter(new_key) if config.quiet else ScreenGreeter(config, new_key)


class ScreenGreeter(Greeter):
    """A bar, then one screen."""

    def __init__(self, config: Config, new_key: str | None) -> None:
        self._config = config
        self._new_key = new_key

    def progress(self) -> Reporter:
        if self._config.log_json:  # for programs that read standard error
            return LineReporter(in_bytes=False, say=log.info)
        return reporter(in_bytes=False)

    def greet(self, model: ModelInfo, url: str, load_s: float) -> None:
        click.echo("\n".join(welcome(model, url, self._config, self._new_key, load_s)))
        sys.stdout.flush()


class QuietGreeter(Greeter):
    """Nothing, but for a key that nobody could know otherwise."""

    def __init__(self, new_key: str | None) -> None:
        self._new_key = new_key

    def progress(self) -> Reporter:
        return QuietReporter()

    def greet(self, model: ModelInfo, url: str, load_s: float) -> None:  # noqa: ARG002
        if self._new_key:
            click.echo(f"{url}/#key={self._new_key}")


class JsonGreeter(Greeter):
    """One JSON object a line: {"event": "loading", "progress"}, then {"event": "ready", ...}."""

    def __init__(self, config: Config, new_key: str | None) -> None:
        self._is_quiet = config.quiet
        self._new_key = new_key

    def progress(self) -> Reporter:
        return QuietReporter() if self._is_quiet else JsonReporter()

    def greet(self, model: ModelInfo, url: str, load_s: float) -> None:
        ready = {"event": "ready", "url": url, "model": model.name, "load_s": round(load_s, 3)}
        ready |= {"n_ctx": model.engine.n_ctx, "build": model.engine.build}
        _tell({**ready, **({"key": self._new_key} if self._new_key else {})})


class JsonReporter(QuietReporter):
    """A line whenever another hundredth is done."""

    def __init__(self) -> None:
        self._last = -1

    def update(self, stage: str, done: float, total: float, now: str = "") -> None:  # noqa: ARG002
        percent = int(100 * done / total) if total else 100
        if percent != self._last:
            self._last = percent
            _tell({"event": "loading", "progress": percent / 100})


def _tell(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def welcome(
    model: ModelInfo, url: str, config: Config, new_key: str | None, load_s: float = 0.0
) -> list[str]:
    """The lines that say what is loaded, how, and where to point a client."""
    key = new_key or config.api_key
    lines = ["", f"naiad serves {model.name} on {url}", ""]
    lines += [
        wrapped(f"  {label:<9} ", text) for label, text in _facts(model, config.engine, load_s)
    ]
    if new_key:
        lines += ["", "  This server can be reached from other machines, so it asks for a key."]
        lines += [f"  The key of this run, shown only here: {new_key}"]
    elif config.no_auth:
        lines += ["", "  No key is asked for: whoever can reach this port can use the model."]
    if is_any_address(config.host):
        port = url.rpartition(":")[2]
        lines += ["", f"  Other machines find it at http://{socket.gethostname()}:{port}"]
    lines += ["", *_addresses(url, new_key), ""]
    lines += [f"  {line}" for line in _to_paste(url, new_key or ("YOUR_KEY" if key else ""))]
    return [*lines, "", "  Ctrl-C stops the server."]


def _addresses(url: str, new_key: str | None) -> list[str]:
    """Where each kind of client finds the server."""
    return [
        f"  In a browser                  {url}/{f'#key={new_key}' if new_key else ''}",
        f"  At another terminal           {_program()} chat",
        f"  OpenAI clients                base URL {url}/v1",
        f"  SillyTavern, KoboldAI clients API URL  {url}",
        f"  Ollama clients                OLLAMA_HOST={url}",
        f"  Anthropic clients             ANTHROPIC_BASE_URL={url}",
    ]


def _program() -> str:
    """`naiad` where the shell finds it; else as it lies here, such as `.venv/bin/naiad`."""
    called = Path(sys.argv[0])
    if shutil.which("naiad") or called.name != "naiad":
        return "naiad"
    try:
        near = os.path.relpath(called)
    except OSError:  # the working folder is gone
        return "naiad"
    return str(called) if near.startswith("..") else near


def _to_paste(url: str, key: str) -> list[str]:
    """A request to try at another terminal. key: "" for none."""
    auth = f"-H 'Authorization: Bearer {key}'" if key else ""
    return [
        f"curl -N {url}/v1/chat/completions \\",
        *([f"  {auth} \\"] if auth else []),
        "  -H 'Content-Type: application/json' \\",
        """  -d '{"messages":[{"role":"user","content":"Hello!"}],"stream":true}'""",
    ]


def _facts(model: ModelInfo, config: EngineConfig, load_s: float) -> list[tuple[str, str]]:
    engine = model.engine
    loaded = f", loaded in {load_s:.1f} s" if load_s else ""
    facts = [("model", _describe_model(model) + loaded)]
    facts.append(
        (
            "settings",
            f"{engine.threads} threads; {engine.parallel} requests at a time, "
            f"{engine.n_ctx:,} tokens each; {engine.pool_cells:,} cells",
        )
    )
    facts.append(
        (
            "memory",
            f"KV cache {engine.kv_type}, flash attention {_on(engine.flash_attention)}, "
            f"{engine.gpu_layers or 'no'} layers on a GPU",
        )
    )
    facts.append(("profile", _describe_profile(model, config)))
    facts += [("build", text) for text in _describe_build(engine.build)]
    if not engine.extra_buffers:
        facts.append(("note", "safe mode: repacked weights (AMX and friends) are off"))
    return facts


def _describe_profile(model: ModelInfo, config: EngineConfig) -> str:
    """What the settings were chosen for, and by whom; the worker's log names each of them."""
    if model.engine.tuned and config.tuning is not None:
        return f"{config.profile}, {config.tuning.source}"
    return f"{config.profile}, not measured here (naiad tune)"


def _describe_model(model: ModelInfo) -> str:
    told = [model.description or model.architecture]
    if model.size_bytes:
        told.append(mebibytes(model.size_bytes))
    return ", ".join(filter(None, told)) or "scripted"


def _describe_build(info: str) -> list[str]:
    """The installed build as it was recorded, and llama.cpp's features that are on."""
    from naiad.setup.engine import describe
    from naiad.setup.record import load_record

    if not info:
        return []
    record = load_record()
    told = info.replace("CPU :", "").split("|")
    features = [part.split("=")[0].strip() for part in told if "= 1" in part]
    build = describe(dataclasses.replace(record, cxx_flags="")) if record else ""
    telling = ", ".join(name for name in features if name not in _COMMON)
    return [line for line in (build, telling) if line]


def _on(value: bool) -> str:
    return "on" if value else "off"
