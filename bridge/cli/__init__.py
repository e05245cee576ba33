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
from bridge.cli.manners import VOICE, voice_options
from bridge.errors import BridgeError, DifferenceError, UsageError, nearest
from bridge.errors import printable as printable  # the commands take it from here

COMMANDS = {
    "info": "Show what a model file holds.",
    "inspect": "Show what layers compute, take and cost.",
    "plot": "Draw a net: filters, histograms, a graph, features.",
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = nearest(args[0], COMMANDS) or "bridge --help lists the commands"
            raise UsageError(f"there is no command '{args[0]}'", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the version, and those of what is installed of what the extras bring."""
    if not wanted or ctx.resilient_parsing:
        return
    import platform

    from bridge.cli.installed import installed

    click.echo(f"weight-bridge {__version__}")
    click.echo(f"python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for name, version in installed().items():
        click.echo(f"{name} {version}")
    ctx.exit()


def _completion(ctx: click.Context, _: click.Parameter, shell: str | None) -> None:
    """Print the script that makes a shell complete commands and options."""
    if shell is None or ctx.resilient_parsing:
        return
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # click has these three
    for name in ("bridge", "weight-bridge"):
        click.echo(found(cli, {}, name, "_BRIDGE_COMPLETE").source())
    ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version, and those of installed packages that it can use.",
)
@click.option(
    "--completion",
    type=click.Choice(["bash", "zsh", "fish"]),
    is_eager=True,
    expose_value=False,
    callback=_completion,
    help="Print a script for this shell; eval it, and Tab completes commands and options.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Carry trained weights out of Caffe files, and prove that they arrived.

    FILES is what caffe.Net takes, [PROTOTXT] WEIGHTS in any order.

    Exit status: 0 it holds, 1 a difference was found, 2 it could not be done,
    130 interrupted (Ctrl-C), 141 the reader of the output has left.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


cli.params += voice_options()


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    VOICE.reset()
    streams.prepare()
    _tame_warnings()
    status = streams.ended(_run(args))
    sys.exit(status if isinstance(status, int) else 0)


def _run(args: list[str] | None) -> Any:
    """The status of a command, with one line on stderr where it ended early."""
    try:
        status = cli.main(args=args, prog_name="bridge", standalone_mode=False)
        VOICE.end()
        return status
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
        if VOICE.verbose or os.environ.get("BRIDGE_TRACEBACK"):
            raise
        return _say_unexpected(error)


def _say_unexpected(error: Exception) -> int:
    """Say an error that nothing expects: a fault of a plug-in's code, or a defect of this program."""
    plugins = sys.modules.get("bridge.layers.plugins")
    fault = plugins.fault_of_plugin(error) if plugins else ""
    text, owner = (
        (fault, "the plug-in's own code") if fault else (f"unexpected {type(error).__name__}: {error}", "a defect")
    )
    return _say(text, 2, f"{owner}; -v shows where, as BRIDGE_TRACEBACK=1 does")


def _tame_warnings() -> None:
    """Print the warnings of this package as notes, and no warnings of other packages."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module=r"(bridge|backends)\b")
    warnings.showwarning = _warned


def _warned(message: Warning | str, *_: Any, **__: Any) -> None:
    if not VOICE.quiet:
        click.echo(f"note: {printable(str(message))}", err=True)


def _say(message: str, status: int, hint: str = "") -> int:
    with contextlib.suppress(OSError):  # nobody listens; the status says it all the same
        click.echo(f"bridge: {printable(_cut(message))}", err=True)
        if hint:
            click.echo(f"  hint: {printable(_cut(hint))}", err=True)
    return status


def _cut(text: str) -> str:
    """Text out of a file, without its end where it is long."""
    rest = 0 if VOICE.verbose else len(text) - _LONG
    return text if rest <= 0 else f"{text[:_LONG]} ... ({rest:,} more characters)"
