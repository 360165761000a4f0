"""`naiad serve`: flags to a Config, a Config to a running server, and what is printed meanwhile."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from naiad import __version__
from naiad.cli.listen import base_url, key_for
from naiad.cli.log import start_logging
from naiad.cli.options import (
    Grouped,
    complete_model,
    config_option,
    draft_model_path,
    elsewhere,
    settings_options,
)
from naiad.cli.progress import Reporter
from naiad.cli.running import Running, began, noted, running
from naiad.cli.settings import GROUPS, load
from naiad.cli.welcome import Greeter, greeter_for
from naiad.config import Config
from naiad.errors import ConfigError, ModelFileError
from naiad.models.catalogue import find, models_dir, named
from naiad.models.sources import STARTER

if TYPE_CHECKING:
    from naiad.client.base import EngineClient
    from naiad.service.documents import Documents
    from naiad.types import ModelInfo

#: How often the bar looks at how far the model's load is.
REDRAW_S = 0.1


@click.command(cls=Grouped, groups=GROUPS)
@click.argument("model", required=False, shell_complete=complete_model)
@settings_options()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines: the load, then the URL.")
@click.option("--until-eof", is_flag=True, help="Stop when standard input ends; for programs.")
def serve(
    model: str | None, config: str | None, as_json: bool, until_eof: bool, **flags: Any
) -> None:
    """Serve MODEL: a path, the name of an installed model, or nothing for the starter model.

    Every option is also an environment variable (--kv-type is NAIAD_KV_TYPE) and a key of the
    settings file (kv_type). A flag wins over the environment, which wins over the file.
    """
    settings = load({"model": model, **flags}, file=config)
    is_quieter = settings.quiet and settings.log_level in ("debug", "info")
    level = "warning" if is_quieter else settings.log_level
    start_logging(level, as_json=settings.log_json)
    settings = with_tuning(with_model(settings))
    new_key = key_for(settings)
    if new_key:
        settings = msgspec.structs.replace(settings, api_key=new_key)
    _serve(settings, greeter_for(settings, new_key, as_json=as_json), until_eof=until_eof)


def _serve(config: Config, greeter: Greeter, *, until_eof: bool) -> None:
    from naiad.http.serve import bind, run

    try:
        sock = bind(config.host, config.port)
    except ConfigError:
        refuse_beside(config)
        raise
    try:
        with noted(_note(config, sock, is_private=until_eof)):
            run(_run_server(config, sock, greeter, until_eof=until_eof))
    finally:
        sock.close()


def refuse_beside(config: Config) -> None:
    """Raise ConfigError when it is another server of this user that has the port."""
    url = base_url(config.host, config.port)
    for note in running():
        if note.url == url:
            raise ConfigError(
                f"naiad already serves {note.name or 'its scripted engine'} on {url} (process "
                f"{note.pid}). Stop it with: naiad stop {config.port}; or choose another port with "
                "--port.",
                param="port",
            )


def _note(config: Config, sock: socket.socket, *, is_private: bool) -> Running:
    engine = config.engine
    return Running(
        pid=os.getpid(),
        began=began(os.getpid()) or 0.0,
        url=base_url(config.host, sock.getsockname()[1]),
        model="scripted" if engine.engine == "scripted" else engine.model,
        key=config.api_key,
        is_private=is_private,
        version=__version__,
    )


async def _run_server(
    config: Config, sock: socket.socket, greeter: Greeter, *, until_eof: bool
) -> None:
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
        started = time.monotonic()
        model = await wait_with_progress(engine, greeter.progress())
        url = base_url(config.host, sock.getsockname()[1])
        greeter.greet(model, url, time.monotonic() - started)
        gc.freeze()  # what is loaded stays: the collector need not walk it between tokens

    if until_eof:
        stop_at_eof(asyncio.get_running_loop())
    await serve_http(build_app(service, config), service, config, sock, announce)


def with_model(config: Config) -> Config:
    """The config with the path of the model's file; a damaged file is refused here.

    On a terminal, the starter model is fetched when it is asked for and missing.

    Raises:
        ModelFileError: there is no such model, or the file is no usable GGUF file.
        ConfigError: the same of the draft model.
    """
    from naiad.models.gguf import read_header

    if config.engine.engine == "scripted":
        return config
    folder = models_dir(config.models_dir)
    model = config.engine.model
    path = find(model, folder, elsewhere(config)) if model else _starter(folder)
    read_header(path)
    draft = draft_model_path(config)
    paths = {"model": str(path), "draft_model": str(draft) if draft else None}
    engine = msgspec.structs.replace(config.engine, **paths)
    return msgspec.structs.replace(config, engine=engine)


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


async def wait_with_progress(engine: EngineClient, shown: Reporter) -> ModelInfo:
    """Wait until the model is loaded, showing how far it is. Raises what `wait_ready` raises."""
    ready = asyncio.ensure_future(engine.wait_ready())
    try:
        with shown as progress:
            while not ready.done():
                done = engine.status.progress
                now = "trying it out" if done >= 1 else ""
                progress.update("Loading the model", done, 1.0, now)
                await asyncio.wait({ready}, timeout=REDRAW_S)
    finally:
        ready.cancel()
    return ready.result()


def stop_at_eof(loop: asyncio.AbstractEventLoop) -> None:
    """Stop this program, as a signal would, when its standard input ends.

    Raises ConfigError when standard input is of a kind that cannot be waited for, such as a file.
    """

    def look() -> None:
        if not os.read(0, 1 << 16):
            loop.remove_reader(0)
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        loop.add_reader(0, look)
    except (OSError, ValueError) as error:
        raise ConfigError("--until-eof needs a pipe or a terminal as standard input.") from error
