"""What a file asks for is checked against what it can hold, in memory and in steps."""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.errors import BudgetError, FormatError, Hints, MissingFileError, UsageError, nearest
from bridge.files.manifest import entries
from bridge.files.sniff import identify
from bridge.layers import REGISTRY
from bridge.layers.prior_box import _ratios
from bridge.limits import budget
from bridge.schema import Blob, Blobs, Net, Opaque
from bridge.schema.message import Message
from bridge.verification.arrays import opened, read_input
from bridge.verification.checks import run_checks
from bridge.verification.weights import Files, Loaded, compare_weights, stored_parts
from tests import encode
from tests.conftest import need

pytestmark = pytest.mark.damage


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> budget.Budget:
    """A budget of a megabyte."""
    monkeypatch.setattr(budget.BUDGET, "_limit", budget.BUDGET.used + (1 << 20))
    return budget.BUDGET


# -- the budget itself -----------------------------------------------------------------------------


def test_an_array_counts_until_it_is_freed() -> None:
    own = budget.Budget(1000)
    array = own.load(800, "a file", lambda: np.zeros(100))
    view = array.reshape(10, 10)[1:]
    with pytest.raises(BudgetError, match="a file: needs 400 bytes of memory, beside 800 bytes in use"):
        own.take(400, "a file")
    del array
    gc.collect()
    assert own.used == 800
    del view
    gc.collect()
    assert own.used == 0


def test_what_fails_to_load_is_given_back() -> None:
    own = budget.Budget(1000)
    with pytest.raises(ZeroDivisionError):
        own.load(800, "", lambda: 1 // 0)
    assert own.used == 0


@pytest.mark.parametrize(
    ("text", "nbytes"), [("1", 1), ("2K", 2048), ("3m", 3 << 20), ("4GB", 4 << 30), ("1TiB", 1 << 40)]
)
def test_sizes(text: str, nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_limit", "given"):
        monkeypatch.setattr(budget.BUDGET, name, getattr(budget.BUDGET, name))
    assert budget.set_limit(text) == nbytes == budget.BUDGET.limit


@pytest.mark.parametrize("text", ["", "0", "G", "-1", "1.5G", "4X", "4G G", "\u0661"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="expected a size such as 4G"):
        budget.set_limit(text)


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((1,) * 33, "33 axes"),
        ((1 << 31,), "extent 2147483648"),
        ((-1, 0), "extent -1"),
        ((0, 1 << 30, 1 << 30), "larger than any memory"),
        ((0, 1 << 30, 5), ""),
        ((), ""),
    ],
)
def test_shapes(shape: tuple[int, ...], problem: str) -> None:
    assert problem in budget.shape_problem(shape)
    assert bool(problem) == bool(budget.shape_problem(shape))


# -- files that swell ------------------------------------------------------------------------------


def test_a_zip_that_expands_a_thousandfold(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a/0.npy", "w", force_zip64=True) as member:
            np.save(member, np.zeros(40 << 20, np.uint8))
        archive.writestr("b/0.npy", archive.read("a/0.npy"))
    with pytest.raises(FormatError, match=r"expands from .* KB to 80.0 MB"):
        bridge.load(tmp_path / "a.npz")
    with pytest.raises(FormatError, match="expands from"), opened(tmp_path / "a.npz") as archive:
        list(archive.values())


def test_an_hdf5_that_expands_a_thousandfold(tmp_path: Path) -> None:
    need("h5py")
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        for layer in "ab":
            file.create_dataset(f"data/{layer}/0", data=np.zeros(10 << 20, "f4"), chunks=(1 << 20,), compression=9)
    with pytest.raises(FormatError, match=r"expands from .* KB to 80.0 MB"):
        bridge.load(tmp_path / "a.h5")


def test_a_budget_of_the_user_stands_in_place_of_the_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", **{"a/0": np.zeros(20 << 20, np.float32)})
    monkeypatch.setattr(budget.BUDGET, "given", True)
    (layer,) = bridge.load(tmp_path / "a.npz")
    monkeypatch.setattr(budget.BUDGET, "_limit", budget.BUDGET.used + (10 << 20))
    with pytest.raises(BudgetError, match=r"array 'a/0': needs 80.0 MB .*\n  hint: --memory \d+M allows it"):
        layer.blobs["blob0"].sum()


def test_members_that_overlap(tmp_path: Path) -> None:
    """The same bytes as a hundred members, each of which would expand."""
    body = os.urandom(4096)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", body)
        for number in range(100):
            info = zipfile.ZipInfo(f"{number}.npy")
            first = archive.getinfo("a.npy")
            info.header_offset, info.CRC, info.file_size, info.compress_size = 0, first.CRC, len(body), len(body)
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(FormatError, match="members take"):
        bridge.load(tmp_path / "a.npz")


def test_inputs_of_a_net_are_within_the_budget(small: budget.Budget, tmp_path: Path) -> None:
    (tmp_path / "a.prototxt").write_text(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1000 dim: 1000 } } }'
        'layer { name: "r" type: "ReLU" bottom: "x" top: "y" }'
    )
    from bridge.verification.inputs import make_inputs

    with pytest.raises(BudgetError, match="its blobs: needs"):
        make_inputs(bridge.load(tmp_path / "a.prototxt"))


@pytest.mark.parametrize("body", ['"a":' + "[" + "[]," * 2_000_000 + "[]]", '"a":{' + '"b":0,' * 1_000_000 + '"c":0}'])
def test_json_of_many_values(body: str, tmp_path: Path) -> None:
    text = f"{{{body}}}".encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(FormatError, match="the header has more than"):
        bridge.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("text", ["a{}" * 400_000, "a:1 " * 400_000, "#\n" * 300_000, 'a:""' * 400_000])
def test_a_prototxt_of_many_fields(text: str) -> None:
    with pytest.raises(FormatError, match="fewer fields and comments"):
        prototxt.parse(text)


def test_a_long_string_is_kept_only_where_nothing_reads_it() -> None:
    with pytest.raises(FormatError, match="a string of at most 1048576 characters"):
        prototxt.parse(f'name: "{"a" * (1 << 20)}b"')
    assert prototxt.parse(f'300: "{"a" * (1 << 20)}b"').get("300") == b"a" * (1 << 20) + b"b"


def test_an_unknown_field_does_not_swell(tmp_path: Path) -> None:
    layer = encode.net(
        [(prototxt.parse('name: "c" type: "Foo"'), [encode.blob(np.ones(2), "packed")])], "V2", Message()
    )
    payload = os.urandom(4 << 20)
    field = encode.tag(300, 2) + encode.varint(len(payload)) + payload
    (tmp_path / "a.caffemodel").write_bytes(layer + field)
    import tracemalloc

    tracemalloc.start()
    bridge.save(bridge.load(tmp_path / "a.caffemodel"), tmp_path / "a.npz")
    again = bridge.load(tmp_path / "a.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert again.definition.get("300") == payload
    assert peak < 25 * len(payload)


# -- what is no file -------------------------------------------------------------------------------


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    net = make(1, "a")
    net_file = tmp_path / "a.caffemodel"
    bridge.save(net, net_file)
    pipe = tmp_path / "pipe.npz"
    from bridge.onnx_export.inside import Inside

    uses: list[Callable[[], Any]] = [
        lambda: bridge.load(pipe),
        lambda: bridge.verify(net_file, against=pipe),
        lambda: bridge.verify(net_file, recorded=pipe),
        lambda: prototxt.parse_file(pipe),
        lambda: Inside(pipe),
        lambda: bridge.verify(net_file, inputs={"x": pipe}),
    ]
    for use in uses[:-1]:
        with pytest.raises(MissingFileError, match="is not a regular file"):
            use()
    with pytest.raises(MissingFileError, match="is not a regular file"), opened(pipe):
        pass
    with pytest.raises(MissingFileError, match="is not a regular file"):
        bridge.load("/dev/zero")


# -- steps, counted --------------------------------------------------------------------------------


def steps(work: Callable[[], Any]) -> int:
    """Lines that are executed and functions that are called."""
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def odd(name: str, index: int) -> str:
    return f'name: "{name}" type: "Odd" bottom: "t{index - 1}" top: "t{index}"'


def make(layers: int, prefix: str, equal: bool = False) -> Net:
    one = Blob.of(np.ones(1, np.float32))
    return Net(
        "n",
        tuple(
            Opaque(
                name="same" if equal else f"{prefix}{index}",
                type="Odd",
                bottoms=(f"t{index - 1}",),
                tops=(f"t{index}",),
                blobs=Blobs({"blob0": one.reshaped((1,)) if index else one}),
                definition=prototxt.parse(odd(f"{prefix}{index}", index)),
            )
            for index in range(layers)
        ),
    )


def verification(layers: int, folder: Path, other: str = "a", equal: bool = False) -> Callable[[], Any]:
    sides: list[Loaded] = []
    for name, prefix in (("a", "a"), ("b", other)):
        text = encode.net(
            [
                (prototxt.parse(odd("s" if equal else f"{prefix}{i}", i)), [encode.blob(np.ones(300), "packed")])
                for i in range(layers)
            ],
            "V2",
            Message(),
        )  # fmt: skip
        (folder / f"{name}.caffemodel").write_bytes(text)
        sides.append(Files.of(folder / f"{name}.caffemodel", {}).read())

    def work() -> None:
        compare_weights(stored_parts(sides[0]), stored_parts(sides[1]), ("a", "b"))
        for side in sides:
            run_checks(side)

    return work


def crossed(layers: int, folder: Path) -> Callable[[], Any]:
    """A prototxt none of whose layers is in the weights."""
    verification(layers, folder)
    text = "".join(f'layer {{ name: "z{i}" type: "PReLU" bottom: "t{i - 1}" top: "t{i}" }}' for i in range(layers))
    (folder / "z.prototxt").write_text(text)

    def work() -> None:
        run_checks(Files.of([folder / "z.prototxt", folder / "a.caffemodel"], {}).read())

    return work


def ratios(count: int, _: Path) -> Callable[[], Any]:
    values = tuple(np.random.default_rng(0).uniform(1, 100, count).tolist())
    return lambda: _ratios(values, True)


def text(count: int, _: Path) -> Callable[[], Any]:
    body = prototxt.format(make(count, "a").to_message())
    return lambda: prototxt.parse(body)


WORK: dict[str, Callable[[int, Path], Callable[[], Any]]] = {
    "verify the same": verification,
    "verify renamed layers": lambda n, folder: verification(n, folder, "renamed"),
    "verify layers of one name": lambda n, folder: verification(n, folder, equal=True),
    "verify another net's weights": crossed,
    "aspect ratios": ratios,
    "keys of one name": lambda n, _: functools.partial(lambda net: list(entries(net)), make(n, "a", equal=True)),
    "parse": text,
    "inputs and outputs": lambda n, _: functools.partial(lambda net: (net.inputs, net.outputs), make(n, "a")),
}


@pytest.mark.parametrize("name", WORK)
def test_twice_as_many_take_twice_as_many_steps(name: str, tmp_path: Path) -> None:
    WORK[name](10, tmp_path)()  # imports and caches
    small, large = (steps(WORK[name](n, tmp_path)) for n in (150, 300))
    assert small > 150
    assert large < 2.3 * small


def test_hints_are_for_the_first_few_names_and_among_few() -> None:
    hint = Hints(["conv1", "conv2"])
    assert [bool(hint("conv3")) for _ in range(Hints.MOST + 2)] == [True] * Hints.MOST + [False] * 2
    assert nearest("conv1", (f"conv{i}" for i in range(100_000))) == ""
    assert nearest("a" * 10_000, ["a" * 9_999]) == ""


@pytest.mark.parametrize(
    "text",
    ["a: " + "1" * 200_000 + "z", "a: -" + " " * 200_000 + "z", 'a: "' + '\\"' * 100_000, "a: 1e" + "1" * 200_000 + "z",
     "a: " + "0x" + "f" * 200_000 + "z", "a: '" + "\\\\" * 100_000 + "\\'", "a: " + "1." * 100_000],
)  # fmt: skip
def test_no_number_or_string_makes_the_parser_try_again_and_again(text: str) -> None:
    """At 37 s for 32 KB, and a time that grows with the square, any of these would take an hour."""
    with pytest.raises(FormatError):
        prototxt.parse(text)


def test_other_patterns_on_long_texts(tmp_path: Path) -> None:
    assert identify(b"a" * 4096) == "prototxt"
    assert isinstance(read_input("data=" + "1," * 100_000 + "x")[1], Path)
    layer = prototxt.parse(
        f'name: "p" type: "Python" python_param {{ module: "rpn.proposal_layer" layer: "ProposalLayer" '
        f'param_str: "{"a" * 500_000}" }}'
    )
    built = bridge.layers.build_layer(layer)
    assert "param_str has 500000 characters" in built.reason()
    assert "rpn.proposal_layer.ProposalLayer" in REGISTRY


def test_a_manifest_number_that_no_float_holds(tmp_path: Path) -> None:
    blobs = json.dumps([{"index": 0, "role": "blob0", "value": 10**400}])
    texts = {"bridge.prototxt": 'layer { name: "a" type: "X" }', "bridge.blobs": blobs}
    header = json.dumps({"__metadata__": texts}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FormatError, match="does not fit float32"):
        bridge.load(tmp_path / "a.safetensors")
