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
from ..errors import DeepCabacError
from .output import say
from .parameters import BROKEN_PIPE, INTERRUPTED, TERMINATED, USAGE, Failure, examples
from .places import as_failure
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
            failure = _misused(error)
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
        except (DeepCabacError, MemoryError) as error:
            raise as_failure(error) from error
        except OSError as error:  # of stdout: those of files were given their names below
            discard_stdout()
            if error.errno == errno.EPIPE:
                sys.exit(BROKEN_PIPE)
            raise Failure(f"the output cannot be written: {reason(error)}") from error


def _misused(error: click.ClickException) -> Failure:
    """What is said of a wrong command line."""
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "deepcabac"
    # What is spelt similarly, the closest first; "--help" is click's, and never what was meant by another word.
    close = [name for name in getattr(error, "possibilities", None) or () if name != "--help"]
    message = error.message if close or isinstance(error, click.NoSuchOption) else error.format_message()
    message = " ".join(message.split()).rstrip(".")
    hint = f"did you mean {close[0]!r}?" if close else f"'{command} --help' says more"
    return Failure(message[:1].lower() + message[1:], error.exit_code, hint)


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
    )
    + "\n\n\b\nTab completion, for this shell (zsh_source and fish_source for others):\n"
    + '  eval "$(_DEEPCABAC_COMPLETE=bash_source deepcabac)"',
)
@click.version_option(package_name="deepcabac", prog_name="deepcabac", message="%(prog)s %(version)s")
@click.pass_context
def program(context: click.Context) -> None:
    """Make trained neural networks small.

    Weights are quantised to the quality you choose, then packed by a
    context-adaptive arithmetic coder. This needs no data and no GPU. Checkpoints
    are .safetensors (also sharded), .npz, .pt, .onnx or .gguf.

    'deepcabac COMMAND --help' says more. Commands take several files at once; a
    file called - is standard input or output. Exit codes: 0 done, 1 a file is
    damaged, 2 any other error.
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
