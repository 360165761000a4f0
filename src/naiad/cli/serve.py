"""`naiad serve`: flags to a Config, a Config to a running server, and what is printed meanwhile."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from naiad.cli.listen import base_url, is_any_address, key_for
from naiad.cli.log import start_logging
from naiad.cli.options import config_option, settings_options
from naiad.cli.progress import LineReporter, mebibytes, reporter
from naiad.cli.settings import load
from naiad.config import Config, EngineConfig
from naiad.errors import ModelFileError
from naiad.models.catalogue import find, models_dir, named
from naiad.models.sources import STARTER

if TYPE_CHECKING:
    from naiad.client.base import EngineClient
    from naiad.service.documents import Documents
    from naiad.types import ModelInfo

log = logging.getLogger(__name__)

#: How often the bar looks at how far the model's load is.
REDRAW_S = 0.1


@click.command()
@click.argument("model", required=False)
@settings_options()
@config_option
def serve(model: str | None, config: str | None, **flags: Any) -> None:
    """Serve MODEL: a path, the name of an installed model, or nothing for the starter model.

    Every option is also an environment variable (--kv-type is NAIAD_KV_TYPE) and a key of the
    settings file (kv_type). A flag wins over the environment, which wins over the file.
    """
    settings = load({"model": model, **flags}, file=config)
    start_logging(settings.log_level, as_json=settings.log_json)
    settings = with_tuning(with_model(settings))
    new_key = key_for(settings)
    if new_key:
        settings = msgspec.structs.replace(settings, api_key=new_key)
    _serve(settings, new_key)


def _serve(config: Config, new_key: str | None) -> None:
    from naiad.http.serve import bind, run

    sock = bind(config.host, config.port)
    try:
        run(_run_server(config, sock, new_key))
    finally:
        sock.close()


async def _run_server(config: Config, sock: socket.socket, new_key: str | None) -> None:
    from naiad.client.launch import engine_from
    from naiad.http.app import build_app
    from naiad.http.serve import serve as serve_http
    from naiad.service.renderer import Renderer
    from naiad.service.service import Service

    folder = models_dir(config.models_dir)
    engine = engine_from(config.engine)
    loaded = Path(config.engine.model)
    service = Service(
        engine,
        config,
        Renderer(),
        lambda name: is_other(name, folder, loaded),
        _documents(config),
    )

    async def announce() -> None:
        model = await wait_with_progress(engine, to_log=config.log_json)
        url = base_url(config.host, sock.getsockname()[1])
        click.echo("\n".join(welcome(model, url, config, new_key)))
        sys.stdout.flush()
        gc.freeze()  # what is loaded stays: the collector need not walk it between tokens

    await serve_http(build_app(service, config), service, config, sock, announce)


def with_model(config: Config) -> Config:
    """The config with the path of the model's file; a damaged file is refused here.

    On a terminal, the starter model is fetched when it is asked for and missing.

    Raises:
        ModelFileError: there is no such model, or the file is no usable GGUF file.
    """
    from naiad.models.gguf import read_header

    if config.engine.engine == "scripted":
        return config
    folder = models_dir(config.models_dir)
    path = _starter(folder) if not config.engine.model else find(config.engine.model, folder)
    read_header(path)
    return msgspec.structs.replace(
        config, engine=msgspec.structs.replace(config.engine, model=str(path))
    )


def _documents(config: Config) -> Documents:
    """Where stored responses are kept; the file is made when there is one."""
    import platformdirs

    from naiad.service.documents import Bounds, Documents

    file = config.responses_file or Path(platformdirs.user_data_dir("naiad")) / "responses.db"
    bounds = Bounds(config.responses_most, config.responses_days)
    return Documents(Path(file).expanduser() if config.responses_most else None, bounds)


def with_tuning(config: Config) -> Config:
    """The config with what was measured on this machine for this model and profile, if anything."""
    from naiad.cli.tune import tuning_of

    if config.engine.engine == "scripted":
        return config
    record = tuning_of(Path(config.engine.model), models_dir(config.models_dir))
    tuning = record.profiles.get(config.engine.profile) if record else None
    return msgspec.structs.replace(
        config, engine=msgspec.structs.replace(config.engine, tuning=tuning)
    )


def _starter(folder: Path) -> Path:
    try:
        return find(None, folder)
    except ModelFileError:
        if not sys.stderr.isatty():
            raise
    from naiad.cli.models import fetch

    return fetch(STARTER.name, folder)


def is_other(name: str, folder: Path, loaded: Path) -> bool:
    """True when the name is that of an installed model which is not the loaded one."""
    return named(name, folder) not in (None, loaded)


async def wait_with_progress(engine: EngineClient, *, to_log: bool = False) -> ModelInfo:
    """Wait until the model is loaded, showing how far it is. Raises what `wait_ready` raises.

    to_log: show it as lines of the log, for programs that read standard error.
    """
    ready = asyncio.ensure_future(engine.wait_ready())
    try:
        shown = LineReporter(in_bytes=False, say=log.info) if to_log else reporter(in_bytes=False)
        with shown as progress:
            while not ready.done():
                progress.update("Loading the model", engine.status.progress, 1.0)
                await asyncio.wait({ready}, timeout=REDRAW_S)
    finally:
        ready.cancel()
    return ready.result()


def welcome(model: ModelInfo, url: str, config: Config, new_key: str | None) -> list[str]:
    """The lines that say what is loaded, how, and where to point a client."""
    key = new_key or config.api_key
    auth = " -H 'Authorization: Bearer YOUR_KEY'" if key else ""
    lines = ["", f"naiad serves {model.name} on {url}", ""]
    lines += [f"  {label:<9} {text}" for label, text in _facts(model, config.engine)]
    if new_key:
        lines += ["", "  This server can be reached from other machines, so it asks for a key."]
        lines += [f"  The key of this run, shown only here: {new_key}"]
    elif config.no_auth:
        lines += ["", "  No key is asked for: whoever can reach this port can use the model."]
    if is_any_address(config.host):
        port = url.rpartition(":")[2]
        lines += ["", f"  Other machines find it at http://{socket.gethostname()}:{port}"]
    lines += [
        "",
        f"  In a browser                  {url}/{f'#key={new_key}' if new_key else ''}",
        f"  OpenAI clients                base URL {url}/v1",
        f"  SillyTavern, KoboldAI clients API URL  {url}",
        "",
        f"  curl -N {url}/v1/chat/completions{auth} -H 'Content-Type: application/json' \\",
        """    -d '{"messages":[{"role":"user","content":"Hello!"}],"stream":true}'""",
        "",
        "  Ctrl-C stops the server.",
    ]
    return lines


def _facts(model: ModelInfo, config: EngineConfig) -> list[tuple[str, str]]:
    engine = model.engine
    facts = [("model", _describe_model(model))]
    facts.append(
        (
            "settings",
            f"{engine.threads} threads, {engine.n_ctx:,} tokens per request, "
            f"{engine.parallel} requests at a time, {engine.pool_cells:,} cells shared",
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
    told = {
        "default": "first words soon, prompts shared, one pool of cells",
        "throughput": "many unrelated requests, cells of their own for each",
    }[config.profile]
    if model.engine.tuned and config.tuning is not None:
        return f"{config.profile}: {told}; {config.tuning.source}"
    return f"{config.profile}: {told}; not measured here (naiad tune)"


def _describe_model(model: ModelInfo) -> str:
    told = [model.description or model.architecture]
    if model.n_params:
        told.append(f"{model.n_params / 1e6:,.0f} million weights")
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
    return [*([describe(record)] if record else []), ", ".join(features)]


def _on(value: bool) -> str:
    return "on" if value else "off"
