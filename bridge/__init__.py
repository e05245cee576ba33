"""Carry trained weights out of Caffe files, and prove that they arrived.

Each name is imported when it is first used, so that ``import bridge`` costs next to nothing. An ``import chainer`` that
comes after it gets the repairs of :mod:`bridge.compat`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import before_import, lazy

__version__ = "0.1.0"

before_import(("chainer", "chainercv", "chainermn", "onnx_chainer"), "bridge.compat", "install")

if TYPE_CHECKING:
    from bridge.caffe_files.inference import inference_net as inference_net
    from bridge.chain import TransplantReport as TransplantReport
    from bridge.chain import build_chain as build_chain
    from bridge.chain import freeze as freeze
    from bridge.chain import from_chain as from_chain
    from bridge.chain import thaw as thaw
    from bridge.chain import transplant as transplant
    from bridge.errors import BridgeError as BridgeError
    from bridge.errors import BudgetError as BudgetError
    from bridge.errors import ChangedError as ChangedError
    from bridge.errors import DifferenceError as DifferenceError
    from bridge.errors import FormatError as FormatError
    from bridge.errors import MissingExtraError as MissingExtraError
    from bridge.errors import MissingFileError as MissingFileError
    from bridge.errors import ModelError as ModelError
    from bridge.errors import NotFoundError as NotFoundError
    from bridge.errors import OutputError as OutputError
    from bridge.errors import UnknownFieldError as UnknownFieldError
    from bridge.errors import UnsupportedLayerError as UnsupportedLayerError
    from bridge.errors import UsageError as UsageError
    from bridge.exporting import export_chain as export_chain
    from bridge.exporting import export_onnx as export_onnx
    from bridge.files.load import load as load
    from bridge.files.writers import save as save
    from bridge.finetuning import Config as Config
    from bridge.finetuning import Listener as Listener
    from bridge.finetuning import Recipe as Recipe
    from bridge.finetuning import classify as classify
    from bridge.finetuning import finetune as finetune
    from bridge.finetuning import read_solver as read_solver
    from bridge.layers import CaffeLayer as CaffeLayer
    from bridge.layers import layer_type as layer_type
    from bridge.layers.plugins import load_plugin as load_plugin
    from bridge.onnx_export import Preprocess as Preprocess
    from bridge.onnx_export import to_onnx as to_onnx
    from bridge.schema import Blob as Blob
    from bridge.schema import Layer as Layer
    from bridge.schema import Net as Net
    from bridge.schema.message import Message as Message
    from bridge.verification import Report as Report
    from bridge.verification import verify as verify
else:
    __all__ = lazy(
        __name__,
        {
            "inference_net": "bridge.caffe_files.inference",
            "TransplantReport": "bridge.chain",
            "build_chain": "bridge.chain",
            "freeze": "bridge.chain",
            "from_chain": "bridge.chain",
            "thaw": "bridge.chain",
            "transplant": "bridge.chain",
            "BridgeError": "bridge.errors",
            "BudgetError": "bridge.errors",
            "ChangedError": "bridge.errors",
            "DifferenceError": "bridge.errors",
            "FormatError": "bridge.errors",
            "MissingExtraError": "bridge.errors",
            "MissingFileError": "bridge.errors",
            "ModelError": "bridge.errors",
            "NotFoundError": "bridge.errors",
            "OutputError": "bridge.errors",
            "UnknownFieldError": "bridge.errors",
            "UnsupportedLayerError": "bridge.errors",
            "UsageError": "bridge.errors",
            "export_chain": "bridge.exporting",
            "export_onnx": "bridge.exporting",
            "load": "bridge.files.load",
            "save": "bridge.files.writers",
            "Config": "bridge.finetuning",
            "Listener": "bridge.finetuning",
            "Recipe": "bridge.finetuning",
            "classify": "bridge.finetuning",
            "finetune": "bridge.finetuning",
            "read_solver": "bridge.finetuning",
            "CaffeLayer": "bridge.layers",
            "layer_type": "bridge.layers",
            "load_plugin": "bridge.layers.plugins",
            "Preprocess": "bridge.onnx_export",
            "to_onnx": "bridge.onnx_export",
            "Blob": "bridge.schema",
            "Layer": "bridge.schema",
            "Net": "bridge.schema",
            "Message": "bridge.schema.message",
            "Report": "bridge.verification",
            "verify": "bridge.verification",
        },
    )
