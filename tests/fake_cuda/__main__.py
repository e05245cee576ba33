"""Layers, update rules and runs on the real CuPy, without a device: ``python -m tests.fake_cuda [--quick]``.

Prints, as JSON, what failed, and how many sources CuPy compiled on the way; each is compiled for each kind of GPU.
"""

from __future__ import annotations

import copy
import ctypes
import json
import resource
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fake_cuda import SOURCES, install, nvrtc

CAPABILITIES = ("70", "75", "80", "86", "89", "90")
QUICK = ("Convolution", "Dropout", "InnerProduct", "LRN", "Pooling", "SoftmaxWithLoss", "BatchNorm")
_MEMORY = 6 << 30
"""Bytes: a number of values that no kernel computed may be large."""
FAILED: dict[str, str] = {}
DEVICE = "@cupy:1"  # not CuPy's current one by itself


def attempt(name: str, part: Callable[[], Any]) -> None:
    """Do a part, and note its failure; what it computes is no number to judge."""
    from bridge.errors import BridgeError

    try:
        part()
    except BridgeError:
        pass
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        FAILED.setdefault(name, f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"[:600])


def layer(name: str, half: bool) -> None:
    """A layer, forward and backward, in training and in test mode."""
    import numpy as np
    from hypothesis import HealthCheck, Phase, given, settings

    import bridge
    from bridge.chain import devices
    from tests.strategies import CASES
    from tests.test_chain_devices import passed

    def cast(array: Any) -> Any:
        return array.astype(np.float16) if half and not (array == array.round()).all() else array

    def compute(case: Any) -> None:
        chain, inputs = bridge.build_chain(case.net()), case.inputs()
        for param in chain.params():
            param.array = param.array.astype(np.float16) if half else param.array
        inputs = {key: cast(value) for key, value in inputs.items()}
        for train in (False, True):
            try:
                passed(copy.deepcopy(chain), inputs, train)
            except Exception:
                if half:  # the layer has no float16, on the host either
                    continue
                raise
            with devices.scope(DEVICE):
                there = copy.deepcopy(chain)
                there.to_device(DEVICE)
                passed(there, {key: there.xp.asarray(value) for key, value in inputs.items()}, train)

    @settings(max_examples=4, database=None, derandomize=True, phases=[Phase.generate], deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(CASES[name])
    def check(case: Any) -> None:
        attempt(f"{name}{' float16' * half}", lambda: compute(case))

    check()


def run(rule: str, half: bool, **more: Any) -> None:
    """A run: trunk, cache, steps, validation, snapshots."""
    from bridge.finetuning import Recipe
    from tests.finetuning import config, trained

    momentum = 0.0 if rule in ("AdaGrad", "RMSProp") else 0.9
    recipe = Recipe(rule, base_lr=1e-3, momentum=momentum, clip_gradients=1, iter_size=2)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"device": DEVICE, "half": half, "recipe": recipe, "epochs": 1, "mirror": True, **more}
        trained(config(Path(folder), **settings))


def options_for(given: tuple[str, ...], capability: str) -> Any:
    found = [option.encode() for option in (*given, f"-arch=compute_{capability}")]
    return len(found), (ctypes.c_char_p * len(found))(*found)


def refused(capabilities: tuple[str, ...]) -> list[str]:
    """Sources that do not compile, each with the capability and the compiler's first line."""
    library, found = nvrtc(), []
    for source, given in SOURCES:
        for capability in capabilities:
            program, size = ctypes.c_void_p(), ctypes.c_size_t()
            library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
            if library.nvrtcCompileProgram(program, *options_for(given, capability)):
                library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
                log = ctypes.create_string_buffer(size.value)
                library.nvrtcGetProgramLog(program, log)
                found.append(f"{capability}: {log.value.decode()[:300]}")
            library.nvrtcDestroyProgram(ctypes.byref(program))
    return found


def kinds() -> dict[str, int]:
    """How many sources there are of each kind."""
    from bridge.chain.functions.helper_kernels import DEVICE_KERNELS

    own = {kernel.source for kernel in DEVICE_KERNELS.values()}
    return dict(
        Counter(
            "this project" if any(text in source for text in own) else "cupy" if "cupy_" in source else "chainer, cupy"
            for source, _ in SOURCES
        )
    )


def main(quick: bool) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "A batch with no more than one sample")
    cupy = install()
    from tests.strategies import CASES

    for half in (False, True):
        for name in [name for name in sorted(CASES) if not quick or name in QUICK]:
            layer(name, half)
        for rule in ("SGD", "Adam") if quick else (
            "SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam", "AdamW", "chainer.MomentumSGD", "chainer.Adam",
        ):  # fmt: skip
            attempt(f"run {rule}{' float16' * half}", lambda rule=rule, half=half: run(rule, half))
        attempt(f"run without trunk{' float16' * half}", lambda half=half: run("SGD", half, freeze=()))
    capabilities = CAPABILITIES[-1:] if quick else CAPABILITIES
    return {
        "cupy": cupy.__version__,
        "failed": FAILED,
        "sources": kinds(),
        "capabilities": capabilities,
        "refused": refused(capabilities),
    }


if __name__ == "__main__":
    print(json.dumps(main("--quick" in sys.argv), indent=1))
