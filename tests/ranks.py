"""What one rank of the tests of several processes runs: ``mpiexec -n 2 python -m tests.ranks FOLDER OPTIMIZER...``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.finetuning import small_npz

RATES = {"AdaDelta": 1.0, "Adam": 1e-3, "RMSProp": 1e-3, "AdaGrad": 0.001, "AdamW": 1e-3}
BATCH, STEPS = 24, 20


def trained(folder: Path, prototxt: str, weights: str, optimizer: str, communicator: str) -> dict[str, np.ndarray]:
    """The parameters after 20 steps of an optimizer, all layers trained, 24 images a step."""
    from bridge.finetuning import Config, Recipe
    from bridge.finetuning.run import begin

    momentum = {"AdaGrad": 0.0, "RMSProp": 0.0, "AdaDelta": 0.95}.get(optimizer, 0.9)
    rate = RATES.get(optimizer, 0.01)
    recipe = Recipe(optimizer, base_lr=rate, momentum=momentum, weight_decay=5e-4, seed=3, max_iter=STEPS)
    loop = begin(
        Config(
            files=(prototxt, weights),
            data=str(folder / "data.npz"),
            output=str(folder / f"{Path(prototxt).stem}{optimizer}{communicator}"),
            heads=("fc8=4",),
            batch_size=BATCH,
            scale=1 / 256,
            mirror=True,
            recipe=recipe,
            communicator=communicator,
        )
    )
    loop.run()
    return {name: np.array(param.array) for name, param in loop.chain.namedparams()}


def differences(folder: Path, names: list[str]) -> dict[str, float]:
    """The largest difference of a parameter between the ranks' runs, in FOLDER/NAME.npz, and one process's."""
    found: dict[str, float] = {}
    for name in names:
        model, optimizer = name.split(".")
        mine = trained(folder, *files(folder, model), optimizer, "")
        with np.load(folder / f"{name}.npz") as theirs:
            found[name] = max(float(np.abs(values - theirs[key]).max()) for key, values in mine.items())
    return found


def files(folder: Path, model: str) -> tuple[str, str]:
    """The small model as it is, with its dropout, or without."""
    from tests.finetuning import MODEL

    if model == "dropout":
        return MODEL
    kept = [text for text in Path(MODEL[0]).read_text().splitlines() if "Dropout" not in text]
    (folder / "plain.prototxt").write_text("\n".join(kept))
    return str(folder / "plain.prototxt"), MODEL[1]


def main(folder: Path, names: list[str]) -> None:
    """Train with each optimizer, and let rank 0 write the parameters to FOLDER/NAME.npz."""
    from bridge.finetuning.parallel import world

    ranks: Any = world()
    for name in names:
        model, optimizer = name.split(".")
        if ranks.Get_rank() == 0:
            small_npz(folder / "data.npz", 120)
            files(folder, model)
        ranks.Barrier()
        arrays = trained(folder, *files_there(folder, model), optimizer, "naive")
        if ranks.Get_rank() == 0:
            with open(folder / f"{name}.npz", "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]


def files_there(folder: Path, model: str) -> tuple[str, str]:
    """The same as :func:`files`, which rank 0 has written."""
    from tests.finetuning import MODEL

    return MODEL if model == "dropout" else (str(folder / "plain.prototxt"), MODEL[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
