"""`make test-clients`: clients of others against a server with the starter model.

Claude Code talks to Gemma 3 270M instead, since its first request is longer than what the starter
model can read; on two cores that may take longer than a client gets. Each client is a script in
this folder, run in an environment of its own with the server's URL and the model's name. It ends
with exit code 0, or says what was wrong. Names given as arguments run only these.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from e2e.client import serving
from environments import Unavailable, clean_environ, node_env, python_env, server_environ

HERE = Path(__file__).parent
#: The longest that one client may take.
CLIENT_S = 900


@dataclass(frozen=True)
class House:
    """A server: its model, and how it is started."""

    model: str
    args: tuple[str, ...]


STARTER = House("SmolLM2-135M-Instruct.Q4_1", ("--ctx", "4096", "--no-disk-cache"))
#: Codex sets no limit to an answer, so its model must know when to end.
STARTER_LONG = House(STARTER.model, ("--ctx", "16384", "--parallel", "2", "--no-disk-cache"))
GEMMA = House(
    "gemma-3-270m-q4_k_m",
    ("gemma-3-270m-q4_k_m", "--ctx", "32768", "--parallel", "2", "--no-disk-cache"),
)


@dataclass(frozen=True)
class Client:
    """A script, and the packages that it needs; those of npm if the script is JavaScript."""

    script: str
    packages: tuple[str, ...]
    house: House = STARTER

    @property
    def name(self) -> str:
        return Path(self.script).stem

    def command(self) -> list[str]:
        """The program and the script. Raises Unavailable."""
        if self.script.endswith(".mjs"):
            home = node_env(self.name, self.packages)
            # Node looks for packages above the script, so the script goes where they are.
            copy = home / self.script
            copy.write_text((HERE / self.script).read_text(encoding="utf-8"), encoding="utf-8")
            return ["node", str(copy)]
        return [str(python_env(self.name, self.packages) / "python"), str(HERE / self.script)]


CLIENTS = (
    Client("langchain_client.py", ("langchain-openai==1.7.3", "langchain-ollama==1.1.0")),
    Client("litellm_client.py", ("litellm==1.106.2", "mcp")),  # its tools need mcp unasked
    Client("openai_client.mjs", ("openai@6.49.0",)),
    Client("anthropic_client.mjs", ("@anthropic-ai/sdk@1.12.0",)),
    Client("ollama_client.mjs", ("ollama@0.6.4",)),
    Client("claude_code_client.mjs", ("@anthropic-ai/claude-code@2.1.197",), GEMMA),
    Client("codex_client.mjs", ("@openai/codex@0.169.0",), STARTER_LONG),
)


def outcome(client: Client, url: str) -> str:
    """ "passed", "not run: why", or what went wrong."""
    try:
        command = client.command()
    except Unavailable as error:
        return f"not run: {error}"
    # No client may reach anything but the server, and none finds keys or settings of the user's.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        try:
            done = subprocess.run(
                [*command, url, client.house.model],
                env=clean_environ(
                    HOME=home, NO_PROXY="127.0.0.1", LITELLM_LOCAL_MODEL_COST_MAP="True"
                ),
                capture_output=True,
                text=True,
                timeout=CLIENT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"not done within {CLIENT_S} s"
    if done.returncode == 0:
        return "passed"
    return f"exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}"


def outcomes(house: House, clients: list[Client]) -> dict[str, str]:
    """What each of these clients comes to at a server of its own kind, by name."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with serving(log, *house.args, env=server_environ()) as server:
            return {client.name: outcome(client, server.url) for client in clients}


def main(names: list[str], say: Callable[[str], None] = print) -> int:
    chosen = [client for client in CLIENTS if not names or client.name in names]
    has_failed = False
    for house in dict.fromkeys(client.house for client in chosen):
        clients = [client for client in chosen if client.house == house]
        for name, told in outcomes(house, clients).items():
            say(f"{name:<20} {told}")
            has_failed |= not told.startswith(("passed", "not run:"))
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
