"""What a run leaves behind: the model in every format, labels, preprocessing, pictures, a report."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Mapping
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
from bridge.finetuning.snapshot import put_into
from bridge.schema import Net

if TYPE_CHECKING:
    from bridge.finetuning.objective import Objective
    from bridge.finetuning.run import Run

_CLASSES = "the class of each image: labels.txt"
USE = {
    "the images, as the net wants them: preprocess.json": """\
from bridge.finetuning import read_images
images = read_images(".", [{picture!r}])""",
    "ONNX Runtime: model.onnx": """\
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
"""What to do with what: two lines each, run in the run's folder."""


def write_products(run: Run, arrays: Mapping[str, np.ndarray]) -> None:
    """Write everything into the run's folder, each file whole or not at all.

    Args:
        run: The run.
        arrays: What was trained, of that model.

    Raises:
        OutputError: A file cannot be written.
        DifferenceError: The exported model computes something else.
    """
    folder = run.config.folder
    trained = trained_net(run, arrays)
    deploy = deploy_net(trained, run.loop.objective.data)
    _text(folder / "deploy.prototxt", prototxt.format(deploy.to_message()))
    bridge.save(deploy, folder / "model.caffemodel")
    bridge.save(deploy, folder / "model.npz", format="chainer")
    if run.loop.objective.scores is not None:
        _text(folder / "labels.txt", "".join(f"{name}\n" for name in class_names(run)))
    _write_preprocessing(run, deploy, folder)
    _text(folder / "use.txt", "\n\n".join(f"# {title}\n{lines}" for title, lines in use(run, deploy).items()) + "\n")
    _write_best(run, folder)
    run.notes += _write_onnx(deploy, folder / "model.onnx")
    from bridge.finetuning.report import write_report

    write_report(run, trained, deploy)


def trained_net(run: Run, arrays: Mapping[str, np.ndarray]) -> Net:
    """The run's net with these arrays; what was not trained has the bits that it had."""
    chain = build_chain(run.net, seed=run.config.recipe.seed)
    put_into(chain, arrays)
    return from_chain(chain, run.net)


def deploy_net(trained: Net, data: str) -> Net:
    """The trained net in its form for inference, one image at a time."""
    net = inference_net(trained)
    shape = trained.inputs[data] or ()
    return net.with_input_shapes({data: (1, *shape[1:])})


def _write_best(run: Run, folder: Path) -> None:
    """The best epoch's model, where the last one's is another."""
    loop = run.loop
    if run.config.use_best or not loop.best or loop.state.best_epoch < 0 or loop.best_is_last():
        return
    bridge.save(deploy_net(trained_net(run, loop.best), loop.objective.data), folder / "best.caffemodel")
    run.notes.append(
        f"the validation loss was lowest after epoch {loop.state.best_epoch + 1}, {loop.state.best:.4f}: "
        "best.caffemodel; --use-best --resume makes all files of it"
    )


def _write_onnx(deploy: Net, path: Path) -> list[str]:
    """Export the model; returns remarks."""
    checked = engines.missing("onnxruntime") is None
    try:
        graph = bridge.export_onnx(deploy, path, check=checked)
    except UnsupportedLayerError as error:
        return [f"there is no model.onnx: {error.args[0]}"]
    unchecked = [] if checked else ["it was not checked, for onnxruntime is not installed"]
    return [f"model.onnx: {note}" for note in (*graph.notes, *unchecked)]


def output_of(objective: Objective, deploy: Net) -> str:
    """The deployed net's output of class scores, where it has them: the Softmax of what is trained, or that itself."""
    trained = objective.scores
    halves = [layer.tops[0] for layer in deploy.layers if layer.type == "Softmax" and trained in layer.bottoms]
    found = [name for name in (*halves, trained) if name in deploy.outputs]
    return [*found, *deploy.outputs][0]


def class_names(run: Run) -> list[str]:
    """The name of each class, on one line; the number of one that has none."""
    known = [_one_line(name) for name in run.train.classes]
    return known + [str(number) for number in range(len(known), run.loop.objective.classes)]


def use(run: Run, deploy: Net) -> dict[str, str]:
    """Lines of code that use the files, by what they are for."""
    objective = run.loop.objective
    output = output_of(objective, deploy)
    names = {
        "data": objective.data,
        "output": output,
        "chosen": f"[{output!r}]" if len(deploy.outputs) > 1 else "",
        "picture": os.path.abspath(run.train.names[0]) if run.train.names else "picture.jpg",
    }
    wanted = {title: lines for title, lines in USE.items() if title != _CLASSES or objective.scores is not None}
    return {title: lines.format(**names) for title, lines in wanted.items()}


def _one_line(name: str) -> str:
    """A name from a folder, with escapes for what no text file holds and what would end a line."""
    odd = ("Cc", "Cs", "Zl", "Zp")  # controls, halves of characters, ends of lines and of paragraphs
    return "".join(repr(char)[1:-1] if unicodedata.category(char) in odd else char for char in name)


def _write_preprocessing(run: Run, deploy: Net, folder: Path) -> None:
    """``preprocess.json``, and ``mean.npy`` where the mean is an image."""
    channels, height, width = (run.net.inputs[run.loop.objective.data] or ())[1:]
    settings: dict[str, Any] = {
        "input": run.loop.objective.data,
        "output": output_of(run.loop.objective, deploy),
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
