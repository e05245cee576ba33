"""A Variable or Parameter as an initializer."""

from __future__ import annotations

from typing import Any


def initial_values(variable: Any) -> Any:
    """What ``initialW=net.conv1.W`` stands for: the values that the parameter has now.

    Args:
        variable: A ``chainer.Variable`` or ``chainer.Parameter``.

    Returns:
        The array. For a grouped weight of :class:`bridge.chain.CaffeFunction`, an initializer that also fills a
        link without groups, as Chainer's own ``CaffeFunction`` would.

    Raises:
        ValueError: It has no values yet.
    """
    if variable.array is None:
        raise ValueError("a parameter that has no values yet is no initializer")
    group = getattr(variable, "caffe_group", 1)
    return variable.array if group == 1 else _Grouped(variable.array, group)


class _Grouped:
    """A grouped weight as an initializer: as it is, or dense with zeros between the groups.

    Source: chainer.initializer.Initializer.
    """

    dtype = None
    """Chainer's sign that the initializer takes an array of any dtype."""

    def __init__(self, values: Any, group: int) -> None:
        self.values, self.group = values, group

    def __call__(self, array: Any) -> None:
        """Fill an array of either shape, NumPy's; a shape that is neither is NumPy's error."""
        from bridge.schema.groups import spread_groups

        array[...] = self.values if array.shape == self.values.shape else spread_groups(self.values, self.group)
