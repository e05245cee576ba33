"""CUDA without a device: the real CuPy runs on it, but for what its kernels compute.

The driver and CUDA's libraries are small libraries made here, whose memory is the host's. The runtime, which is a part
of CuPy's own files, is sent to them. NVRTC is the real one (package ``nvidia-cuda-nvrtc-cu12``), and compiles every
kernel that CuPy asks for. Kernels are loaded and not run, so arrays hold zeros or what was copied into them.

So a program shows whether each of its calls is one that this CuPy takes, with these types, and which sources CuPy
compiles for it. It takes Linux on x86-64 and a C compiler.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SONAMES = {
    "cublas": "libcublas.so.12", "cublasLt": "libcublasLt.so.12", "cusolver": "libcusolver.so.11",
    "cusparse": "libcusparse.so.12", "curand": "libcurand.so.10", "cufft": "libcufft.so.11", "cudnn": "libcudnn.so.8",
    "nccl": "libnccl.so.2", "nvJitLink": "libnvJitLink.so.12",
}  # fmt: skip
SOURCES: dict[tuple[str, tuple[str, ...]], None] = {}
"""Every source that was compiled, with its options but for the architecture."""


def install() -> Any:
    """Let CuPy, which was not imported before, find a GPU; returns CuPy."""
    os.environ.update(CUPY_ACCELERATORS="", CUPY_CACHE_IN_MEMORY="1")  # CUB's reductions have kernels of their own
    nvrtc()
    folder = Path(tempfile.mkdtemp())
    driver = _built(folder, "libcuda.so.1", (HERE / "driver.c").read_text())
    _libraries(folder)
    _redirect_runtime(driver)
    cupy = importlib.import_module("cupy")
    cupy.cuda.set_allocator(None)  # new memory is zero: what was a loss may be taken for a number of values
    cupy.argsort = lambda a, axis=-1, kind=None: cupy.zeros(a.shape, "q")  # Thrust's kernels are no sources
    _record(importlib.import_module("cupy.cuda.compiler"))
    return cupy


def nvrtc() -> ctypes.CDLL:
    """NVRTC. Its first compilation comes before there is another driver, which it would ask."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    library = ctypes.CDLL(str(next(path for root in roots for path in Path(root).glob("cuda_nvrtc/lib/libnvrtc.so.*"))))
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), b"", b"empty.cu", 0, None, None)
    library.nvrtcCompileProgram(program, 0, None)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return library


def _built(folder: Path, soname: str, source: str, versions: Iterable[str] = ()) -> ctypes.CDLL:
    """Compile and load a library whose functions all modules find."""
    path = folder / soname
    path.with_suffix(".c").write_text(source)
    path.with_suffix(".map").write_text("".join(f"{version} {{ global: *; }};" for version in versions))
    script = [f"-Wl,--version-script={path.with_suffix('.map')}"] if versions else []
    command = ["cc", "-w", "-O1", "-shared", "-fPIC", *script, f"-Wl,-soname,{soname}", "-o", str(path)]
    subprocess.run([*command, str(path.with_suffix(".c"))], check=True)
    return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


def _symbols(path: Path, *options: str) -> list[list[str]]:
    done = subprocess.run(["nm", *options, str(path)], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def _libraries(folder: Path) -> None:
    """CUDA's libraries, with the functions that the modules of this CuPy ask for."""
    lines = (HERE / "libraries.c").read_text().splitlines()
    filling = {match[1]: line for line in lines if (match := re.match(r"int (\w+)\(", line))}
    backends, cupy = (_package(name) for name in ("cupy_backends", "cupy"))
    modules = [*backends.glob("cuda/libs/*.so"), *cupy.glob("cuda/cufft*.so"), *cupy.parent.glob("cupyx/*cusolver*.so")]
    wanted = {row[-1] for path in modules for row in _symbols(path, "-D", "--undefined-only")}
    for name, soname in SONAMES.items():
        own = {symbol for symbol in wanted if re.match(rf"{name}[A-Z]", symbol)}
        if name == "cublasLt":  # CuPy 14 looks these up by name
            own |= {"cublasLtCreate", "cublasLtMatmul", "cublasLtMatmulAlgoGetHeuristic"}
        names = sorted({symbol.partition("@")[0] for symbol in own})
        source = "\n".join(filling.get(function, f"int {function}(void) {{ return 0; }}") for function in names)
        versions = sorted({symbol.partition("@")[2] for symbol in own if "@" in symbol})
        _built(folder, soname, "#include <string.h>\ntypedef size_t sz;\n" + source, versions)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def _redirect_runtime(driver: ctypes.CDLL) -> None:
    """Let each function of the runtime, which is linked into CuPy's module, begin with a jump into the driver."""
    runtime = importlib.import_module("cupy_backends.cuda.api.runtime")
    path = Path(runtime.__file__ or "").resolve()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    span, _, offset = next(row[:3] for row in maps if row[-1] == str(path))
    base = int(span.partition("-")[0], 16) - int(offset, 16)
    for row in _symbols(path):
        if len(row) == 3 and re.fullmatch(r"cuda[A-Z]\w*", row[2]):
            own = getattr(driver, re.sub(r"_pt[sd]s?z?$", "", row[2]), driver.nothing)
            to = ctypes.cast(own, ctypes.c_void_p)
            assert driver.redirect(ctypes.c_void_p(base + int(row[0], 16)), to) == 0


def _record(compiler: Any) -> None:
    class Recording(compiler._NVRTCProgram):  # type: ignore[misc, name-defined]
        def compile(self, options: Any = (), log_stream: Any = None) -> Any:
            kept = tuple(option for option in options if not re.match("-arch|--gpu-architecture", option))
            SOURCES.setdefault((self.src, kept))
            return super().compile(options, log_stream)

    compiler._NVRTCProgram = Recording
