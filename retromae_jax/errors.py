"""Errors that are the user's to mend."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class InputError(ValueError):
    """Bad input of the user's; the message names the file, where it applies the line, and the remedy."""


def shown(value: object) -> str:
    """What a file holds, in quotes and short enough for a message: a broken line may have megabytes."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]} ... {text[-20:]}"


def one_line(error: Exception) -> str:
    """What a library's error says, in one line that is short enough for a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 300 else f"{lines[0][:300]} ..."


def exits_on_input_error(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorates a command's `main`: an `InputError` ends it with the line `error: ...` and exit status 2.

    Ctrl-C ends it with a line, too, and the status that shells know it by, 130.
    """

    @functools.wraps(command)
    def main(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return command(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return main
