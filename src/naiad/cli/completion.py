"""`naiad completion`: what a shell needs to complete commands, flags and names of models."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the code that makes SHELL complete naiad's commands, flags and models.

    \b
    bash:  eval "$(naiad completion bash)"   in ~/.bashrc
    zsh:   eval "$(naiad completion zsh)"    in ~/.zshrc
    fish:  naiad completion fish > ~/.config/fish/completions/naiad.fish
    """
    from click.shell_completion import get_completion_class

    from naiad.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "naiad", "_NAIAD_COMPLETE").source())
