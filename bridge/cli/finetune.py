"""``bridge finetune``: fine-tune a net with Chainer."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click

from bridge.cli import options
from bridge.errors import UsageError


@click.command()
@options.files
@options.reading
@click.option("--data", required=True, help="A folder per class, an .npz with x and y, a list file, or module:function.")
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder of the run.")
@click.option("--validation", default="", help="Validation data; else a share of --data.")
@click.option("--validation-share", default=0.1, show_default=True, type=click.FloatRange(0, 0.9))
@click.option("--head", "heads", multiple=True, metavar="LAYER=[NAME:]10", help="New outputs for a layer; may be repeated.")
@click.option("--freeze", multiple=True, metavar="PATTERN", help="Layers that stay as they are, such as 'conv*'.")
@click.option("--unfreeze-at", default=-1, metavar="EPOCH", help="When frozen layers start to learn.")
@click.option("--solver", type=click.Path(), help="A Caffe solver.prototxt as the recipe.")
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1))
@click.option("--optimizer", default=None, help="Caffe's SGD, Nesterov, AdaGrad, RMSProp, AdaDelta, Adam, or one of Chainer's.")
@click.option("--lr", default=None, type=float, help="Learning rate at the start.  [default: 0.01]")
@click.option("--lr-policy", default=None, help="fixed, step, exp, inv, multistep, poly, sigmoid or cosine.")
@click.option("--lr-mult", "lr_mults", multiple=True, metavar="PATTERN=FACTOR", help="A factor on some layers' rate.")
@click.option("--gamma", default=None, type=float, help="For the policy.")
@click.option("--power", default=None, type=float, help="For the policy.")
@click.option("--stepsize", default=None, type=int, help="For the policy, in iterations.")
@click.option("--stepvalue", multiple=True, type=int, help="For multistep; may be repeated.")
@click.option("--warmup", default=0, type=click.IntRange(0), help="Iterations over which the rate rises to the policy's.")
@click.option("--momentum", default=None, type=float, help="[default: 0.9]")
@click.option("--weight-decay", default=None, type=float, help="[default: 0.0005]")
@click.option("--clip-gradients", default=None, type=float, help="Largest norm of all gradients together.")
@click.option("--label-smoothing", default=0.0, type=click.FloatRange(0, 0.99))
@click.option("--patience", default=0, type=click.IntRange(0), help="Stop after so many epochs without improvement.")
@click.option("--scale", type=float, default=None, help="Factor on images, after the mean.")
@click.option("--mean", default=None, help="Mean: one number, one per channel (b,g,r), or a .binaryproto.")
@click.option("--resize", default=None, metavar="H,W", help="Size that pictures are brought to.")
@click.option("--crop", default=None, metavar="H,W", help="Size cut out of them.")
@click.option("--mirror/--no-mirror", default=None, help="Flip training images at random.")
@click.option("--swap-channels", is_flag=True, help="Turn channels round first, for arrays that are RGB.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(0), help="Processes that decode pictures.")
@click.option("--max-bad", default=0, show_default=True, type=click.IntRange(0), help="Unreadable pictures to skip at most.")
@click.option("--cache/--no-cache", default=True, show_default=True, help="Compute the frozen trunk once per image.")
@click.option("--cache-memory", default="1G", show_default=True, help="Features to keep in memory; more go to a file.")
@click.option("--cache-dir", default="", type=click.Path(), help="Folder of such files, shared between runs.")
@click.option("--augment-cache", default=0, type=click.IntRange(0), help="Draws of each augmented image to cache.")
@click.option("--trunk-engine", type=click.Choice(["auto", "chainer", "onnxruntime"]), default="auto", show_default=True)
@click.option("--snapshot-every", default=0, type=click.IntRange(0), help="Iterations between snapshots, beside epochs.")
@click.option("--device", default="-1", show_default=True, help="-1 is the CPU; 0 or @cupy:0 a GPU.")
@click.option("--seed", default=None, type=click.IntRange(0), help="For order, augmentation, dropout and fillers.")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no remarks.")
def finetune(files: tuple[str, ...], **given: Any) -> None:
    """Fine-tune a net on new data; writes model.onnx, model.caffemodel, model.npz, log and report."""
    from bridge.finetune.run import finetune as run_finetune

    config = _config(files, given)
    quiet = given["quiet"]
    with Progress(quiet or not sys.stderr.isatty()) as progress:
        run = run_finetune(config, progress.step, (lambda note: None) if quiet else progress.note)
    state = run.loop.state
    best = f", best validation loss {state['best']:.4f} in epoch {state['best_epoch'] + 1}" if state["best"] is not None else ""
    click.echo(f"{config.output}: {state['iteration']} iterations{best}")


def _config(files: tuple[str, ...], given: dict[str, Any]) -> Any:
    from bridge.devices import parse_device
    from bridge.finetune.config import Config

    phase = given["phase"]
    reading = options.reading_arguments(given)
    if phase == "TEST":  # the default; training takes the prototxt's layers for training
        reading.pop("phase", None)
    return Config(
        files=files,
        data=given["data"],
        output=given["output"],
        validation=given["validation"],
        validation_share=given["validation_share"],
        heads=given["heads"],
        freeze=given["freeze"],
        unfreeze_at=given["unfreeze_at"],
        epochs=given["epochs"],
        batch_size=given["batch_size"],
        recipe=_recipe(given),
        lr_mult=dict(_factor(text) for text in given["lr_mults"]),
        device=parse_device(given["device"]),
        scale=given["scale"],
        mean=given["mean"],
        crop=_pair("--crop", given["crop"]),
        resize=_pair("--resize", given["resize"]),
        mirror=given["mirror"],
        swap=given["swap_channels"],
        workers=given["workers"],
        max_bad=given["max_bad"],
        cache=given["cache"],
        cache_memory=_bytes(given["cache_memory"]),
        cache_dir=given["cache_dir"],
        augment_cache=given["augment_cache"],
        trunk_engine=given["trunk_engine"],
        snapshot_every=given["snapshot_every"],
        patience=given["patience"],
        resume=given["resume"],
        reading=reading,
    )


def _recipe(given: dict[str, Any]) -> Any:
    """The solver.prototxt's recipe, or our defaults; flags that were given count more."""
    from bridge import prototxt
    from bridge.finetune.recipe import Recipe, read_solver

    if given["solver"]:
        recipe = read_solver(prototxt.parse_file(given["solver"]))
    else:
        recipe = Recipe(momentum=0.9, weight_decay=0.0005)
    names = ("lr_policy", "gamma", "power", "stepsize", "momentum", "weight_decay", "clip_gradients", "seed")
    changes = {name: given[name] for name in names if given[name] is not None}
    renamed = {"type": given["optimizer"], "base_lr": given["lr"], "stepvalue": given["stepvalue"] or None}
    changes.update({name: value for name, value in renamed.items() if value is not None})
    return dataclasses.replace(recipe, warmup=given["warmup"], label_smoothing=given["label_smoothing"], **changes)


def _pair(name: str, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) == 1:
        parts *= 2
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
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
    try:
        return int(float(number) * units.get(unit, 1))
    except ValueError:
        raise UsageError(f"--cache-memory {text}: expected a number of bytes, such as 512M or 4G") from None


class Progress:
    """A progress bar on stderr; nothing where stderr is no terminal."""

    def __init__(self, hidden: bool) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._hidden = hidden

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """A remark; above the bar where there is one."""
        options.note(text)

    def step(self, record: dict[str, Any]) -> None:
        """Move the bar by a step."""
        if self._hidden:
            return
        if self._bar is None or record["iteration"] == 0:
            self._start(record)
        rate = record["images"] / max(record["seconds"], 1e-9)
        text = f"loss {record['loss']:.4f}  accuracy {record['accuracy']:.3f}  {rate:,.0f} images/s"
        self._bar.update(self._task, completed=record["iteration"] + 1, description=text)

    def _start(self, record: dict[str, Any]) -> None:
        self.__exit__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=Console(stderr=True))
        self._bar.start()
        self._task = self._bar.add_task("", total=record["iterations"], completed=record["iteration"])


