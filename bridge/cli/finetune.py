"""``bridge finetune``: fine-tune a net with Chainer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridge.cli import manners, options, printable
from bridge.cli.manners import FIRST, VOICE, section
from bridge.cli.progress import Progress
from bridge.cli.ranks import all_or_none
from bridge.cli.rerun import given_words, stored_words, write_command
from bridge.cli.run_settings import config_of
from bridge.errors import UsageError
from bridge.finetuning.listener import Listener

if TYPE_CHECKING:
    from bridge.finetuning.config import Config
    from bridge.finetuning.verdict import Verdict


@manners.command()
@click.argument("files", nargs=-1, metavar="FILES", type=click.Path())
@options.reading
@click.option("-o", "--output", default="", type=click.Path(), help="Folder of the run.")
@click.option(
    "--data",
    default="",
    help="A folder per class, .npz with x and y, list of files, or module:function.  [default: with --solver, the data "
    "layers of the solver's net]",
)
@section("More about the data")
@click.option("--validation", default="", help="Validation data.  [default: a share of --data]")
@click.option(
    "--validation-share",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 0.9),
    help="Share of each class to hold out.",
)
@click.option(
    "--class-names", type=click.Path(), help="A file with the name of a class per line, where the data have none."
)
@click.option(
    "--root",
    default="",
    type=click.Path(),
    help="Folder that the paths of a list start from.  [default: the list's own]",
)
@section(FIRST)
@click.option("--head", "heads", multiple=True, metavar="LAYER=[NAME:]10", help="New outputs for a layer; repeatable.")
@click.option(
    "--freeze",
    multiple=True,
    metavar="PATTERN",
    help="Layers to freeze, such as 'conv*', with their normalisations; repeatable.",
)
@click.option("--freeze-exactly", is_flag=True, help="Freeze, or train, only the layers that the patterns name.")
@click.option("--train", multiple=True, metavar="PATTERN", help="Layers to train, all others are frozen; repeatable.")
@click.option("--train-head", is_flag=True, help="Train the new head, and freeze all other layers.")
@click.option(
    "--unfreeze-at",
    default=-1,
    type=click.IntRange(-1),
    metavar="EPOCH",
    help="Epoch, counted from 0, from which frozen layers are trained too; -1 is never.",
)
@section("The recipe: optimizer and learning rate")
@click.option("--solver", type=click.Path(), help="A Caffe solver.prototxt as the recipe.")
@click.option("--epochs", type=click.IntRange(1), help="[default: the solver's max_iter, or 10]")
@click.option("--batch-size", default=0, type=click.IntRange(0), help="[default: the train prototxt's, or 32]")
@click.option("--iter-size", type=click.IntRange(1), help="Batches whose gradients make one update.  [default: 1]")
@click.option("--optimizer", help="One of Caffe's (SGD, Nesterov, ...) or Chainer's (AdamW, ...).")
@click.option("--lr", type=float, help="Learning rate at the start.  [default: 0.01; 0.001 for Adam and its kin]")
@click.option("--lr-policy", help="fixed, step, exp, inv, multistep, poly, sigmoid or cosine.")
@click.option(
    "--lr-mult",
    "lr_mults",
    multiple=True,
    metavar="PATTERN=FACTOR",
    help="Factor on some layers' rate; repeatable.",
)
@click.option("--gamma", type=float, help="gamma of the learning-rate policy.")
@click.option("--power", type=float, help="power of the learning-rate policy.")
@click.option("--stepsize", type=int, help="stepsize of the learning-rate policy, in iterations.")
@click.option("--stepvalue", multiple=True, type=int, help="Iteration at which multistep lowers the rate; repeatable.")
@click.option("--warmup", default=0, type=click.IntRange(0), help="Iterations over which the rate rises to its start.")
@click.option("--momentum", type=float, help="[default: 0.9, where the optimizer has one]")
@click.option("--weight-decay", type=float, help="[default: 0.0005]")
@click.option("--clip-gradients", type=float, help="Largest norm of all gradients together.")
@click.option("--label-smoothing", default=0.0, type=click.FloatRange(0, 0.99))
@click.option(
    "--class-weights",
    multiple=True,
    metavar="balanced|CLASS=FACTOR",
    help="More weight to rare classes, or to some; repeatable.",
)
@click.option("--patience", default=0, type=click.IntRange(0), help="Epochs without improvement after which to stop.")
@click.option("--last", is_flag=True, help="The model is that of the last epoch, not of the best one.")
@section("From pictures to inputs")
@click.option("--scale", type=float, help="Factor on images, after the mean is subtracted.")
@click.option("--mean", help="Mean: one number, one per channel (b,g,r), or a .binaryproto.")
@click.option("--resize", metavar="H,W", help="Size that pictures are brought to.")
@click.option("--crop", metavar="H,W", help="Size cut out of them.")
@click.option("--mirror/--no-mirror", default=None, help="Flip training images at random.")
@click.option("--swap-channels", is_flag=True, help="Reverse the order of channels first, for arrays that are RGB.")
@click.option(
    "--embed-preprocessing",
    is_flag=True,
    help="model.onnx takes pictures as they are: 8-bit RGB of any size, N x H x W x 3.",
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(0), help="Processes that decode pictures.")
@click.option("--max-bad", default=0, show_default=True, type=click.IntRange(0), help="Unreadable pictures to skip.")
@section("The frozen layers")
@click.option("--cache/--no-cache", default=True, show_default=True, help="Compute the frozen trunk once per image.")
@click.option("--cache-memory", default="1G", show_default=True, help="Features to keep in memory; more go to files.")
@click.option("--cache-dir", default="", type=click.Path(), help="Keep the features there, for later runs.")
@click.option(
    "--augment-cache", default=0, type=click.IntRange(0), metavar="K", help="Augmented versions of each image to cache."
)
@click.option(
    "--trunk-engine",
    type=click.Choice(["auto", "chainer", "onnxruntime"]),
    default="auto",
    show_default=True,
    help="What computes frozen layers; auto is ONNX Runtime where it gives Chainer's features within 1e-5.",
)
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Threads of a matrix product; more round otherwise.",
)
@section("The run and the machine")
@click.option("--snapshot-every", default=0, type=click.IntRange(0), help="Iterations between snapshots.")
@click.option("--device", help="-1 is the CPU; 0 or @cupy:0 a GPU; gpu gives each process its own.  [default: -1]")
@click.option("--half", is_flag=True, help="Store parameters and blobs as float16 (on a GPU).")
@click.option(
    "--communicator",
    default="",
    help="ChainerMN's, under mpiexec: naive, flat, pure_nccl or non_cuda_aware.  [default: naive; on GPUs pure_nccl]",
)
@click.option(
    "--scale-lr", is_flag=True, help="--batch-size is that of each process; the rate grows with their number."
)
@click.option("--seed", type=click.IntRange(0), help="Seed of order, augmentation, dropout and fillers.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[RUN]",
    help="Continue a run: --resume RUN alone, or the whole command with -o RUN --resume.",
)
@click.option("--show-data", is_flag=True, help="Draw pictures as the net sees them into RUN/data.png; no training.")
@click.option("--find-lr", is_flag=True, help="Look for a learning rate, with a curve in RUN/find_lr.png; no training.")
def finetune(files: tuple[str, ...], **given: Any) -> None:
    """Fine-tune a net on new data; writes model.onnx, model.caffemodel, model.npz, log and report.

    Exit status: 0 the model is better than guessing, 1 it is not, 2 it could not be done.
    """
    context = click.get_current_context()
    if given["resume"] and not files and Path(given["resume"]).is_dir():
        _rerun(context)
        return
    files = (*filter(None, [given["resume"]]), *files)  # --resume before FILES took the first of them
    given["resume"] = given["resume"] is not None
    if not given["output"]:
        raise click.UsageError("Missing option '-o' / '--output'.")
    if not given["data"]:
        _from_own_data(files, given)
        return
    if not files:
        raise click.UsageError("Missing argument 'FILES'.")
    if not VOICE.quiet:
        click.echo(printable(f"reading {', '.join(files)}"), err=True)
    from bridge.finetuning import blas

    if given["solver"] and blas.holds_batches(given["data"]):  # a replay of a Caffe run
        blas.exact_arithmetic()  # before NumPy is imported
    from bridge.finetuning.parallel import communicator_for
    from bridge.finetuning.run import execute

    given["communicator"] = given["communicator"] or communicator_for(given["device"] or "")
    with all_or_none(given["communicator"]) as first:
        config = config_of(files, given)
        quiet = VOICE.quiet or not first
        with Progress(quiet or not sys.stderr.isatty(), quiet) as progress:
            listener = Listener(progress.step, progress.note, progress.work, None if quiet else progress.plan)
            if given["show_data"] or given["find_lr"]:
                _look(config, listener, given)
                return
            run = execute(config, listener, lambda folder: write_command(folder, given_words(context)))
    if first:
        found = f", {run.evaluation}" if run.evaluation is not None else ""
        click.echo(f"{config.output}: {run.outcome.iterations} iterations{found}")
        _judge(run.verdict)


def _look(config: Config, listener: Listener, given: dict[str, Any]) -> None:
    """Draw the data, or look for a rate, in place of a run."""
    from bridge.finetuning.looks import find_rate, show_data

    if given["show_data"]:
        found = show_data(config, listener)
        click.echo(f"{found.path}: {found.text}")
    if given["find_lr"]:
        search = find_rate(config, listener)
        best = "no rate made the loss fall" if search.suggestion is None else f"try --lr {search.suggestion:g}"
        click.echo(f"{search.path or config.output}: {len(search.rates)} rates up to {search.rates[-1]:.2g}; {best}")


def _rerun(context: click.Context) -> None:
    """Go on with a run by the command that began it, and by what is given now."""
    folder = os.path.abspath(context.params["resume"])
    now = given_words(context)
    words = [*stored_words(Path(folder)), *now, "-o", folder, "--resume"]
    with finetune.make_context(context.info_name, words, parent=context.parent) as again:
        finetune.invoke(again)


def _judge(verdict: Verdict) -> None:
    """Say what is usually wrong where the model is no better than guessing, and end with status 1."""
    if verdict.learned is not False:
        return
    click.secho(f"bridge: {printable(verdict.text)}", fg="red", err=True)
    for cause in verdict.causes:
        click.echo(printable(f"  - {cause}"), err=True)
    click.get_current_context().exit(1)


_OWN_DATA = {"files", "output", "solver", "resume", "data"}
"""The options that a run from the net's own data layers takes."""


def _from_own_data(files: tuple[str, ...], given: dict[str, Any]) -> None:
    """Train from the data layers of the solver's net."""
    if not given["solver"]:
        raise UsageError("there is no --data", hint="name the data, or a --solver whose net has data layers")
    context = click.get_current_context()
    command_line = click.core.ParameterSource.COMMANDLINE
    others = [name for name in given if name not in _OWN_DATA and context.get_parameter_source(name) == command_line]
    if others:
        flag = f"--{others[0].replace('_', '-')}"
        raise UsageError(f"{flag} needs --data: without, the solver.prototxt and its net say everything")
    from bridge.caffe.training import train
    from bridge.finetuning.parallel import started

    if (number := started()) > 1:
        raise UsageError(f"mpiexec started {number} processes; a run from the net's own data layers has one")
    run = train(given["solver"], files, given["output"], resume=given["resume"])
    for note in run.notes:
        options.note(note)
    outputs = [item for test in run.tests for item in test["outputs"].items()]
    scores = "".join(f", {name} {value:g}" for name, value in outputs if isinstance(value, float))
    click.echo(f"{given['output']}: {run.solver.iter} iterations{scores}")
