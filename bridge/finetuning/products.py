"""The files that a run leaves behind: the model in every format, labels, preprocessing, pictures, a report."""

from __future__ import annotations

import dataclasses
import json
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import bridge
from bridge import engines
from bridge.caffe_files import prototxt
from bridge.caffe_files.inference import inference_net
from bridge.chain.back import from_chain
from bridge.chain.build import build_chain
from bridge.errors import UnsupportedLayerError
from bridge.files.atomic import atomic
from bridge.finetuning.selection import some
from bridge.finetuning.snapshot import put_into
from bridge.onnx_export import Preprocess
from bridge.schema import Net

if TYPE_CHECKING:
    from bridge.finetuning.objective import Objective
    from bridge.finetuning.run import Run

FILES = (
    "deploy.prototxt", "model.caffemodel", "model.npz", "model.onnx", "trained.caffemodel", "best.caffemodel",
    "labels.txt", "preprocess.json", "mean.npy", "use.txt", "log.jsonl", "curves.png", "confusion.png",
    "mistakes.png", "filters.png", "report.html",
)  # fmt: skip
"""All files that a run may leave for its user."""
_ONNX = "ONNX Runtime: model.onnx"
_CLASSES = "the class of each image: labels.txt"
USE = {
    "the images, as the net wants them: preprocess.json": """\
from bridge.finetuning import read_images
images = read_images(".", [{picture!r}])""",
    _ONNX: """\
import onnxruntime
scores = onnxruntime.InferenceSession("model.onnx").run([{output!r}], {{{data!r}: images}})[0]""",
    "Caffe: model.caffemodel": """\
import caffe; net = caffe.Net("deploy.prototxt", "model.caffemodel", caffe.TEST)
scores = net.forward_all(**{{{data!r}: images}})[{output!r}]""",
    "Chainer: model.npz": """\
import bridge; chain = bridge.build_chain(bridge.load("deploy.prototxt")); from chainer import config, serializers
serializers.load_npz("model.npz", chain); config.train = False; scores = chain(images){chosen}.array""",
    _CLASSES: """\
labels = open("labels.txt", encoding="utf-8").read().splitlines()
print([labels[k] for k in scores.reshape(len(images), -1).argmax(axis=1)])""",
}
"""Purpose -> lines of code that use the files; they are run in the run's folder."""
_EMBEDDED = """\
import numpy, onnxruntime; from PIL import Image
pixels = numpy.atleast_3d(Image.open({picture!r}).convert({mode!r}))[None]
scores = onnxruntime.InferenceSession("model.onnx").run([{output!r}], {{{data!r}: pixels}})[0]"""
"""The same for a model that takes pictures as they are."""


@dataclass(frozen=True)
class Products:
    """The files that a run leaves behind.

    Attributes:
        files: Name -> path, such as ``model.onnx``, in the order of writing.
        notes: Remarks for the user, one line each.
    """

    files: Mapping[str, Path]
    notes: tuple[str, ...]


def write_products(run: Run) -> Products:
    """Write everything into the run's folder, each file whole or not at all.

    Raises:
        OutputError: A file cannot be written.
        DifferenceError: The exported model computes something else.
    """
    from bridge.finetuning.report import can_draw, write_report

    folder, objective = run.config.folder, run.plan.objective
    trained = trained_net(run, run.outcome.arrays)
    deploy = deploy_net(trained, objective.data)
    _text(folder / "deploy.prototxt", prototxt.format(deploy.to_message()))
    bridge.save(deploy, folder / "model.caffemodel")
    bridge.save(deploy, folder / "model.npz", format="chainer")
    if objective.scores is not None:
        _text(folder / "labels.txt", "".join(f"{name}\n" for name in class_names(run)))
    _write_preprocessing(run, deploy, folder)
    _text(folder / "use.txt", "\n\n".join(f"# {title}\n{lines}" for title, lines in use(run, deploy).items()) + "\n")
    notes = (
        *_write_trained(trained, deploy, folder),
        *_write_best(run, folder),
        *_write_onnx(run, deploy, folder / "model.onnx"),
        *can_draw(),
    )
    finished = dataclasses.replace(run, products=Products({}, notes))
    write_report(finished, trained, deploy)
    return Products({name: folder / name for name in FILES if (folder / name).exists()}, notes)


def trained_net(run: Run, arrays: Mapping[str, np.ndarray]) -> Net:
    """The run's net with these trained arrays; everything else has the bits that it had."""
    chain = build_chain(run.net, seed=run.config.recipe.seed)
    put_into(chain, arrays)
    return from_chain(chain, run.net)


def deploy_net(trained: Net, data: str) -> Net:
    """The trained net in its form for inference, one image at a time."""
    net = inference_net(trained)
    shape = trained.inputs[data] or ()
    return net.with_input_shapes({data: (1, *shape[1:])})


def _write_trained(trained: Net, deploy: Net, folder: Path) -> list[str]:
    """Write the net as it was trained, where the deployed one lacks layers with blobs; returns remarks."""
    deployed = {layer.name for layer in deploy.layers}
    more = [layer.name for layer in trained.layers if layer.blobs and layer.name not in deployed]
    if not more:
        return []
    bridge.save(trained, folder / "trained.caffemodel")
    return [f"trained.caffemodel also holds layers for training only, such as auxiliary heads: {some(more)}"]


def _write_best(run: Run, folder: Path) -> list[str]:
    """Write the best epoch's model, where it is not the model itself; returns remarks."""
    outcome = run.outcome
    if outcome.best_loss is None:
        return []
    if not run.config.last:
        last = outcome.history[-1]["epoch"] if outcome.history else outcome.best_epoch
        which = (
            f"the model is that of epoch {outcome.best_epoch + 1}, the best of {last + 1}; --last takes the last one's"
        )
        return [which] if outcome.best_epoch < last else []
    if not outcome.best:
        return []
    bridge.save(deploy_net(trained_net(run, outcome.best), run.plan.objective.data), folder / "best.caffemodel")
    return [
        f"the best epoch was {outcome.best_epoch + 1}, with a validation loss of {outcome.best_loss:.4f}: "
        "best.caffemodel; --resume without --last makes all files of it"
    ]


def _write_onnx(run: Run, deploy: Net, path: Path) -> list[str]:
    """Export the model; returns remarks."""
    checked = engines.missing("onnxruntime") is None
    embedded = embedded_preprocessing(run) if run.config.embed_preprocessing else None
    try:
        graph = bridge.export_onnx(deploy, path, check=checked, preprocess=embedded)
    except UnsupportedLayerError as error:
        return [f"there is no model.onnx: {error.args[0]}"]
    unchecked = [] if checked else ["it was not checked, because onnxruntime is not installed"]
    return [f"model.onnx: {note}" for note in (*graph.notes, *unchecked)]


def embedded_preprocessing(run: Run) -> Preprocess:
    """What the model does first, so that it takes pictures as they are, or arrays as those of the data.

    Pictures are uint8 (N, H, W, C), RGB or grey, of any height and width.
    """
    preprocess, x = run.preprocess, run.train.x
    same: dict[str, Any] = {"mean": preprocess.mean, "scale": preprocess.scale, "crop": preprocess.crop, "smooth": True}
    if not run.train.names:
        size = tuple(x.shape[-2:]) if preprocess.crop else None
        return Preprocess(swap_channels=preprocess.swap, uint8=x.dtype == np.uint8, resize=size, **same)
    swap = x.shape[-3] == 3 and not preprocess.swap
    return Preprocess(swap_channels=swap, uint8=True, input_layout="nhwc", resize=run.resize, **same)


def output_of(objective: Objective, deploy: Net) -> str:
    """The deployed net's output of class scores: their Softmax, or themselves; else its first output."""
    trained = objective.scores
    halves = [layer.tops[0] for layer in deploy.layers if layer.probabilities and trained in layer.bottoms]
    found = [name for name in (*halves, trained) if name in deploy.outputs]
    return [*found, *deploy.outputs][0]


def class_names(run: Run) -> list[str]:
    """The name of each class, one line each; its number where it has no name."""
    known = [_one_line(name) for name in run.train.classes]
    return known + [str(number) for number in range(len(known), run.plan.objective.classes)]


def use(run: Run, deploy: Net) -> dict[str, str]:
    """Purpose -> lines of code that use the files."""
    objective = run.plan.objective
    output = output_of(objective, deploy)
    names = {
        "data": objective.data,
        "output": output,
        "chosen": f"[{output!r}]" if len(deploy.outputs) > 1 else "",
        "mode": "L" if run.train.x.shape[-3] == 1 else "RGB",
        "picture": os.path.abspath(run.train.names[0]) if run.train.names else "picture.jpg",
    }
    wanted = {title: lines for title, lines in USE.items() if title != _CLASSES or objective.scores is not None}
    if run.config.embed_preprocessing and run.train.names:
        wanted[_ONNX] = _EMBEDDED
    return {title: lines.format(**names) for title, lines in wanted.items()}


def _one_line(name: str) -> str:
    """A name without characters that end a line or that no text file can hold; escapes stand for them."""
    escaped = ("Cc", "Cs", "Zl", "Zp")  # controls, halves of characters, ends of lines and of paragraphs
    return "".join(repr(char)[1:-1] if unicodedata.category(char) in escaped else char for char in name)


def _write_preprocessing(run: Run, deploy: Net, folder: Path) -> None:
    """``preprocess.json``, and ``mean.npy`` where the mean is an image."""
    channels, height, width = (run.net.inputs[run.plan.objective.data] or ())[1:]
    settings: dict[str, Any] = {
        "input": run.plan.objective.data,
        "output": output_of(run.plan.objective, deploy),
        "shape": [channels, height, width],
        "channel_order": "grey" if channels == 1 else "RGB" if run.preprocess.swap else "BGR",
        "resize": list(run.resize),
        **run.preprocess.to_json(),
    }
    if run.preprocess.mean.ndim == 3:
        settings["mean"] = "mean.npy"
        with atomic(folder / "mean.npy") as file:
            np.save(file, run.preprocess.mean)
    _text(folder / "preprocess.json", json.dumps(settings, indent=2) + "\n")


def _text(path: Path, text: str) -> None:
    with atomic(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # a file's name may be no text
