"""``cv2.dnn.readNetFromCaffe`` on an OpenCV that has it no more.

::

    from bridge.opencv import readNetFromCaffe

    net = readNetFromCaffe("deploy.prototxt", "weights.caffemodel")

Or ``bridge.opencv.install()``, and the script keeps its ``cv2.dnn.readNetFromCaffe``.
"""

from __future__ import annotations

from bridge.opencv.reading import install, readNet, readNetFromCaffe

__all__ = ["install", "readNet", "readNetFromCaffe"]
