"""ONNX models that another tool made: converted to an operator set, and to a form that runtimes take."""

from __future__ import annotations

import onnx
from onnx import helper, version_converter

from bridge.errors import ModelError, UnsupportedLayerError, UsageError
from bridge.onnx_export.model import newest_opset

_IR_WITHOUT_INPUTS = 4
"""The first IR version in which an initializer need not be an input."""


def finished(model: onnx.ModelProto, opset: int, oldest: int) -> onnx.ModelProto:
    """The model in the wanted operator set, without weights among its inputs, in the lowest IR version possible.

    Args:
        model: The model; it is changed.
        opset: Version of the default operator set.
        oldest: The lowest that may be asked for.

    Raises:
        UsageError: ``opset`` is out of range.
        UnsupportedLayerError: A node cannot be converted.
        ModelError: The model is not valid ONNX.
    """
    if not oldest <= opset <= newest_opset():
        raise UsageError(f"opset {opset} is outside {oldest} to {newest_opset()}")
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(_IR_WITHOUT_INPUTS, model.ir_version)
    if opset not in (own.version for own in model.opset_import if not own.domain):
        try:
            model = version_converter.convert_version(model, opset)
        except RuntimeError as error:  # what the converter raises for a node that has no equal
            raise UnsupportedLayerError(f"cannot be converted to opset {opset}: {error}") from None
    model.ir_version = max(_IR_WITHOUT_INPUTS, helper.find_min_ir_version_for(list(model.opset_import)))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the export is not valid ONNX: {str(error).splitlines()[0]}") from None
    return model
