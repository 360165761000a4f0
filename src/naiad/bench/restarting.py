"""Restarting a server that somebody else looks after: run a command, wait for the first answer."""

from __future__ import annotations

import asyncio

from naiad.bench.client import Client
from naiad.bench.wire import Ask
from naiad.errors import ConfigError

#: Seconds between two questions to a server that does not answer yet. A server that is not there
#: cannot tell when it will be, so it has to be asked.
RETRY_S = 0.2


async def restart_by(command: str, client: Client, within_s: float) -> None:
    """Run the shell command to its end, then wait until the server answers a tiny question.

    The command must not return before the old server is gone, and must leave the new one running.

    Raises:
        ConfigError: it fails, or command and server are not done within within_s seconds.
    """
    try:
        async with asyncio.timeout(within_s):
            await _run(command)
            await wait_ready(client)
    except TimeoutError as error:
        raise ConfigError(
            f"no answer from the server within {within_s:g} s of the restart command",
            param="restart_command",
        ) from error


async def wait_ready(client: Client) -> None:
    """Ask until a stream comes back whole; the caller sets the deadline."""
    while (await client.ask(Ask("Are you there?", 2))).is_failed:  # noqa: ASYNC110 - see RETRY_S
        await asyncio.sleep(RETRY_S)


async def _run(command: str) -> None:
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_shell(command, stdin=quiet, stdout=quiet)
    try:
        status = await process.wait()
    finally:
        if process.returncode is None:  # the deadline passed, or somebody pressed Ctrl-C
            process.kill()
            await process.wait()
    if status:
        raise ConfigError(
            f"the restart command ended with status {status}", param="restart_command"
        )
