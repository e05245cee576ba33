"""Frozen parameters and statistics keep their bits, and nothing is computed for them."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import UsageError
from tests.conftest import need

pytestmark = pytest.mark.filterwarnings("ignore:.*(zero|clear)grads? is deprecated:DeprecationWarning")

GROUPED = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 4 dim: 6 dim: 6 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "c1"
  convolution_param { num_output: 4 kernel_size: 3 group: 2 weight_filler { type: "xavier" } } }
layer { name: "bn1" type: "BatchNorm" bottom: "c1" top: "c1" }
layer { name: "scale1" type: "Scale" bottom: "c1" top: "c1" scale_param { bias_term: true } }
layer { name: "conv2/a" type: "Convolution" bottom: "c1" top: "c2"
  convolution_param { num_output: 6 kernel_size: 3 group: 2 weight_filler { type: "xavier" } } }
layer { name: "bn2" type: "BatchNorm" bottom: "c2" top: "c2" }
layer { name: "relu" type: "ReLU" bottom: "c2" top: "c2" }
layer { name: "fc" type: "InnerProduct" bottom: "c2" top: "fc"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
"""


def built() -> Any:
    """A chain of two blocks with batch normalisation and a head."""
    need("chainer")
    return bridge.build_chain(assemble(None, prototxt.parse(GROUPED)), seed=0)


def written() -> Any:
    """A chain as a user writes it: nested, with arrays of its own, and sizes left open."""
    need("chainer")
    from bridge.chain.functions import chainer

    F, L = chainer.functions, chainer.links

    class Norm(L.BatchNormalization):
        """What a user makes of a link."""

    class Block(chainer.Chain):
        def __init__(self, channels: int, norm: Any) -> None:
            super().__init__()
            with self.init_scope():
                self.conv = L.Convolution2D(None, channels, 3, groups=2)
                self.norm = norm
                self.gain = chainer.Parameter(np.ones(1, np.float32))

        def forward(self, x: Any) -> Any:
            y = self.norm(self.conv(x))
            return F.relu(y * F.broadcast_to(F.reshape(self.gain, (1, 1, 1, 1)), y.shape))

    class Model(chainer.Chain):
        def __init__(self) -> None:
            super().__init__()
            with self.init_scope():
                self.blocks = chainer.ChainList(Block(4, Norm(4)), Block(6, L.BatchNormalization(axis=(0, 2, 3))))
                self.head = chainer.Sequential(L.Linear(None, 5), F.relu, L.Linear(None, 3))
                self.temperature = chainer.Parameter(np.ones(1, np.float32))

        def forward(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            y = self.head(x)
            return y * F.broadcast_to(self.temperature, y.shape)

    return Model()


CHAINS: dict[str, tuple[Callable[[], Any], str, list[str]]] = {
    "built": (built, "conv* bn* scale*", ["conv1", "bn1", "scale1", "conv2/a", "bn2"]),
    "built, all but the first": (built, "bn1 conv2/a bn2 fc", ["bn1", "conv2/a", "bn2", "fc"]),
    "written": (written, "blocks*", ["blocks"]),
    "written, links": (written, "blocks/0 blocks/1/norm head/0", ["blocks/0", "blocks/1/norm", "head/0"]),
}


def state(chain: Any, names: list[str]) -> dict[str, bytes]:
    """Every parameter and statistic of these layers, as bits."""
    from bridge.chain.names import named_links

    found = {}
    for path, link in named_links(chain):
        if any(path == name or path.startswith(f"{name}/") for name in names):
            for name in sorted(link._params | link._persistent):
                array = getattr(link, name)
                found[f"{path}/{name}"] = np.asarray(getattr(array, "array", array)).tobytes()
    assert found
    return found


def step(chain: Any, optimizer: Any, seed: int = 0) -> None:
    """One training step."""
    from bridge.chain.functions import chainer

    rng = np.random.default_rng(seed)
    x, t = rng.standard_normal((4, 4, 6, 6)).astype("f"), rng.integers(0, 3, 4).astype("i")
    optimizer.update(lambda: chainer.functions.softmax_cross_entropy(chain(x), t))


def optimizers() -> list[str]:
    need("chainer")
    from bridge.chain.functions import chainer

    kinds = vars(chainer.optimizers).items()
    return sorted(name for name, kind in kinds if inspect.isclass(kind) and issubclass(kind, chainer.Optimizer))


SOLVERS = ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"]


def optimizer_named(name: str) -> Any:
    """One of Chainer's, or with ``Caffe`` in front one of Caffe's."""
    from bridge.chain.functions import chainer
    from bridge.finetuning.recipe import Recipe
    from bridge.finetuning.rules import CaffeOptimizer

    if not name.startswith("Caffe "):
        return getattr(chainer.optimizers, name)()
    recipe = Recipe(type=name.removeprefix("Caffe "), base_lr=0.1, weight_decay=0.1, clip_gradients=0.5)
    return CaffeOptimizer(recipe)


HOOKS = {
    "WeightDecay": (0.1,), "Lasso": (0.1,), "GradientClipping": (0.01,), "GradientNoise": (0.3,),
    "GradientHardClipping": (-0.1, 0.1), "GradientLARS": (),
}  # fmt: skip


def hook(name: str) -> Any:
    from bridge.chain.functions import chainer

    return getattr(chainer.optimizer_hooks, name)(*HOOKS[name])


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Some of the optimizers, such as MSVAG with its default rate, run away on data that is noise."""
    with np.errstate(all="ignore"):
        yield


# ---- the law ----------------------------------------------------------------------------------


NAMES = st.deferred(lambda: st.sampled_from([*optimizers(), *(f"Caffe {name}" for name in SOLVERS)]))


@settings(max_examples=60)
@given(
    kind=st.sampled_from(sorted(CHAINS)),
    name=NAMES,
    hooks=st.lists(st.sampled_from(sorted(HOOKS)), unique=True),
    before=st.booleans(),
    warm=st.booleans(),
    cleargrads=st.booleans(),
    travel=st.sampled_from(["", "copy", "deepcopy", "pickle", "share"]),
    steps=st.integers(1, 3),
)
def test_what_is_frozen_keeps_its_bits(
    kind: str, name: str, hooks: list[str], before: bool, warm: bool, cleargrads: bool, travel: str, steps: int
) -> None:
    make, patterns, names = CHAINS[kind]
    chain = make()
    if warm:  # sizes known, statistics moving, and histories in the optimizer
        step(chain, optimizer_named(name).setup(chain))
    if before:
        bridge.freeze(chain, *patterns.split())
        chain = travelled(chain, travel)
    optimizer = optimizer_named(name).setup(chain)
    if not name.startswith("Caffe"):
        for each in hooks:
            optimizer.add_hook(hook(each))
    optimizer.use_cleargrads(cleargrads)
    if not warm:
        with np.errstate(all="ignore"):
            chain(np.zeros((4, 4, 6, 6), np.float32))  # the first pass gives open sizes their values
    if not before:
        assert set(bridge.freeze(chain, *patterns.split())) >= set(names)
    expected, everything = state(chain, names), state(chain, ["fc", "head", "conv1", "blocks"])
    for number in range(steps):
        step(chain, optimizer, number)
    assert state(chain, names) == expected
    assert state(chain, ["fc", "head", "conv1", "blocks"]) != everything  # the rest did learn


def travelled(chain: Any, how: str) -> Any:
    made = {
        "": lambda: chain,
        "copy": lambda: chain.copy(mode="copy"),
        "share": lambda: chain.copy(),
        "deepcopy": lambda: copy.deepcopy(chain),
        "pickle": lambda: pickle.loads(pickle.dumps(chain)) if hasattr(chain, "net_outputs") else copy.deepcopy(chain),
    }[how]()
    assert [path for path, _ in made.namedparams()] == [path for path, _ in chain.namedparams()]
    return made


@settings(max_examples=20)
@given(group=st.integers(2, 3), rows=st.integers(1, 2), columns=st.integers(1, 2), name=NAMES, steps=st.integers(1, 3))
def test_a_grouped_convolution_is_still_grouped(group: int, rows: int, columns: int, name: str, steps: int) -> None:
    need("chainer")
    text = f"""
    layer {{ name: "x" type: "Input" top: "x"
      input_param {{ shape {{ dim: 1 dim: {group * columns} dim: 4 dim: 4 }} }} }}
    layer {{ name: "conv" type: "Convolution" bottom: "x" top: "y" convolution_param {{
      num_output: {group * rows} kernel_size: 3 group: {group} weight_filler {{ type: "xavier" }} }} }}
    """
    net = assemble(None, prototxt.parse(text))
    chain = bridge.build_chain(net, seed=0)
    optimizer = optimizer_named(name).setup(chain)
    from bridge.chain.functions import chainer

    x = np.random.default_rng(0).standard_normal((1, group * columns, 4, 4)).astype("f")
    for _ in range(steps):
        optimizer.update(lambda: chainer.functions.mean(chain(x) ** 2))
    trained = bridge.from_chain(chain, net)["conv"]
    assert trained.group == group
    assert trained.weight.shape == (group * rows, columns, 3, 3)
    other = x.copy()
    other[:, :columns] += 1  # the first group's input
    same = chain(x).array == chain(other).array
    assert same[:, rows:].all()


# ---- and the rest -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(CHAINS))
def test_thawing_is_the_opposite(kind: str) -> None:
    make, patterns, names = CHAINS[kind]
    chain = make()
    chain(np.ones((4, 4, 6, 6), np.float32))
    classes = [type(link) for link in chain.links()]
    optimizer = optimizer_named("Adam").setup(chain)
    bridge.freeze(chain, *patterns.split())
    step(chain, optimizer)
    frozen = state(chain, names)
    assert bridge.thaw(chain, *patterns.split())
    assert [type(link) for link in chain.links()] == classes
    step(chain, optimizer)
    now = state(chain, names)
    assert all(now[key] != bits for key, bits in frozen.items() if not key.endswith("/N"))


def test_a_layer_thaws_at_an_epoch_of_chainers_trainer(tmp_path: Path) -> None:
    chain = built()
    from bridge.chain.functions import chainer

    rng = np.random.default_rng(0)
    data = chainer.datasets.TupleDataset(
        rng.standard_normal((8, 4, 6, 6)).astype("f"), rng.integers(0, 3, 8).astype("i")
    )
    model = chainer.links.Classifier(chain)
    bridge.freeze(chain, "conv1")
    optimizer = optimizer_named("MomentumSGD").setup(model)
    updater = chainer.training.StandardUpdater(chainer.iterators.SerialIterator(data, 4), optimizer)
    trainer = chainer.training.Trainer(updater, (3, "epoch"), out=str(tmp_path))
    trainer.extend(lambda trainer: bridge.thaw(chain, "conv1"), name="thaw", trigger=(2, "epoch"))
    seen: list[bytes] = []
    trainer.extend(
        lambda trainer: seen.append(chain.child("conv1").W.array.tobytes()), name="see", trigger=(1, "epoch")
    )
    trainer.run()
    assert seen[0] == seen[1] != seen[2]


def test_a_snapshot_resumes_with_the_same_layers_frozen(tmp_path: Path) -> None:
    from bridge.chain.functions import chainer

    first = built()
    optimizer = optimizer_named("Adam").setup(first)
    bridge.freeze(first, "conv*", "bn*")
    step(first, optimizer)
    chainer.serializers.save_npz(tmp_path / "model.npz", first)
    chainer.serializers.save_npz(tmp_path / "optimizer.npz", optimizer)
    second = built()
    bridge.freeze(second, "conv*", "bn*")
    resumed = optimizer_named("Adam").setup(second)
    chainer.serializers.load_npz(tmp_path / "model.npz", second)
    chainer.serializers.load_npz(tmp_path / "optimizer.npz", resumed)
    for chain, rule in ((first, optimizer), (second, resumed)):
        step(chain, rule, 1)
    every = ["conv1", "bn1", "scale1", "conv2/a", "bn2", "fc"]
    assert state(first, every) == state(second, every)


def test_a_thawed_layer_goes_with_the_snapshot_as_if_it_had_never_been_frozen(tmp_path: Path) -> None:
    """Its momentum is saved, and a snapshot that lacks it is refused, where a frozen layer's may be missing."""
    from bridge.chain.functions import chainer

    first, saved = built(), {}
    optimizer = optimizer_named("MomentumSGD").setup(first)
    for name, change in (("frozen", bridge.freeze), ("thawed", bridge.thaw)):
        change(first, "*")
        step(first, optimizer)
        saved[name] = tmp_path / f"{name}.npz"
        chainer.serializers.save_npz(saved[name], optimizer)
    with np.load(saved["thawed"]) as archive:
        assert any(key.endswith("conv1/W/v") for key in archive), list(archive)

    def load(path: Path, frozen: bool) -> None:
        second = built()
        resumed = optimizer_named("MomentumSGD").setup(second)
        bridge.freeze(second, "*")
        if not frozen:
            bridge.thaw(second, "*")
        chainer.serializers.load_npz(path, resumed)

    load(saved["frozen"], frozen=True)
    load(saved["thawed"], frozen=False)
    with pytest.raises(KeyError):
        load(saved["frozen"], frozen=False)


@pytest.mark.parametrize("patterns", [["fc9"], ["conv*", "block?"], []])
def test_a_pattern_that_chooses_nothing_is_refused_and_nothing_frozen(patterns: list[str]) -> None:
    from bridge.chain.freezing import is_frozen

    chain = built()
    with pytest.raises(UsageError):
        bridge.freeze(chain, *patterns)
    assert not any(map(is_frozen, chain.params()))


def test_names_with_brackets_are_names_first() -> None:
    text = GROUPED.replace("conv2/a", "conv[2]")
    chain = bridge.build_chain(assemble(None, prototxt.parse(text)), seed=0)
    assert bridge.freeze(chain, "conv[2]") == ["conv[2]"]
    assert chain.child("conv[2]").W.requires_grad is False


def test_a_pattern_may_be_the_end_of_a_path() -> None:
    chain = built()
    from bridge.chain.functions import chainer

    model = chainer.links.Classifier(chain)
    assert bridge.freeze(model, "conv*") == ["predictor/conv1", "predictor/conv2/a"]
    assert bridge.freeze(chain, "a") == ["conv2/a"]
    assert bridge.freeze(written(), "conv") == ["blocks/0/conv", "blocks/1/conv"]


def test_one_parameter_of_a_layer_can_be_frozen() -> None:
    from bridge.chain.freezing import is_frozen

    for chain in (built(), written()):
        frozen = bridge.freeze(chain, "*/b")
        assert frozen
        assert all(is_frozen(param) == path.endswith("/b") for path, param in chain.namedparams())


def test_a_link_alone_and_a_chains_own_parameters_can_be_frozen() -> None:
    need("chainer")
    from bridge.chain.freezing import is_frozen
    from bridge.chain.functions import chainer

    link = chainer.links.Linear(2, 3)
    bridge.freeze(link, "*")
    assert all(map(is_frozen, link.params()))
    chain = written()
    bridge.freeze(chain, "*")
    assert all(map(is_frozen, chain.params()))
    bridge.thaw(chain, "temperature")
    assert [path for path, param in chain.namedparams() if not is_frozen(param)] == ["/temperature"]


def test_batch_normalisation_without_parameters_keeps_its_statistics() -> None:
    need("chainer")
    from bridge.chain.functions import chainer

    chain = chainer.Sequential(chainer.links.BatchNormalization(4, use_gamma=False, use_beta=False))
    assert bridge.freeze(chain, "0") == ["0"]
    x = np.random.default_rng(0).standard_normal((4, 4)).astype("f")
    assert chain(x).array.mean() != pytest.approx(0, abs=1e-7)  # the running statistics count
    assert not chain[0].avg_mean.any()


def test_dropout_within_a_frozen_block_goes_on() -> None:
    need("chainer")
    from bridge.chain.functions import chainer

    F, L = chainer.functions, chainer.links
    chain = chainer.Sequential(chainer.Sequential(L.Linear(4, 4), F.dropout), L.Linear(4, 2))
    bridge.freeze(chain, "0")
    assert (chain[0](np.ones((50, 4), np.float32)).array == 0).any()


def test_a_parameter_that_two_layers_share_is_frozen_by_the_name_of_either() -> None:
    shared = """
    layer { name: "a" type: "Input" top: "a" input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "ip1" type: "InnerProduct" bottom: "a" top: "x" param { name: "w" }
      inner_product_param { num_output: 3 } }
    layer { name: "ip2" type: "InnerProduct" bottom: "x" top: "y" param { name: "w" }
      inner_product_param { num_output: 3 } }
    """
    chain = bridge.build_chain(assemble(None, prototxt.parse(shared)), seed=0)
    assert [path for path, _ in chain.namedparams()] == ["/ip1/W", "/ip1/b", "/ip2/b"]
    bridge.freeze(chain, "ip2")
    assert not chain.child("ip1").W.requires_grad
    assert chain.child("ip1").b.requires_grad
