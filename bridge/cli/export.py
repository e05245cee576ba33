"""``bridge export``: a net as ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bridge.cli import manners, options
from bridge.cli.manners import section

if TYPE_CHECKING:
    from bridge.onnx_export.preprocess import Preprocess


@manners.command()
@options.files
@options.reading
@click.option("-o", "path", required=True, type=click.Path(), metavar="FILE", help="The ONNX file to write.")
@options.selecting
@click.option("--opset", type=int, default=None, help="Operator set, 13 to the newest; 17 by default.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=1,3,224,224",
    help="Extents of an input; a name leaves an extent open.",
)
@click.option(
    "--dynamic-batch/--static",
    default=True,
    show_default=True,
    help="Leave the batch size, height and width open where the net allows.",
)
@click.option(
    "--target",
    type=click.Choice(["onnxruntime", "opencv5", "opencv4", "openvino", "tensorrt"]),
    help="The runtime that the model is for.  [default: what most runtimes take]",
)
@click.option(
    "--external-data",
    is_flag=False,
    flag_value="file",
    type=click.Choice(["file", "source"]),
    help="Store the weights in a file beside the model, or with =source refer to the caffemodel.",
)
@click.option("--fp16", "--half", "half", is_flag=True, help="Compute in float16; inputs and outputs stay float32.")
@section("Preprocessing as part of the model")
@click.option("--mean", default=None, help="Subtract this mean first: b,g,r or one number, or a .binaryproto or .npy.")
@click.option("--scale", default=1.0, help="Multiply by this after the mean is subtracted.")
@click.option(
    "--swap-channels",
    "--bgr",
    "swap_channels",
    is_flag=True,
    help="Reverse the channels: RGB images for a net trained on BGR, or the other way round.",
)
@click.option(
    "--input-layout",
    type=click.Choice(["nchw", "nhwc"]),
    default="nchw",
    show_default=True,
    help="Axes of the image that the model takes; OpenCV holds images as nhwc.",
)
@click.option("--uint8", is_flag=True, help="The model takes 8-bit pixels, 0 to 255.")
@click.option("--resize", metavar="H,W", help="The model takes images of any size, and resizes them (bilinear).")
@section("The model and its check")
@click.option(
    "--allow-custom", is_flag=True, help="Write what standard ONNX cannot express as nodes of org.weightbridge."
)
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Run the model and compare with a second engine."
)
@click.option("--recorded", type=click.Path(), metavar="IO.npz", help="Recorded inputs and outputs to compare with.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the random inputs of the check."
)
@click.option(
    "--digest/--no-digest",
    default=None,
    help="Store the SHA-256 of FILES in the metadata.  [default: if the model is checked]",
)
def export(files: tuple[str, ...], path: str, inputs: tuple[str, ...], opset: int | None, **given: Any) -> None:
    """Write a net as ONNX, checked by default."""
    from bridge.exporting import export_onnx

    targets = [path, f"{path}.data" if given["external_data"] == "file" else None]
    options.guard([*files, given["recorded"], given["mean"]], targets)
    net = options.load_net(files, given)
    for remark in net.notes:  # before an error can hide them
        options.note(remark)
    graph = export_onnx(
        net,
        path,
        opset=opset,
        inputs=options.input_shapes(inputs),
        outputs=options.output_blobs(given["outputs"], net),
        dynamic_batch=given["dynamic_batch"],
        target=given["target"] or "",
        allow_custom=given["allow_custom"],
        preprocess=_preprocess(given),
        half=given["half"],
        external_data=given["external_data"],
        check=given["check"],
        recorded=given["recorded"],
        seed=given["seed"],
        digest=given["digest"],
    )
    for remark in graph.notes:
        options.note(remark)
    size = sum(init.nbytes for init in graph.builder.initializers.values())
    click.echo(f"{path}: {len(graph.builder.nodes)} nodes, {size:,} bytes of weights, opset {graph.builder.opset}")


def _preprocess(given: dict[str, Any]) -> Preprocess:
    from bridge.onnx_export.preprocess import Preprocess

    return Preprocess(
        mean=options.mean(given["mean"]),
        scale=given["scale"],
        swap_channels=given["swap_channels"],
        input_layout=given["input_layout"],
        uint8=given["uint8"],
        resize=options.height_width(given["resize"]),
    )
