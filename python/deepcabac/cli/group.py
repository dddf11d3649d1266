"""The program: its errors as one line, and its exit codes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from typing import Any, NoReturn

import click

from ..atomic import reason
from ..errors import DamagedFileError, DeepCabacError
from .output import say
from .parameters import BROKEN_PIPE, DAMAGED, INTERRUPTED, TERMINATED, USAGE, Failure, examples
from .report import printable


class Program(click.Group):
    """Ends every command with the exit codes and the one-line errors described above."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the command line; see :class:`click.Command`. Raises SystemExit."""
        extra["standalone_mode"] = False
        try:
            sys.exit(super().main(*args, **extra))
        except click.Abort:
            interrupted()
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "deepcabac"
            message = " ".join(error.format_message().split()).rstrip(".")
            failure = Failure(message[:1].lower() + message[1:], error.exit_code, f"'{command} --help' says more")
        except Failure as error:
            failure = error
        say(f"error: {printable(failure)}")
        sys.exit(failure.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, its errors turned into what :meth:`main` shows."""
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            interrupted()
        except DamagedFileError as error:
            raise Failure(str(error), DAMAGED) from error
        except DeepCabacError as error:
            raise Failure(str(error)) from error
        except MemoryError as error:
            raise Failure("out of memory") from error
        except OSError as error:  # of stdout: those of files were given their names below
            discard_stdout()
            if error.errno == errno.EPIPE:
                sys.exit(BROKEN_PIPE)
            raise Failure(f"the output cannot be written: {reason(error)}") from error


def main() -> NoReturn:
    """The program ``deepcabac``."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks is no error
    # As Ctrl-C does, let what is being written remove its temporary file.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    program.main(prog_name="deepcabac")


@click.group(
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog=examples(
        "deepcabac compress model.safetensors      writes model.dcb",
        "deepcabac inspect model.dcb               shows where the bytes go",
        "deepcabac decompress model.dcb -o restored.safetensors",
    ),
)
@click.version_option(package_name="deepcabac", prog_name="deepcabac", message="%(prog)s %(version)s")
@click.pass_context
def program(context: click.Context) -> None:
    """Make trained neural networks small.

    Weights are quantised to a quality of your choice and packed by a
    context-adaptive arithmetic coder. No data and no GPU are needed. Reads and
    writes .safetensors (also sharded), .npz, .pt, .pth and .onnx.

    'deepcabac COMMAND --help' says more. Exit codes: 0 done, 1 the file is
    damaged, 2 anything else that went wrong.
    """
    if context.invoked_subcommand is None:
        say(context.get_help())
        context.exit(USAGE)


def interrupted() -> NoReturn:
    """End as Ctrl-C does."""
    if sys.stderr is not None and sys.stderr.isatty():
        say("")  # below the ^C that the terminal shows
    say("interrupted")
    sys.exit(INTERRUPTED)


def discard_stdout() -> None:
    """Let Python's own flush at exit, which would fail again, go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
