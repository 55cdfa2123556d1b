"""Options of commands that ask a teacher, and the teacher and limits that they amount to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.datasets.teachers.teacher import Teacher
    from earwise.engine.remote.openai_http import RequestLimits

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--teacher",
        default="template",
        show_default=True,
        metavar="URL",
        help="An OpenAI-compatible server, up to /v1 (or URL#NAME); `template` fills in from labels, offline, "
        "for trials.",
    ),
    click.option("--teacher-model", default="", metavar="NAME", help="Name of the model on that server."),
    click.option(
        "--api-key-variable",
        default="EARWISE_API_KEY",
        show_default=True,
        help="Environment variable that holds the server's key.",
    ),
    click.option("--teacher-temperature", default=0.7, show_default=True, type=click.FloatRange(0)),
    click.option("--teacher-max-tokens", default=1024, show_default=True, type=click.IntRange(1)),
    click.option(
        "--structured",
        default="json_schema",
        show_default=True,
        type=click.Choice(["json_schema", "json_object", "none"]),
        help="How the server is asked for JSON; what comes is checked either way.",
    ),
    click.option(
        "--retry-failed", is_flag=True, help="Ask again what failed in an earlier run (refused, malformed, cut ...)."
    ),
    click.option("--concurrency", default=16, show_default=True, type=click.IntRange(1), help="Requests at once."),
    click.option("--requests-per-minute", type=click.FloatRange(0, min_open=True), help="No faster than this."),
    click.option("--tokens-per-minute", type=click.FloatRange(0, min_open=True), help="No faster than this."),
    click.option(
        "--price",
        metavar="IN,OUT",
        help="Cost of a million input and a million output tokens, for estimates and counts: 0.15,0.60",
    ),
)


@dataclass(frozen=True, slots=True)
class TeacherOptions:
    """What the options say."""

    teacher: str
    teacher_model: str
    api_key_variable: str
    teacher_temperature: float
    teacher_max_tokens: int
    structured: str
    retry_failed: bool
    concurrency: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    price: str | None


def teacher_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options above; it takes them as `**asked` and makes `TeacherOptions(**asked)` of them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def open_teacher(asked: TeacherOptions, template_replies: "Mapping[str, Callable[[Mapping[str, Any]], Any]]") -> "Teacher":
    """The teacher.

    Args:
        asked: The options.
        fillers: What a template says to each kind of request.
    Raises:
        ConfigError: if a server is named without a model, or the price is no pair of numbers.
    """
    from earwise.datasets.teachers import teacher as teachers
    from earwise.engine.remote import openai_http

    if asked.teacher == "template":
        return teachers.TemplateTeacher(template_replies)
    url, _, named = asked.teacher.partition("#")
    if not (asked.teacher_model or named):
        raise ConfigError(f"--teacher {asked.teacher} needs --teacher-model, the model's name on that server")
    return teachers.RemoteTeacher(
        url,
        asked.teacher_model or named,
        api_key=openai_http.api_key_from_environment(asked.api_key_variable),
        temperature=asked.teacher_temperature,
        max_tokens=asked.teacher_max_tokens,
        response_format=asked.structured,  # type: ignore[arg-type]  # click checked it
        price=_price(asked.price),
    )


def limits(asked: TeacherOptions) -> "RequestLimits":
    """How hard the teacher may be worked."""
    from earwise.engine.remote.openai_http import RequestLimits

    return RequestLimits(
        concurrency=asked.concurrency,
        requests_per_minute=asked.requests_per_minute,
        tokens_per_minute=asked.tokens_per_minute,
    )


def _price(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--price {text!r} is not two numbers; write for example 0.15,0.60") from error
    return first, second
