"""Decode pictures into arrays of one size, in worker processes.

Workers import this module only. It needs Pillow and NumPy, so that they start quickly.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge.errors import BridgeError, MissingExtraError
from bridge.extras import pip
from bridge.limits.budget import BUDGET
from bridge.limits.sources import image_faults

_AHEAD = 8
"""Batches of pictures per worker that are decoded in advance."""
_BATCH = 16
"""Pictures that a worker decodes at a time."""


def need_pillow() -> None:
    """Check that Pillow is there.

    Raises:
        MissingExtraError: It is not installed.
    """
    if importlib.util.find_spec("PIL") is None:
        raise MissingExtraError("reading pictures needs Pillow", hint=pip("finetune"))


def suffixes() -> frozenset[str]:
    """The endings of the files that this Pillow opens, in lower case."""
    from PIL import Image

    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def decode_picture(job: tuple[str, int, int, int]) -> np.ndarray | str:
    """Decode one picture, turned as its EXIF data say.

    Args:
        job: Path, height, width, and 1 (grey) or 3 (colour) channels; a height of 0 keeps the size.

    Returns:
        uint8 (channels, height, width), channels in Caffe's order, blue first. For a file that cannot be
        decoded, the reason as text.
    """
    from PIL import Image, ImageOps

    path, height, width, channels = job
    try:
        with Image.open(path) as opened:
            BUDGET.picture(os.path.getsize(path), opened.width, opened.height, "")
            picture = _eight_bits(ImageOps.exif_transpose(opened)).convert("L" if channels == 1 else "RGB")
            if height and picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture, np.uint8)
    except BridgeError as error:
        return error.text
    except image_faults(Image.DecompressionBombError) as error:
        text = getattr(error, "strerror", None) or str(error).replace(f" {path!r}", "")
        return (text.splitlines() or [type(error).__name__])[0]
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1))


def _eight_bits(picture: Any) -> Any:
    """A picture of 16-bit grey as one of 8 bits; Pillow would clip its values at 255."""
    from PIL import Image

    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))


def decode_all(paths: Sequence[Path], size: tuple[int, int], channels: int, workers: int) -> Iterator[np.ndarray | str]:
    """Decode pictures in ``workers`` processes, 0 in this one; yields each in order."""
    jobs = [(str(path), *size, channels) for path in paths]
    if workers < 1 or len(jobs) < 4 * _BATCH:
        yield from map(decode_picture, jobs)
        return
    import multiprocessing
    import signal
    from collections import deque
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")  # the parent may have threads, which a fork does not survive
    starts = iter(range(0, len(jobs), _BATCH))
    ignored = (signal.SIGINT, signal.SIG_IGN)  # the parent process answers Ctrl-C
    pool = ProcessPoolExecutor(workers, context, signal.signal, ignored)
    try:
        ahead = itertools.islice(starts, workers * _AHEAD)
        pending = deque(pool.submit(_decode_some, jobs[start : start + _BATCH]) for start in ahead)
        while pending:
            done = pending.popleft().result()
            following = next(starts, None)
            if following is not None:
                pending.append(pool.submit(_decode_some, jobs[following : following + _BATCH]))
            yield from done
    finally:  # Ctrl-C does not wait for pictures that nobody wants any more
        pool.shutdown(cancel_futures=True)


def _decode_some(jobs: Sequence[tuple[str, int, int, int]]) -> list[np.ndarray | str]:
    return [decode_picture(job) for job in jobs]
