"""The `naiad` command. Each subcommand is imported only when it is the one that runs."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from naiad import __version__
from naiad.errors import NaiadError

#: name -> (where its click command is, what the help of `naiad` says)
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("naiad.cli.serve:serve", "Serve a model over HTTP, and on a web page."),
    "run": ("naiad.cli.talk.commands:run", "Answer one prompt, from arguments or a pipe."),
    "chat": ("naiad.cli.talk.commands:chat", "Talk with a model at the terminal."),
    "ps": ("naiad.cli.processes:ps", "List the servers that run."),
    "stop": ("naiad.cli.processes:stop", "Stop servers."),
    "pull": ("naiad.cli.models:pull", "Fetch a model, by name or from the web."),
    "list": ("naiad.cli.models:list_models", "List the models on this machine."),
    "fit": ("naiad.cli.fitting:fit", "Tell whether a model runs here, and how fast."),
    "show": ("naiad.cli.models:show", "Tell what a model file says about itself."),
    "rm": ("naiad.cli.models:remove", "Delete an installed model."),
    "cache": ("naiad.cli.cache:cache", "Show or clear what is kept on disk."),
    "tune": ("naiad.cli.tune:tune", "Measure which settings suit this machine."),
    "doctor": ("naiad.cli.doctor:doctor", "Check this machine and say what to mend."),
    "completion": ("naiad.cli.completion:completion", "Print shell completion."),
    "bench": ("naiad.bench.command:bench", "Load a server with streams and time what comes back."),
}

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class LazyGroup(click.Group):
    """A group that knows its commands' names and loads only the one asked for."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Also when the name is unknown: with the names that are like it."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], COMMANDS, n=2, cutoff=0.5)
            if not close:
                raise
            told = f"{error.message} Did you mean {' or '.join(close)}?"
            raise click.UsageError(told, error.ctx) from None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="naiad", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A local LLM server whose streams cannot be wrong.

    Start with: naiad pull starter, then: naiad serve, or: naiad chat
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> NoReturn:
    """Entry point of the `naiad` script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status.

    0 done, 1 an error (one sentence on stderr), 2 wrong usage, 130 interrupted.
    """
    try:
        # click takes colours out for pipes by itself; NO_COLOR it does not know.
        color = False if os.environ.get("NO_COLOR") else None
        status = cli.main(list(arguments), prog_name="naiad", standalone_mode=False, color=color)
        return status if isinstance(status, int) else 0
    except NaiadError as error:
        click.echo(f"naiad: {error.message}", err=True)
        return EXIT_USAGE if error.details.get("source") == "flag" else EXIT_ERROR
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone; Python must not complain when it flushes at exit.
        sys.stdout = sys.stderr
        return EXIT_ERROR
    except OSError as error:
        click.echo(f"naiad: {_refused(error)}", err=True)
        return EXIT_ERROR


def _refused(error: OSError) -> str:
    """A full disk, a folder that may not be written: the system's own words say which and why."""
    why = error.strerror or str(error) or type(error).__name__
    return f"{error.filename} cannot be used: {why}." if error.filename else f"{why}."
