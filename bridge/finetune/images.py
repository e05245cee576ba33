"""Pictures on disk as arrays of one size, decoded in worker processes.

This module is what a worker imports: Pillow and NumPy, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


def decode(job: tuple[str, int, int, int]) -> np.ndarray | str:
    """One picture.

    Args:
        job: Path, height, width, and 1 (grey) or 3 (colour) channels; no height keeps the size.

    Returns:
        uint8 (channels, height, width), channels in Caffe's order, blue first; or, for a
        file that is no picture, what is wrong with it.
    """
    from PIL import Image

    path, height, width, channels = job
    try:
        with Image.open(path) as picture:
            picture = picture.convert("L" if channels == 1 else "RGB")
            if height and picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture, np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error).splitlines()[0] or type(error).__name__
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1))


def decode_all(
    paths: Sequence[Path], size: tuple[int, int], channels: int, workers: int
) -> Iterator[np.ndarray | str]:
    """Each picture in order, from ``workers`` processes; 0 decodes in this one."""
    jobs = [(str(path), *size, channels) for path in paths]
    if workers < 1 or len(jobs) < 32:
        yield from map(decode, jobs)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")  # the parent may have threads, which a fork does not survive
    with ProcessPoolExecutor(workers, context) as pool:
        yield from pool.map(decode, jobs, chunksize=16)
