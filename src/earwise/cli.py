"""The command line: `earwise COMMAND ...`. Results go to stdout, progress to stderr, and an error is one clear line.

Top layer. Each command lives in `commands/` and imports torch and other large packages only when it runs, so that
`earwise --help` answers at once. Exit codes: 0 done, 1 a fault of earwise, 2 wrong input, 130 interrupted (finished
work is kept).
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import shell_complete

from earwise import progress
from earwise.commands import ask, build, chat, completion, demo, doctor, export, models, serve
from earwise.commands.evaluation import compare, evaluate, export_results, export_task, report, table, tasks
from earwise.commands.terminal import printable
from earwise.commands.training import ablate, recipe, status, train
from earwise.config.resolve import own_code_location
from earwise.errors import EarwiseError, is_out_of_memory
from earwise.files import disk_error_message

DONE, OUR_FAULT, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Every command explains itself: earwise COMMAND --help. Base weights are fetched once into EARWISE_HOME.",
)
@click.version_option(package_name="earwise")
@click.option("--traceback", "show_traceback", is_flag=True, help="Show where an error came from, for a bug report.")
def app(show_traceback: bool) -> None:
    """Teach language models to listen: ask, build data, train, evaluate, serve.

    \b
    earwise ask dog.ogg "Which sound is this?" --choices "dog bark,siren"
    earwise build labels my-sounds/ --out my-sounds/questions.jsonl
    earwise train r1-aqa --profile cpu
    earwise evaluate --task manifest --data starter:val --out runs/first
    """


for command in (
    ask.command, chat.command, build.group, recipe.command, train.command, status.command, ablate.command,
    evaluate.command, table.command, tasks.command, compare.command, report.command, export_results.command,
    export_task.command,
    serve.command, doctor.command, export.command, models.command, demo.command, completion.command,
):  # fmt: skip
    app.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `earwise` program; ends the process with one of the exit codes above."""
    if instruction := os.environ.get(completion.COMPLETION_VARIABLE):  # a shell asks for completions, see `completion`
        sys.exit(shell_complete(app, {}, "earwise", completion.COMPLETION_VARIABLE, instruction))
    # A user's own `module:function` may lie in the working folder; last, so that it hides no installed package.
    sys.path.append(str(Path.cwd()))
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: Sequence[str]) -> int:
    """Run one command line. Every exception becomes one line on stderr and an exit code."""
    progress.show()
    # It warns at import of a missing kernel of its own for 4 bits on a CPU, which it then does without.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        # not app.main, which would drop the message of an interrupt
        with app.make_context("earwise", list(arguments)) as context:
            app.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:  # a group without a command
        click.echo(error.format_message())
        return DONE
    except click.UsageError as error:
        command_path = error.ctx.command_path if error.ctx is not None else "earwise"
        return _fail(f"{error.format_message()} (see {command_path} --help)", WRONG_INPUT)
    except click.ClickException as error:
        return _fail(error.format_message(), WRONG_INPUT)
    except (KeyboardInterrupt, click.Abort) as error:
        return _fail(
            str(error) or "interrupted; finished work is kept, the same command goes on from there", INTERRUPTED
        )
    except EarwiseError as error:
        _print_traceback(arguments)
        return _fail(str(error), WRONG_INPUT)
    except BrokenPipeError:  # the reader of a pipe has ended, so there is nobody to report to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        _print_traceback(arguments)
        if is_out_of_memory(error):
            return _fail("out of memory; close other programs, or use a smaller batch or shorter clips", WRONG_INPUT)
        if message := disk_error_message(error):
            return _fail(message, WRONG_INPUT)
        line = f"{type(error).__name__}: {error}"
        place, is_theirs = own_code_location(error)
        if is_theirs:
            return _fail(f"{place}: {line}; raised in your own code (`earwise --traceback ...` shows how)", WRONG_INPUT)
        line += f" (called from {place})" if place else ""
        return _fail(
            f"internal error, our fault: {line}; run `earwise --traceback ...` and report what it shows", OUR_FAULT
        )
    return DONE


def _fail(message: str, code: int) -> int:
    """Print a message as one line to stderr; returns the exit code."""
    click.echo(printable(message if code == INTERRUPTED else "error: " + " ".join(message.split())), err=True)
    return code


def _print_traceback(arguments: Sequence[str]) -> None:
    """Print the traceback of the current exception if the command line says `--traceback`."""
    if "--traceback" in arguments:
        import traceback

        traceback.print_exc()
