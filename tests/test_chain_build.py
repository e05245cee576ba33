"""What build_chain keeps apart and what it shares."""

from __future__ import annotations

import bridge
from tests.conftest import need

LAYER = """
layer {{ name: "fc{0}" type: "InnerProduct" bottom: "{1}" top: "fc{0}" inner_product_param {{ num_output: 4 }} }}
"""


def test_layers_that_are_filled_have_arrays_of_their_own(tmp_path):
    need("chainer")
    head = 'input: "data" input_shape { dim: 1 dim: 4 }'
    body = "".join(LAYER.format(i, f"fc{i - 1}" if i else "data") for i in range(60))
    (tmp_path / "deep.prototxt").write_text(head + body, encoding="utf-8")
    chain = bridge.build_chain(bridge.load(tmp_path / "deep.prototxt"))
    assert len(list(chain.params())) == 2 * 60
