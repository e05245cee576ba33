"""What ``bridge doctor`` says of a GPU: what is missing, how to get it, and whether a device computes right."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.conftest import need


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


def facts(
    monkeypatch: pytest.MonkeyPatch,
    version: str = "",
    driver: bool = False,
    missing: tuple[str, ...] = (),
    **modules: Any,
) -> dict[str, Any]:
    """The facts by name, with a CuPy of this version or none."""
    from bridge.chain import device_facts

    def library(name: str) -> Any:
        if not driver:
            raise OSError(f"{name}: cannot open shared object file")
        return SimpleNamespace(cuDriverGetVersion=lambda place: setattr(place._obj, "value", 12040))

    monkeypatch.setattr(device_facts.ctypes, "CDLL", library)
    monkeypatch.setattr(device_facts, "cuda_problem", lambda: "" if driver else "no driver")
    monkeypatch.setattr(device_facts, "missing_libraries", lambda: list(missing))
    monkeypatch.setattr(device_facts.importlib.util, "find_spec", lambda name: object() if version else None)
    cupy = ModuleType("cupy")
    vars(cupy).update(
        __version__=version, cuda=SimpleNamespace(runtime=SimpleNamespace(runtimeGetVersion=lambda: 12090))
    )
    for name in ("cupy.cuda", "cupy.cuda.cudnn", "cupy.cuda.nccl"):
        monkeypatch.setitem(sys.modules, name, modules.get(name.rpartition(".")[2]))
    monkeypatch.setitem(sys.modules, "cupy", cupy if version else None)
    return {fact.name: fact for fact in device_facts.gpu_facts()}


def test_without_a_gpu_it_says_what_is_missing_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts(monkeypatch)
    assert list(found) == ["driver", "cupy"]
    assert found["driver"].problem == "there is no NVIDIA driver"
    assert "--gpus all" in found["driver"].hint
    assert found["cupy"].problem == "is not installed"
    assert "[cupy-cuda12x]" in found["cupy"].hint


def test_versions_of_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn, nccl = SimpleNamespace(getVersion=lambda: 8907), SimpleNamespace(get_version=lambda: 22104)
    found = facts(monkeypatch, "13.6.0", driver=True, cudnn=cudnn, nccl=nccl, cuda=ModuleType("cupy.cuda"))
    assert {name: fact.found for name, fact in found.items()} == {
        "driver": "CUDA 12.4", "cupy": "13.6.0", "runtime": "CUDA 12.9", "cudnn": "8.9.7", "nccl": "22104",
    }  # fmt: skip
    assert not any(fact.problem for fact in found.values())


def test_cupy_14_has_no_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts(monkeypatch, "14.2.0", driver=True)
    assert found["cudnn"].problem == "CuPy 14 does not use it: convolutions go through cuBLAS"
    assert "cupy-cuda12x<14" in found["cudnn"].hint
    assert found["nccl"].problem


def test_libraries_that_cupy_does_not_load_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts(monkeypatch, "13.6.0", driver=True, missing=("cublas", "cusolver"))
    assert found["libraries"].problem == "CuPy does not load cublas, cusolver"
    assert "nvidia-cublas-cu12 nvidia-cuda-nvrtc-cu12" in found["libraries"].hint
    assert "libraries" not in facts(monkeypatch, "13.6.0", missing=("cublas",))


def test_a_gpu_without_libraries_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.chain import devices

    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(devices.cuda_parts, "preload", list)
    runtime = SimpleNamespace(getDeviceCount=lambda: 1)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    for name in ("cublas", "cusolver", "cusparse", "curand"):
        monkeypatch.setitem(sys.modules, f"cupy_backends.cuda.libs.{name}", ModuleType(name))
    version = SimpleNamespace(getVersion=lambda: (12, 9))
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs.nvrtc", version)
    assert devices.cuda_problem() == ""
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs.cublas", None)
    assert devices.cuda_problem() == "libraries of CUDA are missing: cublas"
    runtime.getDeviceCount = lambda: 0
    assert devices.cuda_problem() == "there is no CUDA device"


def test_a_library_without_memory_is_out_of_memory() -> None:
    from bridge.chain.devices import memory_errors

    with pytest.raises(MemoryError, match="CUBLAS_STATUS_ALLOC_FAILED"), memory_errors():
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")
    with pytest.raises(RuntimeError, match="IllegalAddress"), memory_errors():
        raise RuntimeError("cudaErrorIllegalAddress")


def test_libraries_of_pip_are_loaded_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only where there is a driver; a library that the system has is left alone."""
    from bridge.compat import cuda_parts

    for name in ("cublas/lib/libcublas.so.12", "cublas/lib/libcublasLt.so.12", "curand/lib/libcurand.so.10"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    system = ["libcuda.so.1", "libcurand.so.10"]
    monkeypatch.setattr(cuda_parts, "_loads", lambda name: name in system or "/" in name)
    monkeypatch.setattr(cuda_parts, "_folders", lambda: sorted(tmp_path.glob("*/lib")))
    monkeypatch.setattr(cuda_parts.sys, "platform", "linux")
    assert cuda_parts.preload() == ["libcublasLt.so.12", "libcublas.so.12"]
    system.remove("libcuda.so.1")
    assert cuda_parts.preload() == []


def test_two_packages_of_cupy_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.chain import device_facts

    monkeypatch.setattr(device_facts, "_version", lambda name: "13.6" if name in ("cupy", "cupy-cuda12x") else "")
    monkeypatch.setattr(device_facts.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "cupy", None)
    problems = [fact.problem for fact in device_facts.gpu_facts() if fact.name == "cupy"]
    assert problems[0] == "several packages of CuPy overwrite each other"
    assert problems[1].startswith("does not import")


def test_a_device_that_computes_wrong_or_not_at_all_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.chain import device_facts, devices
    from bridge.cli.doctor import _gpus

    monkeypatch.setattr(devices, "cuda_problem", lambda: "")
    monkeypatch.setattr(devices, "cuda_devices", lambda: 3)
    found = {"@cupy:0": 1e-6, "@cupy:1": 0.5}

    def differences(device: str) -> dict[str, float]:
        if device not in found:
            raise RuntimeError("cudaErrorNoKernelImageForDevice\nmore")
        return {"loss": found[device]}

    monkeypatch.setattr(device_facts, "step_differences", differences)
    good, wrong, dead = _gpus()
    assert (good["problem"], good["summary"]) == ("", "one training step differs from NumPy's by: loss 1e-06")
    assert wrong["problem"] == "a training step gives other numbers than NumPy"
    assert dead["problem"] == "a training step fails: RuntimeError: cudaErrorNoKernelImageForDevice"
