"""The kernels in CUDA's C: they compile for each kind of GPU, and their source computes what the CPU's functions do."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import missing, need

CAPABILITIES = ("compute_70", "compute_75", "compute_80", "compute_86", "compute_89", "compute_90")


def kernels() -> dict[str, Any]:
    """All kernels, by name."""
    import importlib

    from bridge.chain.functions import HOMES
    from bridge.chain.functions.helper_kernels import DEVICE_KERNELS
    from bridge.finetuning import rule_kernels

    for home in set(HOMES.values()):
        importlib.import_module(f"bridge.chain.functions.{home}")
    assert rule_kernels
    return DEVICE_KERNELS


class Nvrtc:
    """CUDA's compiler for kernels, as a library that needs no GPU."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("nvidia")
        roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
        found = [path for root in roots for path in sorted(root.rglob("libnvrtc.so*")) if "alt" not in path.name]
        if not found:
            missing("nvrtc", "NVRTC is not installed (tox run -e kernels)")
        self.library = ctypes.CDLL(str(found[0]))

    def version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def compile(self, source: str, capability: str) -> str:
        """The compiler's messages; empty where it has none. Raises AssertionError where the source does not compile."""
        program = ctypes.c_void_p()
        self.library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
        options = (ctypes.c_char_p * 1)(f"--gpu-architecture={capability}".encode())
        status = self.library.nvrtcCompileProgram(program, 1, options)
        size = ctypes.c_size_t()
        self.library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self.library.nvrtcGetProgramLog(program, log)
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        assert status == 0, log.value.decode()
        lines = log.value.decode().splitlines()
        return "\n".join(line for line in lines if line.strip("\0") and "Architectures prior to" not in line)


def test_every_kernel_compiles_for_every_kind_of_gpu() -> None:
    need("chainer")
    nvrtc = Nvrtc()
    older = [name for name in CAPABILITIES if nvrtc.version()[0] < 13 or name >= "compute_75"]  # CUDA 13 ends at Turing
    for kernel in kernels().values():
        for capability in older:
            assert nvrtc.compile(kernel.source, capability) == "", kernel.name


def test_the_compiler_finds_a_mistake() -> None:
    with pytest.raises(AssertionError, match="undefined"):
        Nvrtc().compile('extern "C" __global__ void f(float* x) { x[0] = y; }', "compute_80")
