"""Training steps on the stand-in for CuPy: how often they wait for the device, and what they compute."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.conftest import need
from tests.finetuning import config, stopped, trained

RULES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")


@pytest.fixture(autouse=True)
def _needs() -> None:
    need("chainer")
    from bridge.testing.device_kernels import compiler

    if compiler() is None:
        pytest.skip("there is no C++ compiler to run kernels with")


def loops(tmp_path: Path, **recipe: Any) -> Iterator[Any]:
    """Two loops of the same plan, of a net without a trunk, before their first steps."""
    from bridge.finetuning import Recipe
    from bridge.finetuning.run import begin

    settings = {"weight_decay": 5e-4, "seed": 7, "clip_gradients": 0.5, **recipe}
    for name in ("host", "device"):
        made = config(tmp_path, output=str(tmp_path / name), freeze=(), epochs=1, recipe=Recipe(**settings))
        loop = begin(made)
        loop.enter(loop.plan.stages[0])
        yield loop


def stepped(loop: Any, iteration: int) -> dict[str, Any]:
    """One update; its record."""
    record: dict[str, Any] = loop.gradients(iteration)[0]
    loop.update(record)
    return record


@pytest.mark.parametrize("rule", RULES)
def test_a_step_copies_to_the_host_once_and_computes_the_same(rule: str, tmp_path: Path) -> None:
    """The loss and the number of right images come back in one copy; the norm of the gradients stays on the device."""
    from bridge.testing.device import standing_in, to_device

    momentum = {"AdaGrad": 0.0, "RMSProp": 0.0}.get(rule, 0.9)
    rate = {"RMSProp": 0.001}.get(rule, 0.01)
    host, device = loops(tmp_path, type=rule, momentum=momentum, base_lr=rate, iter_size=2)
    expected = [stepped(host, step) for step in range(3)]
    to_device(device.chain)
    with standing_in() as module:
        found = []
        for step in range(3):
            before = module.copies
            found.append(stepped(device, step))
            assert module.copies - before == 1
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    for (name, param), (_, own) in zip(
        sorted(device.chain.namedparams()), sorted(host.chain.namedparams()), strict=True
    ):
        np.testing.assert_allclose(param.array.get(), own.array, rtol=1e-3, atol=2e-5, err_msg=name)


def test_the_stand_in_refuses_what_a_device_refuses() -> None:
    from bridge.testing.device import DeviceArray, DeviceModule

    xp = DeviceModule()
    x = xp.asarray(np.ones(3, np.float32))
    assert isinstance(x, DeviceArray)
    for refused in (
        lambda: np.asarray(x),
        lambda: np.sum(x),
        lambda: np.sqrt(x),
        lambda: x + np.ones(3, np.float32),
        lambda: xp.add(x, np.ones(3)),
        lambda: x.__setitem__(0, np.ones(1)),
    ):
        with pytest.raises(TypeError):
            refused()
    for name in ("nan_to_nothing", "ctypeslib", "record"):
        with pytest.raises(AttributeError, match="CuPy has no attribute"):
            getattr(xp, name)
    with pytest.raises(AttributeError, match="CuPy's array has no attribute"):
        x.byteswap  # noqa: B018
    before = xp.copies
    assert float((np.float32(2) * x).sum()) == 6
    assert xp.copies == before + 1


def test_the_stand_in_offers_what_the_installed_cupy_offers() -> None:
    need("cupy")
    import cupy

    from bridge.testing.device_names import ARRAY_NAMES, MODULE_NAMES

    assert [name for name in MODULE_NAMES if not hasattr(cupy, name)] == []
    assert [name for name in ARRAY_NAMES if not hasattr(cupy.ndarray, name)] == []
    assert cupy.RawKernel
    assert cupy.random.rand
    assert cupy.random.seed


def test_too_little_memory_names_the_batch_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for 10 images: of 32 and its halves, 8 fit."""
    from bridge.errors import UsageError
    from bridge.finetuning import loop as loops_module
    from bridge.finetuning.run import begin

    own = loops_module.forward

    def little(chain: Any, objective: Any, source: Any, indices: Any, epoch: int) -> Any:
        if len(indices) > 10:
            raise MemoryError("out of memory allocating 1,024 bytes")
        return own(chain, objective, source, indices, epoch)

    monkeypatch.setattr(loops_module, "forward", little)
    with pytest.raises(UsageError, match="out of memory allocating 1,024 bytes") as caught:
        begin(config(tmp_path, freeze=())).run()
    assert "--batch-size 8 --iter-size 4, with as many images in a step" in caught.value.hint


def test_an_overflow_in_float16_is_left_out_and_lowers_the_scale(tmp_path: Path) -> None:
    from bridge.finetuning.run import begin

    loop = begin(config(tmp_path, freeze=(), half=True))
    loop.enter(loop.plan.stages[0])
    loop.updater.set_loss_scale(2.0**24)
    before = {name: param.array.copy() for name, param in loop.chain.namedparams()}
    with np.errstate(all="ignore"):
        record = stepped(loop, 0)
    assert record["loss_scale"] == 2.0**24
    assert loop.updater.loss_scale == loop.at.state.loss_scale == 2.0**23
    assert all(np.array_equal(param.array, before[name]) for name, param in loop.chain.namedparams())
    loop.updater.set_loss_scale(128.0, 999)
    with np.errstate(all="ignore"):
        stepped(loop, 1)
    assert (loop.updater.loss_scale, loop.updater.calm) == (256.0, 0)
    assert not all(np.array_equal(param.array, before[name]) for name, param in loop.chain.namedparams())


def test_a_small_net_trains_for_a_step_on_a_device_as_with_numpy() -> None:
    from bridge.chain.device_facts import step_differences

    assert step_differences("@numpy") == {"loss": 0, "gradient": 0, "parameter": 0}


# ---- runs ---------------------------------------------------------------------------------------

BOTH = ["@numpy", pytest.param("@cupy:0", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", BOTH)
@pytest.mark.parametrize("rule", [*RULES, "AdamW"])
def test_a_run_on_a_device_trains_as_on_the_host(rule: str, device: str, tmp_path: Path) -> None:
    """Frozen trunk, clipped gradients, every update rule; the trunk's features come from the device."""
    from bridge.finetuning import Recipe

    settings = Recipe(
        rule, base_lr=0.001, momentum=0 if rule in ("AdaGrad", "RMSProp") else 0.9, clip_gradients=1, seed=2
    )
    found = [
        trained(
            config(
                tmp_path, output=str(tmp_path / name), device=place, epochs=1, recipe=settings, trunk_engine="chainer"
            )
        )
        for name, place in (("host", "@numpy"), ("device", device))
    ]
    host, there = (loop.trained.copies() for loop in found)
    for name, values in host.items():
        np.testing.assert_allclose(there[name], values, rtol=1e-2, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("device", BOTH)
def test_a_run_on_a_device_resumes(device: str, tmp_path: Path) -> None:
    whole = trained(config(tmp_path, output=str(tmp_path / "whole"), device=device, snapshot_every=2))
    halves = config(tmp_path, output=str(tmp_path / "halves"), device=device, snapshot_every=2)
    stopped(halves, 3)
    resumed = trained(dataclasses.replace(halves, resume=True))
    for name, values in whole.trained.copies().items():
        np.testing.assert_allclose(resumed.trained.copies()[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.gpu
def test_half_precision_learns_on_a_gpu(tmp_path: Path) -> None:
    loop = trained(config(tmp_path, freeze=(), half=True, device="@cupy:0", epochs=4))
    assert loop.evaluate(loop.inputs.validation).accuracy > 0.5


@pytest.mark.gpu
def test_the_second_gpu_computes_on_itself(tmp_path: Path) -> None:
    """Arrays that are made on the way are on the chain's GPU, not on the first one."""
    from bridge.chain.devices import cuda_devices

    if cuda_devices() < 2:
        pytest.skip("there is one GPU")
    loop = trained(config(tmp_path, freeze=(), device="@cupy:1", epochs=1))
    assert {param.array.device.id for param in loop.chain.params()} == {1}


def test_a_run_computes_within_the_scope_of_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs, kernels and updates go to the device that the scope names; each part of a run is inside of it."""
    from bridge.chain import devices
    from bridge.finetuning import loop as loops_module
    from bridge.finetuning import plan as plans

    within: list[str] = []
    seen: list[list[str]] = []

    @contextlib.contextmanager
    def scope(name: str) -> Iterator[None]:
        within.append(name)
        yield
        within.pop()

    monkeypatch.setattr(devices, "scope", scope)
    for module, name in ((plans, "build_chain"), (loops_module, "forward"), (loops_module, "evaluate")):
        own = getattr(module, name)

        def watched(*args: Any, own: Any = own, **kwargs: Any) -> Any:
            seen.append(list(within))
            return own(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)
    trained(config(tmp_path, epochs=1))
    assert len(seen) > 3
    assert all(names for names in seen)


def test_the_next_batch_is_copied_by_the_thread_that_reads_it() -> None:
    """After the work that the device had when the batch was asked for."""
    import threading

    from bridge.finetuning.batches import Batch
    from bridge.finetuning.prefetch import Ahead

    sent: list[tuple[str, str]] = []

    class Uploader:
        def mark(self) -> str:
            return threading.current_thread().name

        def send(self, arrays: Any, after: str) -> Any:
            sent.append((after, threading.current_thread().name))
            return {name: values * 2 for name, values in arrays.items()}

    source: Any = SimpleNamespace(trunk=None, cache=None, start=0, get=lambda indices, epoch: {"x": indices + epoch})
    ahead = Ahead(source, Uploader())  # type: ignore[arg-type]
    ahead.expect(Batch(np.arange(2), 3))
    assert ahead.get(np.arange(2), 3)["x"].tolist() == [6, 8]
    assert ahead.get(np.arange(2), 3)["x"].tolist() == [3, 4]  # not asked for before, so read now
    ahead.close()
    ((after, by),) = sent
    assert (after, by[:8]) == (threading.current_thread().name, "prefetch")


def test_the_next_batch_is_read_ahead_with_the_same_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random mirroring, and over the end of an epoch; the thread reads all batches but the first of each stage."""
    import threading

    from bridge.finetuning import prefetch
    from bridge.finetuning.sources import Source

    plain = trained(config(tmp_path, freeze=(), mirror=True, output=str(tmp_path / "plain")))
    readers: list[str] = []
    own = Source.get

    def get(self: Any, indices: Any, epoch: int) -> Any:
        readers.append(threading.current_thread().name)
        return own(self, indices, epoch)

    monkeypatch.setattr(Source, "get", get)
    from bridge.finetuning.run import begin

    loop = begin(config(tmp_path, freeze=(), mirror=True, output=str(tmp_path / "ahead")))
    enter = type(loop).enter

    def entered(self: Any, stage: Any) -> None:
        enter(self, stage)
        self.at.ahead = prefetch.Ahead(self.inputs.train)

    monkeypatch.setattr(type(loop), "enter", entered)
    loop.run()
    for name, values in plain.trained.copies().items():
        assert loop.trained.copies()[name].tobytes() == values.tobytes(), name
    assert sum(name.startswith("prefetch") for name in readers) == loop.plan.iterations
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())
