"""`make test-clients`: clients of others against a server with the starter model.

Each client is a script in this folder, run in an environment of its own with the server's URL and
the model's name. It ends with exit code 0, or says what was wrong. Names given as arguments run
only these.

Coding agents send prompts that the starter model cannot read, so they talk to the brief model,
which reads any prompt within seconds, in the real engine. `claude_code_gemma` and `codex_gemma` are
the same with Gemma 3 270M. They run only when they are named: two idle cores read Claude Code's
first prompt within a minute or two, busy ones take as long as they take.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from e2e.client import serving
from environments import FOLDER, Unavailable, clean_environ, node_env, python_env, server_environ
from naiad.testing.exact_models import exact_model

HERE = Path(__file__).parent
#: The longest that one client may take, and one with a model that computes its prompt for long.
CLIENT_S = 900
LONG_S = 4 * CLIENT_S


@dataclass(frozen=True)
class House:
    """A server: its model, and how it is started. is_exact: that is built here, not installed."""

    model: str
    args: tuple[str, ...] = ()
    is_exact: bool = False

    def arguments(self) -> list[str]:
        """What `naiad serve` is given."""
        name = str(exact_model(self.model, FOLDER / "models")) if self.is_exact else self.model
        return [name, *self.args, "--no-disk-cache"]


STARTER = House("SmolLM2-135M-Instruct.Q4_1", ("--ctx", "4096"))
#: A byte is a token to it, so the context is four times as long as it had to be elsewhere.
BRIEF = House("brief", ("--ctx", "131072", "--parallel", "2"), is_exact=True)
GEMMA = House("gemma-3-270m-q4_k_m", ("--ctx", "32768", "--parallel", "2"))


@dataclass(frozen=True)
class Client:
    """A script, and the packages that it needs; those of npm if the script is JavaScript.

    variant: stands for "client" in the name of one that runs only when it is named.
    options: of the script, behind the server's URL and the model's name.
    """

    script: str
    packages: tuple[str, ...]
    house: House = STARTER
    variant: str = ""
    limit_s: float | None = None
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        stem = Path(self.script).stem
        return stem.replace("client", self.variant) if self.variant else stem

    def command(self) -> list[str]:
        """The program and the script. Raises Unavailable."""
        if self.script.endswith(".mjs"):
            home = node_env(Path(self.script).stem, self.packages)
            # Node looks for packages above the script, so the script goes where they are.
            copy = home / self.script
            copy.write_text((HERE / self.script).read_text(encoding="utf-8"), encoding="utf-8")
            return ["node", str(copy)]
        return [str(python_env(self.name, self.packages) / "python"), str(HERE / self.script)]


CLAUDE_CODE = "@anthropic-ai/claude-code@2.1.197"
CODEX = "@openai/codex@0.169.0"
CLIENTS = (
    Client("langchain_client.py", ("langchain-openai==1.7.3", "langchain-ollama==1.1.0")),
    Client("litellm_client.py", ("litellm==1.106.2", "mcp")),  # its tools need mcp unasked
    Client("openai_client.mjs", ("openai@6.49.0",)),
    Client("anthropic_client.mjs", ("@anthropic-ai/sdk@1.12.0",)),
    Client("ollama_client.mjs", ("ollama@0.6.4",)),
    Client("claude_code_client.mjs", (CLAUDE_CODE,), BRIEF),
    Client("codex_client.mjs", (CODEX,), BRIEF),
    Client("claude_code_client.mjs", (CLAUDE_CODE,), GEMMA, "gemma", LONG_S),
    # It sets no limit to an answer, so the schema tells this model when to end.
    Client("codex_client.mjs", (CODEX,), GEMMA, "gemma", LONG_S, ("--output-schema",)),
)


def outcome(client: Client, url: str) -> str:
    """ "passed", "not run: why", or what went wrong."""
    try:
        command = client.command()
    except Unavailable as error:
        return f"not run: {error}"
    limit_s = client.limit_s or CLIENT_S
    # No client may reach anything but the server, and none finds keys or settings of the user's.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        try:
            done = subprocess.run(
                [*command, url, client.house.model, *client.options],
                env=clean_environ(
                    HOME=home, NO_PROXY="127.0.0.1", LITELLM_LOCAL_MODEL_COST_MAP="True"
                ),
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"not done within {limit_s} s"
    if done.returncode == 0:
        told = done.stdout.strip()
        return f"passed; {told}" if told and "\n" not in told else "passed"
    return f"exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}"


def outcomes(house: House, clients: list[Client]) -> Iterator[tuple[str, str]]:
    """The name of each of these clients, and what it comes to at a server of its own kind."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with serving(log, *house.arguments(), env=server_environ()) as server:
            for client in clients:
                yield client.name, outcome(client, server.url)


def main(names: list[str], say: Callable[[str], None] = print) -> int:
    known = [client.name for client in CLIENTS]
    if unknown := sorted(set(names) - set(known)):
        say(f"There is no client {', '.join(unknown)}; there are {', '.join(known)}.")
        return 2
    chosen = [one for one in CLIENTS if (one.name in names if names else not one.variant)]
    has_failed = False
    for house in dict.fromkeys(client.house for client in chosen):
        clients = [client for client in chosen if client.house == house]
        began = time.monotonic()
        for name, told in outcomes(house, clients):
            say(f"{name:<20} {time.monotonic() - began:4.0f} s  {told}")
            sys.stdout.flush()
            began = time.monotonic()
            has_failed |= not told.startswith(("passed", "not run:"))
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
