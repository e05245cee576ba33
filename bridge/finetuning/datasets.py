"""The training and the validation data of a run, and whether their labels are classes of the net."""

from __future__ import annotations

import numpy as np

from bridge.errors import UsageError
from bridge.finetuning.config import Config
from bridge.finetuning.data import Data, Loading, load_data, named, split
from bridge.finetuning.listener import Work, silent
from bridge.finetuning.material import GivenData, Material, loaded_data
from bridge.finetuning.objective import Objective
from bridge.finetuning.parallel import Ranks
from bridge.schema import Net, Shape, count


def load_splits(
    config: Config,
    shape: Shape,
    resize: tuple[int, int],
    ranks: Ranks,
    work: Work = silent,
    material: Material | None = None,
) -> tuple[Data, Data | None]:
    """Load the data of a run, and hold out a part for validation.

    Args:
        config: The settings.
        shape: (N, C, H, W) of the net's input.
        resize: (height, width) that pictures are brought to.
        ranks: The processes; rank 0 loads the data for all.
        work: Is told how many pictures are decoded.
        material: Data in memory, in place of those that the settings name.

    Returns:
        Training data, and validation data or ``None``.

    Raises:
        UsageError: There are no images, or none are left to train on.
        FormatError: Data cannot be read.
    """
    loading = Loading(
        shape=(shape[1], shape[2], shape[3]),
        resize=resize,
        workers=config.workers * ranks.local_size,
        max_bad=config.max_bad,
        memory=config.cache_memory,
        folder=config.folder,
        root=config.root,
        work=work,
    )
    given = material or Material()
    data = _shared(given.data, config.data, loading, ranks)
    if ranks.size > 1 and data.fixed:
        raise UsageError("a sequence of fixed batches cannot be shared by several processes", where=config.data)
    held_out = _shared(given.validation, config.validation, loading, ranks, data.classes) if config.validation else None
    for found, where in ((data, config.data), (held_out, config.validation)):
        if found is not None and not len(found):
            raise UsageError("has no images", where=where)
    if config.classes:
        data = named(data, config.classes)
    if held_out is not None:
        return data, held_out
    if data.fixed or not config.validation_share:
        return data, None
    train, held = split(data, config.validation_share, config.recipe.seed)
    if not len(train):
        raise UsageError(f"{len(data)} images leave none to train on", where=config.data)
    return data.take(train, data.notes), data.take(held) if len(held) else None


def _shared(given: GivenData, source: str, loading: Loading, ranks: Ranks, classes: tuple[str, ...] = ()) -> Data:
    """The data that are given, or else those of a source, in every rank.

    Rank 0 reads the source. The others get what it has in memory; where pictures went to a file, they map the file,
    or decode for themselves on a machine that does not see it.
    """
    if given is not None or ranks.size == 1:
        return loaded_data(given, source, loading, classes)
    data = load_data(source, loading, classes) if ranks.first else None
    mapped = ranks.broadcast(data is not None and isinstance(data.x, np.memmap))
    if mapped:
        return data if data is not None else load_data(source, loading, classes)
    found: Data = ranks.broadcast(data)
    return found


def check_labels(net: Net, objective: Objective, data: Data, where: str) -> list[str]:
    """Check that the net has an output for each class.

    Returns:
        Remarks, one line each.

    Raises:
        UsageError: Labels are not whole numbers, or not classes of the net; the hint names the usual remedy.
    """
    wanted_each, each = count((net.inputs[objective.label] or (1,))[1:]), count(data.y.shape[2 if data.fixed else 1 :])
    if each != wanted_each:
        raise UsageError(f"each image has {_numbers(each)}, the net takes {_numbers(wanted_each)}", where=where)
    if objective.answers and (data.y.min(initial=0) < 0 or data.y.max(initial=0) > 1):
        raise UsageError(
            f"labels run from {data.y.min():g} to {data.y.max():g}", expected="0 for no, 1 for yes", where=where
        )
    if objective.scores is None or objective.answers:
        return []
    if data.y.dtype.kind != "i":
        raise UsageError("labels are no whole numbers, and the net tells classes apart", where=where)
    found = np.unique(data.y).tolist()
    low, high = found[0], found[-1]
    wanted = max(high + 1, len(data.classes))
    if low < 0 or wanted > objective.classes:
        raise UsageError(
            f"labels run from {low} to {high}{f' of {wanted} classes' if data.classes else ''}, the net tells "
            f"{objective.classes} classes apart, from 0 to {objective.classes - 1}",
            where=where,
            hint=_remedy(net, objective, found, wanted),
        )
    if wanted < objective.classes:
        return [f"the net tells {objective.classes} classes apart, the data have {wanted}"]
    return []


def _numbers(number: int) -> str:
    return "1 label" if number == 1 else f"{number} labels"


def _remedy(net: Net, objective: Objective, labels: list[int], wanted: int) -> str:
    """The usual remedy where labels are not the net's classes."""
    if labels[0] < 0 or (labels[-1] == 255 and 254 not in labels):
        return f"if {labels[0] if labels[0] < 0 else 255} means 'none', leave these images out"
    if labels[0] == 1 and labels[-1] == objective.classes:
        return "count classes from 0"
    heads = [layer.name for layer in net.layers if objective.scores in layer.tops and layer.outputs is not None]
    return f"--head {heads[-1] if heads else 'LAYER'}={wanted} gives it a new head"
