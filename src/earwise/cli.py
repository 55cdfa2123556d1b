"""The command line: `earwise COMMAND ...`. Results on stdout, progress on stderr, one clear line when something fails.

Top layer. Each command lives in `commands/` and imports torch and the rest only when it runs, so `earwise --help`
answers at once. Exit codes: 0 done, 1 our own fault, 2 the user's input, 130 interrupted (finished work is kept).
"""

import os
import sys
from collections.abc import Sequence

import click

from earwise.commands import ablate, ask, build, chat, doctor, evaluate, export, models, serve, train
from earwise.errors import EarwiseError
from earwise.files import disk_refused

DONE, OUR_FAULT, USER_INPUT, INTERRUPTED = 0, 1, 2, 130


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Every command explains itself: earwise COMMAND --help. Base weights are fetched once into EARWISE_HOME.",
)
@click.version_option(package_name="earwise")
@click.option("--traceback", "show_traceback", is_flag=True, help="Show where an error came from, for a bug report.")
def app(show_traceback: bool) -> None:
    """Teach language models to listen: ask, build data, train, evaluate.

    \b
    earwise ask dog.ogg "Which sound is this?" --choices "dog bark,siren"
    earwise build labels my-sounds/ --out my-sounds/questions.jsonl
    earwise train recipes/r1-aqa.yaml --profile cpu
    earwise evaluate --task manifest --data starter:val --out runs/first
    """


for command in (
    ask.command, chat.command, build.group, train.command, ablate.command, evaluate.command, evaluate.compare,
    evaluate.report, serve.command, doctor.command, export.command, models.command,
):  # fmt: skip
    app.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `earwise` program; ends the process with one of the exit codes above."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(given))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code and never raises."""
    try:
        # app.main would swallow the words of an interrupt
        with app.make_context("earwise", list(arguments)) as context:
            app.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        help_for = error.ctx.command_path if error.ctx is not None else "earwise"
        return _fail(f"{error.format_message()} (see {help_for} --help)", USER_INPUT)
    except click.ClickException as error:
        return _fail(error.format_message(), USER_INPUT)
    except (KeyboardInterrupt, click.Abort) as error:
        return _fail(
            str(error) or "interrupted; finished work is kept, the same command goes on from there", INTERRUPTED
        )
    except EarwiseError as error:
        _trace(arguments)
        return _fail(str(error), USER_INPUT)
    except BrokenPipeError:  # the reader of a pipe went away: no one is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except MemoryError:
        _trace(arguments)
        return _fail("out of memory; close other programs, or use a smaller batch or shorter clips", USER_INPUT)
    except Exception as error:  # everything else is our own fault, and is said so
        _trace(arguments)
        if refused := disk_refused(error):
            return _fail(refused, USER_INPUT)
        line = f"{type(error).__name__}: {error}"
        return _fail(
            f"internal error, our fault: {line}; run `earwise --traceback ...` and report what it shows", OUR_FAULT
        )
    return DONE


def _fail(line: str, code: int) -> int:
    click.echo("error: " + " ".join(line.split()) if code != INTERRUPTED else line, err=True)
    return code


def _trace(arguments: Sequence[str]) -> None:
    if "--traceback" in arguments:
        import traceback

        traceback.print_exc()
