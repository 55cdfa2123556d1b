"""Options of the commands that need a teacher, and the teacher that they describe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.datasets.teachers.teacher import Teacher, TemplateReply
    from earwise.engine.remote.openai_http import RequestLimits

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--teacher",
        default="template",
        show_default=True,
        metavar="URL",
        help="Address of an OpenAI-compatible server, up to /v1 (or URL#NAME); `template` fills in sentences from "
        "labels, offline, for trials.",
    ),
    click.option("--teacher-model", default="", metavar="NAME", help="Name of the model on that server."),
    click.option(
        "--api-key-variable",
        default="EARWISE_API_KEY",
        show_default=True,
        help="Environment variable that holds the server's key.",
    ),
    click.option(
        "--teacher-temperature",
        default=0.7,
        show_default=True,
        type=click.FloatRange(0),
        help="Sampling temperature of the teacher; 0 is greedy.",
    ),
    click.option(
        "--teacher-max-tokens",
        default=1024,
        show_default=True,
        type=click.IntRange(1),
        help="Longest answer of the teacher, in tokens.",
    ),
    click.option(
        "--structured",
        default="json_schema",
        show_default=True,
        type=click.Choice(["json_schema", "json_object", "none"]),
        help="How the server is told to answer in JSON; the answers are checked in any case.",
    ),
    click.option(
        "--retry-failed",
        is_flag=True,
        help="Send requests again that failed in an earlier run (refused, malformed, truncated ...).",
    ),
    click.option(
        "--concurrency", default=16, show_default=True, type=click.IntRange(1), help="Requests in flight at once."
    ),
    click.option(
        "--requests-per-minute",
        type=click.FloatRange(0, min_open=True),
        help="Rate limit of requests; none by default.",
    ),
    click.option(
        "--tokens-per-minute", type=click.FloatRange(0, min_open=True), help="Rate limit of tokens; none by default."
    ),
    click.option(
        "--price",
        metavar="IN,OUT",
        help="Price of a million input and a million output tokens, for estimates and counts: 0.15,0.60",
    ),
)


@dataclass(frozen=True, slots=True)
class TeacherOptions:
    """The values of the teacher's options, named like them."""

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
    """Add the teacher's options to a command; `TeacherOptions` collects their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def open_teacher(options: TeacherOptions, template_replies: "Mapping[str, TemplateReply]") -> "Teacher":
    """Make the teacher that the options describe.

    Args:
        options: Values of the teacher's options.
        template_replies: Kind of request -> function that fills in the answer, for a template teacher.
    Raises:
        ConfigError: if a server is named without a model, or the price is not a pair of numbers.
    """
    from earwise.datasets.teachers.teacher import RemoteTeacher, TemplateTeacher
    from earwise.engine.remote import openai_http

    if options.teacher == "template":
        return TemplateTeacher(template_replies)
    url, _, model = options.teacher.partition("#")
    if not (options.teacher_model or model):
        raise ConfigError(f"--teacher {options.teacher} needs --teacher-model, the model's name on that server")
    return RemoteTeacher(
        url,
        options.teacher_model or model,
        api_key=openai_http.api_key_from_environment(options.api_key_variable),
        temperature=options.teacher_temperature,
        max_tokens=options.teacher_max_tokens,
        response_format=options.structured,  # type: ignore[arg-type]  # click checked it
        price=_parse_price(options.price),
    )


def teacher_limits(options: TeacherOptions) -> "RequestLimits":
    """Concurrency and rate limits of the teacher."""
    from earwise.engine.remote.openai_http import RequestLimits

    return RequestLimits(
        concurrency=options.concurrency,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
    )


def _parse_price(text: str | None) -> tuple[float, float] | None:
    """Parse the prices of input and output tokens, separated by a comma."""
    if text is None:
        return None
    try:
        input_price, output_price = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--price {text!r} is not two numbers; write for example 0.15,0.60") from error
    return input_price, output_price
