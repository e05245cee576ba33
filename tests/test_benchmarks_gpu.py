"""The benchmarks of GPUs and of several workers: what they measure is right, and they run without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_nets, workers
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from tests.conftest import need


@pytest.mark.parametrize(
    ("name", "parameters"), [("alexnet", 60_965_224), ("googlenet", 6_998_552), ("resnet50", 25_557_032)]
)
def test_the_nets_have_as_many_parameters_as_the_published_ones(name: str, parameters: int) -> None:
    """As in the papers' own files, without GoogLeNet's two losses on the side; BatchNorm's statistics do not count."""
    need("chainer")
    from bridge.chain.build import build_chain

    chain = build_chain(assemble(None, prototxt.parse(gpu_nets.trained(name, 1, gpu_nets.SIZES[name]))), seed=0)
    assert sum(param.size for param in chain.params()) == parameters


def test_a_projection_has_the_numbers_of_the_docs() -> None:
    slow, fast = (workers.projected(0.2, 102e6, 64, network) for network in workers.NETWORKS.values())
    assert (round(slow, 3), round(fast, 3)) == (0.362, 0.217)
    assert workers.projected(0.2, 102e6, 1, 1.25e9) == 0.2
    rows = workers.table(0.2, 102e6)
    assert [row["workers"] for row in rows] == 2 * [8, 16, 32, 64, 128, 256]


@pytest.mark.slow
def test_the_benchmark_of_gpus_runs_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("chainer")
    gpu.main(["--smoke", "--nets", "alexnet", "--json", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    ours = [row for row in found["steps"] if "pytorch" not in row["way"]]
    assert [row.get("error") for row in ours] == [None] * 3
    assert all(row["seconds"] > 0 for row in ours)
    assert found["runner"]["first_step_ends"] > 0
    assert "first step ends after" in capsys.readouterr().out


def test_without_a_device_the_benchmark_says_so_in_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("chainer")
    found = gpu.main(["--device", "77", "--json", str(tmp_path / "gpu.json")])
    assert "device '77'" in found["error"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == found
    assert "driver: " in capsys.readouterr().out


def test_a_part_that_fails_is_shown_and_the_others_go_on() -> None:
    def fails() -> None:
        raise RuntimeError("out of memory\nmore")

    assert gpu.attempt(fails) == {"error": "RuntimeError: out of memory"}
