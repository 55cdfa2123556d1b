"""`earwise completion`: the script that makes a shell complete commands, options and recipe names."""

import click
from click.shell_completion import get_completion_class

from earwise.errors import ConfigError

COMPLETION_VARIABLE = "_EARWISE_COMPLETE"
"""Environment variable by which the script asks `earwise` for completions; click's name for a program `earwise`."""


@click.command("completion", short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that completes `earwise` in SHELL. Source it in the shell's start file.

    \b
    eval "$(earwise completion bash)"       # in ~/.bashrc
    eval "$(earwise completion zsh)"        # in ~/.zshrc
    earwise completion fish > ~/.config/fish/completions/earwise.fish
    """
    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise ConfigError(f"{shell}: click has no completion for this shell; choose bash, zsh or fish")
    root = context.find_root().command
    click.echo(completion_class(root, {}, "earwise", COMPLETION_VARIABLE).source())
