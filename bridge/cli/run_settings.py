"""The settings of a run, from the options of ``bridge finetune``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.cli import options
from bridge.errors import FormatError, UsageError

if TYPE_CHECKING:
    from bridge.finetuning import Config, Recipe

_USUAL = {
    "SGD": (0.01, 0.9), "Nesterov": (0.01, 0.9), "AdaGrad": (0.01, 0.0), "RMSProp": (0.001, 0.0),
    "AdaDelta": (1.0, 0.95), "Adam": (0.001, 0.9), "AdamW": (0.001, 0.9), "AMSGrad": (0.001, 0.9),
    "AdaBound": (0.001, 0.9), "AMSBound": (0.001, 0.9), "RMSprop": (0.001, 0.0), "SMORMS3": (0.001, 0.0),
    "RMSpropGraves": (0.0001, 0.9),
}  # fmt: skip
"""Optimizer -> the usual learning rate and momentum; others have those of SGD."""


def config_of(files: tuple[str, ...], given: dict[str, Any]) -> Config:
    """The settings that the options make."""
    from bridge.finetuning.config import Config

    phase = given["phase"]
    reading = options.reading_arguments(given)
    if phase == "TEST":  # the default; training takes the prototxt's layers for training
        reading.pop("phase", None)
    recipe = _recipe(given)
    files = _with_own_net(files, given["solver"]) if given["solver"] else files
    same = (
        "data", "output", "validation", "validation_share", "root", "heads", "freeze", "freeze_exactly", "train",
        "train_head", "unfreeze_at", "batch_size", "communicator", "scale_lr", "scale", "mean", "mirror", "workers",
        "max_bad", "cache", "cache_dir", "augment_cache", "trunk_engine", "threads", "snapshot_every", "patience",
        "last", "half", "resume", "embed_preprocessing",
    )  # fmt: skip
    return Config(
        files=files,
        classes=_class_names(given["class_names"]),
        epochs=given["epochs"] or 10,
        recipe=recipe,
        class_weights=_weights(given["class_weights"]),
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
    from bridge.finetuning.parallel import place_on_machine

    rank, size = place_on_machine() if given["communicator"] else (0, 1)
    usual = "gpu" if given["communicator"] == "pure_nccl" else "-1"
    device = parse_device(given["device"] or usual, local_rank=rank, local_size=size)
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


def _weights(texts: tuple[str, ...]) -> dict[str, float] | str:
    if texts in ((), ("balanced",)):
        return "".join(texts)
    try:
        pairs = [(name, float(factor)) for name, _, factor in (text.rpartition("=") for text in texts)]
        if all(name and 0 < factor < float("inf") for name, factor in pairs):
            return dict(pairs)
    except ValueError:
        pass
    raise UsageError(f"--class-weights {' '.join(texts)}: expected balanced, or CLASS=FACTOR with positive factors")


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
