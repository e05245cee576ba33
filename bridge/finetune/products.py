"""What a run leaves behind: the model in every format, labels, preprocessing, pictures, a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bridge
from bridge import prototxt
from bridge.chain.back import from_chain
from bridge.inference import inference_net
from bridge.schema import Net
from bridge.writers import atomic

if TYPE_CHECKING:
    from bridge.finetune.run import Run

USE = """\
import onnxruntime as ort
scores = ort.InferenceSession("model.onnx").run(None, {"%(data)s": images})[0]

import caffe
net = caffe.Net("deploy.prototxt", "model.caffemodel", caffe.TEST)

import bridge, chainer
chain = bridge.build_chain(bridge.load("deploy.prototxt", "model.caffemodel"))
"""


def write_products(run: Run) -> None:
    """Write everything into the run's folder, each file whole or not at all."""
    folder = run.config.folder
    trained = from_chain(run.chain, run.net)
    deploy = deploy_net(trained, run.loop.objective.data)
    _text(folder / "deploy.prototxt", prototxt.format(deploy.to_message()))
    bridge.save(deploy, folder / "model.caffemodel")
    bridge.save(deploy, folder / "model.npz", format="chainer")
    graph = bridge.export_onnx(deploy, folder / "model.onnx")
    run.notes += [f"model.onnx: {note}" for note in graph.notes]
    _text(folder / "labels.txt", "".join(f"{name}\n" for name in class_names(run)))
    _text(folder / "preprocess.json", json.dumps(preprocessing(run), indent=2) + "\n")
    _text(folder / "use.txt", USE % {"data": run.loop.objective.data})
    from bridge.finetune.report import write_report

    write_report(run, trained)


def deploy_net(trained: Net, data: str) -> Net:
    """The trained net in its form for inference, one image at a time."""
    net = inference_net(trained)
    shape = trained.inputs[data] or ()
    return net.with_input_shapes({data: (1, *shape[1:])})


def class_names(run: Run) -> list[str]:
    """The classes' names, or their numbers where the data has no names."""
    return list(run.train.classes) or [str(n) for n in range(int(run.train.y.max()) + 1)]


def preprocessing(run: Run) -> dict[str, Any]:
    """What has to be done to an image before the net sees it."""
    _, channels, height, width = run.net.inputs[run.loop.objective.data] or (0, 0, 0, 0)
    size = run.config.resize or (height, width)
    return {
        "input": run.loop.objective.data,
        "channels": channels,
        "channel_order": "BGR" if channels == 3 else "as given",
        "resize": list(size),
        **run.preprocess.to_json(),
    }


def _text(path: Path, text: str) -> None:
    with atomic(path) as file:
        file.write(text.encode())
