"""The command line: ``bridge``, also called ``weight-bridge``.

A command's module is imported when the command is run, so that ``--help`` needs
nothing but click. Every deliberate error ends in one line on stderr and exit status 2.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from typing import Any, NoReturn

import click

from bridge import __version__
from bridge.cli import streams
from bridge.errors import BridgeError, DifferenceError
from bridge.errors import printable as printable  # the commands take it from here

COMMANDS = {
    "info": "Show what a model file holds.",
    "verify": "Prove that readers, engines or files agree, layer by layer.",
    "export": "Write a net as ONNX, with Caffe's numbers.",
    "convert": "Write weights in another format.",
    "migrate": "Export and verify every model of a folder.",
    "finetune": "Fine-tune a net with Chainer.",
    "predict": "Classify images with a fine-tuned net.",
    "doctor": "Show what is installed and what works.",
    "demo": "Go the whole way on a small trained model.",
}

_LONG = 2000
"""Of a message no more characters than this are printed."""


class _Commands(click.Group):
    """A group that imports a command's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"bridge.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="weight-bridge")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Carry trained weights out of Caffe files, and prove that they arrived.

    FILES is what caffe.Net takes, [PROTOTXT] WEIGHTS in any order.

    Exit status: 0 it holds, 1 a difference was found, 2 it could not be done.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    streams.prepare()
    _tame_warnings()
    status = streams.ended(_run(args))
    sys.exit(status if isinstance(status, int) else 0)


def _run(args: list[str] | None) -> Any:
    """The status of a command, with one line on stderr where it ended early."""
    try:
        return cli.main(args=args, prog_name="bridge", standalone_mode=False)
    except click.exceptions.Abort as error:  # what click makes of a KeyboardInterrupt
        return _say("interrupted", 130, str(error.__cause__ or ""))
    except KeyboardInterrupt as error:
        return _say("interrupted", 130, str(error))
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "bridge"
        return _say(error.format_message(), 2, f"{command} --help tells what there is")
    except click.ClickException as error:
        return _say(error.format_message(), 2)
    except BridgeError as error:
        return _say(str(error.args[0]), 1 if isinstance(error, DifferenceError) else 2, error.hint)
    except SystemExit as error:  # click ends so where the reader of our output has left
        return streams.CLOSED if type(sys.stdout).__name__.endswith("PacifyFlushWrapper") else error.code
    except BrokenPipeError:
        return streams.CLOSED
    except OSError as error:
        return _say(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except MemoryError:
        return _say("not enough memory", 2, "--memory sets how much may be taken")
    except Exception as error:  # a defect of ours: its status must not read as "a difference was found"
        if os.environ.get("BRIDGE_TRACEBACK"):
            raise
        return _say(f"unexpected {type(error).__name__}: {error}", 2, "a defect; BRIDGE_TRACEBACK=1 shows where")


def _tame_warnings() -> None:
    """Print the warnings of this package as notes, and no warnings of other packages."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module=r"(bridge|backends)\b")
    warnings.showwarning = lambda message, *_, **__: click.echo(f"note: {printable(str(message))}", err=True)


def _say(message: str, status: int, hint: str = "") -> int:
    with contextlib.suppress(OSError):  # nobody listens; the status says it all the same
        click.echo(f"bridge: {printable(_cut(message))}", err=True)
        if hint:
            click.echo(f"  hint: {printable(_cut(hint))}", err=True)
    return status


def _cut(text: str) -> str:
    """Text out of a file, without its end where it is long."""
    rest = len(text) - _LONG
    return text if rest <= 0 else f"{text[:_LONG]} ... ({rest:,} more characters)"
