"""A stand-in for the real Caffe that misbehaves as the net's name says; runs on Python 2.7 too.

Its nets take a blob ``data``, write ``ip`` twice, the second time in place, and have one
layer of their own, ``ip``, with a weight of ones.
"""

import os
import sys
import time

import numpy as np

TEST = 1
__version__ = "0.0-fake"

if os.environ.get("FAKE_CAFFE") == "broken":
    raise TypeError("Descriptors cannot be created directly.")
if os.environ.get("FAKE_CAFFE") == "slow":
    time.sleep(60)


def set_mode_cpu():
    pass


def layer_type_list():
    return ["InnerProduct", "ReLU"]


class Blob(object):  # noqa: UP004
    def __init__(self, *shape):
        self.reshape(*shape)

    def reshape(self, *shape):
        self.data = np.zeros(shape, np.float32)


class Layer(object):  # noqa: UP004
    def __init__(self, kind, *blobs):
        self.type, self.blobs = kind, blobs


def misbehave(name):
    if name == "abort":
        sys.stderr.write("F20260101 10:00:00.000000    12 net.cpp:757] Check failed: a == b (1 vs. 2) Nets differ\n")
        sys.stderr.write("*** Check failure stack trace: ***\n")
        sys.stderr.flush()
        os.abort()
    if name == "unparsable":
        sys.stderr.write("[libprotobuf ERROR some/file.cc:1] Error parsing text-format: 1:2: Expected a word\n")
        sys.stderr.write("F1231 10:00:00.000000    12 upgrade_proto.cpp:90] Check failed: ok Failed to parse x\n")
        sys.stderr.flush()
        os.abort()
    if name == "hang":
        time.sleep(60)
    if name == "quit":
        os._exit(3)
    if name == "raise":
        raise RuntimeError("Could not\nopen file")
    if name == "noise":
        os.write(1, b"BRDG noise on stdout\n")
        print("more of it")


class Net(object):  # noqa: UP004
    def __init__(self, path, phase):
        with open(path) as file:
            text = file.read()
        self.name = text.split('"')[1]
        misbehave(self.name)
        self._layer_names = ["data", "ip", "relu"]
        self.layers = [Layer("Input"), Layer("InnerProduct", Blob(2, 2), Blob(2)), Layer("ReLU")]
        self._blob_names = ["data", "ip"]
        self._blobs = [Blob(1, 2), Blob(1, 2)]
        self._inputs, self._outputs = [0], [1]

    def copy_from(self, path):
        with open(path, "rb") as file:
            assert file.read() == b"weights"
        self.layers[1].blobs[0].data[...] = 1
        if self.name != "half":
            self.layers[1].blobs[1].data[...] = -3

    def _top_ids(self, layer):
        return [min(layer, 1)]

    def reshape(self):
        self._blobs[1].reshape(*self._blobs[0].data.shape)

    def _forward(self, start, end):
        for layer in range(start, end + 1):
            misbehave({"abort later": "abort", "hang later": "hang"}.get(self.name, ""))
            weight, bias = (blob.data for blob in self.layers[1].blobs)
            if layer == 1:
                self._blobs[1].data[...] = self._blobs[0].data.dot(weight.T) + bias
            elif layer == 2:
                np.maximum(self._blobs[1].data, 0, self._blobs[1].data)
