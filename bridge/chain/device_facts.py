"""What a machine has for training on a GPU: driver, CuPy, runtime, cuDNN and NCCL, and whether they compute right."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import sys
from typing import Any, NamedTuple

import numpy as np

from bridge.chain.devices import cuda_problem, gpu_hint, missing_libraries, scope, to_host
from bridge.compat.cuda_parts import quiet

_DRIVERS = {"win32": "nvcuda.dll"}
_WHEELS = " ".join(
    f"nvidia-{name}-cu12"
    for name in ("cublas", "cuda-nvrtc", "cuda-runtime", "cufft", "curand", "cusolver", "cusparse")
)
_PACKAGES = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")
_NET = """
input: "data" input_shape { dim: 4 dim: 3 dim: 12 dim: 12 } input: "label" input_shape { dim: 4 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "norm" type: "LRN" bottom: "conv" top: "norm" }
layer { name: "pool" type: "Pooling" bottom: "norm" top: "pool" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""


class Fact(NamedTuple):
    """One thing that a GPU needs.

    Attributes:
        name: Such as ``driver``.
        found: What is there, such as ``CUDA 12.4``; empty where nothing is.
        problem: Why it does not serve; empty where it does.
        hint: How to get it.
    """

    name: str
    found: str
    problem: str = ""
    hint: str = ""


def gpu_facts() -> list[Fact]:
    """Driver, CuPy, runtime, cuDNN and NCCL, in this order; what needs CuPy is left out where it does not import."""
    facts = [_driver()]
    if importlib.util.find_spec("cupy") is None:
        return [*facts, Fact("cupy", "", "is not installed", gpu_hint())]
    installed = [name for name in _PACKAGES if _version(name)]
    if len(installed) > 1:
        hint = f"pip uninstall {' '.join(installed)}, then install one of them"
        facts.append(Fact("cupy", ", ".join(installed), "several packages of CuPy overwrite each other", hint))
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        return [*facts, Fact("cupy", "", f"does not import: {str(error).splitlines()[0]}", gpu_hint())]
    facts.append(Fact("cupy", cupy.__version__))
    if not cuda_problem():
        facts.append(Fact("runtime", _cuda_version(cupy.cuda.runtime.runtimeGetVersion())))
    if not facts[0].problem and (missing := missing_libraries()):
        hint = f"CUDA's toolkit, or pip install {_WHEELS}; for CUDA 13 pip install 'cupy-cuda13x[ctk]'"
        facts.append(Fact("libraries", "", f"CuPy does not load {', '.join(missing)}", hint))
    return [*facts, _cudnn(cupy), _nccl()]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _driver() -> Fact:
    """The driver, asked without CuPy: its library is there where the driver is installed."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL(_DRIVERS.get(sys.platform, "libcuda.so.1")).cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        hint = "a driver from nvidia.com/drivers or the system's packages; in a container, start it with --gpus all"
        return Fact("driver", "", "there is no NVIDIA driver", hint)
    return Fact("driver", _cuda_version(version.value))


def _cuda_version(number: int) -> str:
    """For example, 12040 is CUDA 12.4."""
    return f"CUDA {number // 1000}.{number % 1000 // 10}"


def _cudnn(cupy: Any) -> Fact:
    if int(cupy.__version__.split(".")[0]) >= 14:
        hint = "pip install 'cupy-cuda12x<14' nvidia-cudnn-cu12==8.9.7.29, for faster convolutions in less memory"
        return Fact("cudnn", "", "CuPy 14 does not use it: convolutions go through cuBLAS", hint)
    try:
        version = quiet("cupy.cuda.cudnn").getVersion()
    except (ImportError, AttributeError, RuntimeError) as error:
        problem = f"CuPy does not load it: {str(error).splitlines()[0]}"
        return Fact("cudnn", "", problem, "pip install nvidia-cudnn-cu12==8.9.7.29")
    return Fact("cudnn", f"{version // 1000}.{version % 1000 // 100}.{version % 100}")


def _nccl() -> Fact:
    try:
        version = quiet("cupy.cuda.nccl").get_version()
    except (ImportError, AttributeError, RuntimeError):
        hint = "pip install nvidia-nccl-cu12 (nvidia-nccl-cu13 for CUDA 13), for several GPUs"
        return Fact("nccl", "", "CuPy does not load it", hint)
    return Fact("nccl", str(version))


def step_differences(device: str) -> dict[str, float]:
    """Train a small net for one step on a device and with NumPy, and compare.

    Args:
        device: Chainer's name of the device.

    Returns:
        The largest difference of the loss, of a gradient and of an updated parameter, each relative to the largest
        value of its array and at least to 1e-3.
    """
    expected, found = _step("@numpy"), _step(device)
    worst = dict.fromkeys(("loss", "gradient", "parameter"), 0.0)
    for (kind, name), own in expected.items():
        scale = max(1e-3, float(np.abs(own).max()))
        worst[kind] = max(worst[kind], float(np.abs(found[kind, name] - own).max()) / scale)
    return worst


def _step(device: str) -> dict[tuple[str, str], np.ndarray]:
    """Loss, gradients and parameters of one step, by kind and name."""
    from bridge.caffe_files import prototxt
    from bridge.caffe_files.assemble import assemble
    from bridge.chain.build import build_chain
    from bridge.chain.functions import chainer

    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (4, 3, 12, 12)).astype(np.float32)
    chain = build_chain(assemble(None, prototxt.parse(_NET)), seed=1)
    with scope(device):
        chain.to_device(device)
        optimizer = chainer.optimizers.MomentumSGD(0.1).setup(chain)
        inputs = {"data": chain.xp.asarray(x), "label": chain.xp.arange(4, dtype=np.float32)}
        loss = chain.loss(inputs)
        chain.cleargrads()
        loss.backward()
        found = {("loss", ""): to_host(loss.array)}
        found.update((("gradient", name), to_host(param.grad).copy()) for name, param in chain.namedparams())
        optimizer.update()
        found.update((("parameter", name), to_host(param.array)) for name, param in chain.namedparams())
    return found
