"""``bridge finetune``: fine-tune a net with Chainer."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridge.cli import manners, options, printable
from bridge.cli.manners import FIRST, VOICE, section
from bridge.cli.progress import Progress
from bridge.errors import BridgeError, FormatError, UsageError

if TYPE_CHECKING:
    from bridge.finetuning import Config, Recipe

_USUAL = {
    "SGD": (0.01, 0.9), "Nesterov": (0.01, 0.9), "AdaGrad": (0.01, 0.0), "RMSProp": (0.001, 0.0),
    "AdaDelta": (1.0, 0.95), "Adam": (0.001, 0.9), "AdamW": (0.001, 0.9), "AMSGrad": (0.001, 0.9),
    "AdaBound": (0.001, 0.9), "AMSBound": (0.001, 0.9), "RMSprop": (0.001, 0.0), "SMORMS3": (0.001, 0.0),
    "RMSpropGraves": (0.0001, 0.9),
}  # fmt: skip
"""Optimizer -> the usual learning rate and momentum; others have those of SGD."""


@manners.command()
@click.argument("files", nargs=-1, metavar="FILES", type=click.Path())
@options.reading
@click.option(
    "--data",
    default="",
    help="A folder per class, .npz with x and y, list of files, or module:function.  [default: with --solver, the data "
    "layers of the solver's net]",
)
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder of the run.")
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
@click.option("--freeze", multiple=True, metavar="PATTERN", help="Layers to freeze, such as 'conv*'; repeatable.")
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
@click.option("--patience", default=0, type=click.IntRange(0), help="Epochs without improvement after which to stop.")
@click.option("--use-best", is_flag=True, help="The model is that of the epoch with the lowest validation loss.")
@section("From pictures to inputs")
@click.option("--scale", type=float, help="Factor on images, after the mean is subtracted.")
@click.option("--mean", help="Mean: one number, one per channel (b,g,r), or a .binaryproto.")
@click.option("--resize", metavar="H,W", help="Size that pictures are brought to.")
@click.option("--crop", metavar="H,W", help="Size cut out of them.")
@click.option("--mirror/--no-mirror", default=None, help="Flip training images at random.")
@click.option("--swap-channels", is_flag=True, help="Reverse the order of channels first, for arrays that are RGB.")
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
@click.option("--device", default=None, help="-1 is the CPU; 0 or @cupy:0 a GPU.  [default: -1]")
@click.option("--half", is_flag=True, help="Store parameters and blobs as float16 (on a GPU).")
@click.option("--communicator", default="", help="ChainerMN's, under mpiexec: naive, pure_nccl, ...")
@click.option("--seed", type=click.IntRange(0), help="Seed of order, augmentation, dropout and fillers.")
@click.option("--resume", is_flag=True, help="Continue the run that is in the folder.")
def finetune(files: tuple[str, ...], **given: Any) -> None:
    """Fine-tune a net on new data; writes model.onnx, model.caffemodel, model.npz, log and report."""
    if not given["data"]:
        _from_own_data(files, given)
        return
    if not files:
        raise click.UsageError("Missing argument 'FILES'.")
    from bridge.finetuning import blas

    if given["solver"] and blas.holds_batches(given["data"]):  # a replay of a Caffe run
        blas.exact_arithmetic()  # before NumPy is imported
    from bridge.finetuning.run import finetune as run_finetune

    with _all_or_none(given["communicator"]) as first:
        config = _config(files, given)
        quiet = VOICE.quiet or not first
        with Progress(quiet or not sys.stderr.isatty(), quiet) as progress:
            run = run_finetune(config, progress.step, progress.note)
    if first:
        found = f", {run.evaluation}" if run.evaluation is not None else ""
        click.echo(f"{config.output}: {run.outcome.iterations} iterations{found}")


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

    run = train(given["solver"], files, given["output"], resume=given["resume"])
    for note in run.notes:
        options.note(note)
    outputs = [item for test in run.tests for item in test["outputs"].items()]
    scores = "".join(f", {name} {value:g}" for name, value in outputs if isinstance(value, float))
    click.echo(f"{given['output']}: {run.solver.iter} iterations{scores}")


@contextlib.contextmanager
def _all_or_none(communicator: str) -> Iterator[bool]:
    """End all processes when one fails, because the others would wait for it for ever.

    Ranks other than 0 wait for a moment before they say their error: rank 0 usually has the same and says it once.

    Yields:
        Whether this is rank 0.
    """
    if not communicator:
        yield True
        return
    from bridge.finetuning.parallel import world

    ranks = world()
    try:
        yield ranks.rank == 0
    except (Exception, KeyboardInterrupt) as error:
        if ranks.rank:
            time.sleep(2)
        text = str(error.args[0]) if isinstance(error, BridgeError) else f"{type(error).__name__}: {error}"
        click.echo(f"bridge: rank {ranks.rank}: {printable(text)}", err=True)
        if isinstance(error, BridgeError) and error.hint:
            click.echo(f"  hint: {printable(error.hint)}", err=True)
        sys.stderr.flush()
        status = 130 if isinstance(error, KeyboardInterrupt) else 2
        ranks.Abort(status)
        os._exit(status)  # MPI may take a moment to end this process, and the error would be said twice


def _config(files: tuple[str, ...], given: dict[str, Any]) -> Config:
    from bridge.finetuning.config import Config

    phase = given["phase"]
    reading = options.reading_arguments(given)
    if phase == "TEST":  # the default; training takes the prototxt's layers for training
        reading.pop("phase", None)
    recipe = _recipe(given)
    files = _with_own_net(files, given["solver"]) if given["solver"] else files
    same = (
        "data", "output", "validation", "validation_share", "root", "heads", "freeze", "unfreeze_at", "batch_size",
        "communicator", "scale", "mean", "mirror", "workers", "max_bad", "cache", "cache_dir", "augment_cache",
        "trunk_engine", "threads", "snapshot_every", "patience", "use_best", "half", "resume",
    )  # fmt: skip
    return Config(
        files=files,
        classes=_class_names(given["class_names"]),
        epochs=given["epochs"] or 10,
        recipe=recipe,
        lr_mult=dict(_factor(text) for text in given["lr_mults"]),
        device=_device(given),
        crop=_pair("--crop", given["crop"]),
        resize=_pair("--resize", given["resize"]),
        swap=given["swap_channels"],
        cache_memory=_bytes(given["cache_memory"]),
        reading=reading,
        **{name: given[name] for name in same},
    )


def _with_own_net(files: tuple[str, ...], solver: str) -> tuple[str, ...]:
    """The files, with the solver's net where they have no prototxt; it must be in the solver's folder or below."""
    from bridge.caffe_files import prototxt
    from bridge.files.readers import split_files
    from bridge.finetuning.recipe import net_of

    wanted, (definition, _) = net_of(prototxt.parse_file(solver)), split_files(files)
    if not wanted:
        return files
    if definition is not None:
        if Path(definition).name != Path(wanted).name:
            options.note(f"the solver's net '{wanted}' is not read: '{definition}' is trained, as it says")
        return files
    folder = Path(solver).resolve().parent
    for path in (folder / wanted, Path(wanted), folder / Path(wanted).name):
        if path.resolve().is_relative_to(folder) and path.is_file():
            return str(path), *files
    raise UsageError(f"there is no net '{wanted}' in {folder} or below", where=solver, hint="give its prototxt")


def _device(given: dict[str, Any]) -> str:
    """The device; with NCCL and none given, each process takes a GPU of its own."""
    from bridge.chain.devices import parse_device

    wanted = given["device"]
    if wanted is None and given["communicator"] == "pure_nccl":
        from bridge.finetuning.parallel import ranks_of

        wanted = str(ranks_of("pure_nccl").local_rank)
    device = parse_device(wanted or "-1")
    if given["half"] and device == "@numpy":
        raise UsageError("--half stores arrays as float16, which takes a GPU", hint="--device 0")
    return device


def _recipe(given: dict[str, Any]) -> Recipe:
    """The solver.prototxt's recipe, or the usual one; flags that were given count more."""
    import dataclasses

    from bridge.caffe_files import prototxt
    from bridge.finetuning.recipe import Recipe, read_solver

    if given["solver"]:
        recipe = read_solver(prototxt.parse_file(given["solver"]))
    else:
        kind = given["optimizer"] or "SGD"
        rate, momentum = _USUAL.get(kind.removeprefix("chainer."), _USUAL["SGD"])
        recipe = Recipe(type=kind, base_lr=rate, momentum=momentum, weight_decay=0.0005)
        if given["lr_policy"] in ("exp", "inv", "sigmoid") and given["gamma"] is None:
            raise UsageError(f"--lr-policy {given['lr_policy']} needs --gamma")
    names = (
        "lr_policy",
        "gamma",
        "power",
        "stepsize",
        "momentum",
        "weight_decay",
        "clip_gradients",
        "iter_size",
        "seed",
    )
    changes = {name: given[name] for name in names if given[name] is not None}
    renamed = {"type": given["optimizer"], "base_lr": given["lr"], "stepvalue": given["stepvalue"] or None}
    changes.update({name: value for name, value in renamed.items() if value is not None})
    if given["epochs"]:
        changes["max_iter"] = 0
    return dataclasses.replace(recipe, warmup=given["warmup"], label_smoothing=given["label_smoothing"], **changes)


def _class_names(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        with open(path, encoding="utf-8-sig") as file:
            names = [line.strip() for line in file.read().rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise FormatError(f"is no text in UTF-8: byte {error.start}", where=path) from None
    for number, name in enumerate(names, 1):
        if not name:
            raise FormatError("is blank", expected="a class's name on each line", where=f"{path}:{number}")
        if name in names[: number - 1]:
            raise FormatError(f"'{name}' is on line {names.index(name) + 1} already", where=f"{path}:{number}")
    return tuple(names)


def _pair(name: str, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) == 1:
        parts *= 2
    if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{name} {text}: expected one positive number, or H,W")
    return int(parts[0]), int(parts[1])


def _factor(text: str) -> tuple[str, float]:
    pattern, _, factor = text.rpartition("=")
    try:
        return pattern, float(factor)
    except ValueError:
        raise UsageError(f"--lr-mult {text}: expected PATTERN=FACTOR") from None


def _bytes(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    unit = text[-1:].upper()
    number = text[:-1] if unit in units else text
    with contextlib.suppress(ValueError, OverflowError):
        size = int(float(number) * units.get(unit, 1))
        if size >= 0:
            return size
    raise UsageError(f"--cache-memory {text}: expected a number of bytes, such as 512M or 4G")
