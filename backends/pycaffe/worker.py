"""Serves nets of the real Caffe to :mod:`backends.pycaffe`, over stdin and stdout.

This file is not imported: its text is handed to the interpreter that has Caffe, which
may be Python 2.7 to 3.13, in a container or not. It needs NumPy and Caffe alone.

A message is ``BRDG``, the header's length (uint64, little-endian), the header (a JSON
object) and the arrays that the header's ``arrays`` lists as ``[dtype, shape]``, raw,
in C order, little-endian. The worker greets, then answers each request with one
message; one with ``error`` says why it could not. Layers and blobs are spoken of by
index, so that no name needs decoding here.
"""

# This runs on Python 2.7 too.
# mypy: ignore-errors
# ruff: noqa: B905, SIM112, SIM115, UP031

import json
import os
import struct
import sys
import tempfile

import numpy

MAGIC = b"BRDG"
UNTOUCHED = 0x7FDEAD01  # a NaN that no training writes: tells what copy_from left alone
NETS = {}


def receive(stream):
    """The next request and its arrays; ``(None, [])`` at the end of the stream."""
    head = stream.read(12)
    if len(head) < 12:
        return None, []
    magic, size = struct.unpack("<4sQ", head)
    if magic != MAGIC:
        raise ValueError("the request does not start with BRDG")
    header = json.loads(stream.read(size).decode("utf-8"))
    arrays = []
    for dtype, shape in header["arrays"]:
        dtype = numpy.dtype(str(dtype))
        count = 1
        for extent in shape:
            count *= extent
        arrays.append(numpy.frombuffer(stream.read(count * dtype.itemsize), dtype).reshape(shape))
    return header, arrays


def send(stream, header, arrays=()):
    """Answer with a header and arrays."""
    arrays = [numpy.asarray(array, dtype="<f4", order="C") for array in arrays]
    text = json.dumps(dict(header, arrays=[[a.dtype.str, list(a.shape)] for a in arrays])).encode("utf-8")
    stream.write(struct.pack("<4sQ", MAGIC, len(text)) + text)
    for array in arrays:
        stream.write(array.tobytes())
    stream.flush()


def spill(data):
    """A file with the given bytes that goes when this process does, abort or not, and its path."""
    nameless = os.path.isdir("/proc/self/fd")
    file = tempfile.TemporaryFile() if nameless else tempfile.NamedTemporaryFile()
    file.write(data.tobytes())
    file.flush()
    return file, "/proc/self/fd/%d" % file.fileno() if nameless else file.name


def identity(path):
    """What tells that two processes see the same file under a path."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_size, int(found.st_mtime)]


def sees(caffe, ask, arrays):
    """Whether the file of the request is here under the same path."""
    return {"sees": identity(ask["path"]) == ask["identity"]}, []


def load(caffe, ask, arrays):
    """Make a net from the text and the weights of the request; describe it."""
    files = [spill(array) for array in arrays]
    net = caffe.Net(str(files[0][1]), caffe.TEST)
    params = [blob.data for layer in net.layers for blob in layer.blobs]
    for array in params:
        array.view(numpy.uint32)[...] = UNTOUCHED
    if ask["path"]:
        net.copy_from(str(ask["path"]))
    elif len(files) > 1:
        net.copy_from(str(files[1][1]))
    NETS[ask["net"]] = net
    layers = [
        [name, layer.type, list(net._top_ids(index)), [untouched(blob.data) for blob in layer.blobs]]
        for index, (name, layer) in enumerate(zip(net._layer_names, net.layers))
    ]
    blobs = [[name, list(blob.data.shape)] for name, blob in zip(net._blob_names, net._blobs)]
    return {"layers": layers, "blobs": blobs, "inputs": list(net._inputs), "outputs": list(net._outputs)}, []


def untouched(array):
    """Whether nothing was written to a parameter."""
    return bool((array.view(numpy.uint32) == UNTOUCHED).all())


def params(caffe, ask, arrays):
    """All parameters, layer by layer."""
    return {}, [blob.data for layer in NETS[ask["net"]].layers for blob in layer.blobs]


def forward(caffe, ask, arrays):
    """Blobs for the given inputs: some at the end, or each layer's right after it ran."""
    net = NETS[ask["net"]]
    blobs = net._blobs
    for index, array in zip(ask["inputs"], arrays):
        blobs[index].reshape(*array.shape)
    net.reshape()
    for index, array in zip(ask["inputs"], arrays):
        blobs[index].data[...] = array
    if ask["blobs"] is not None:
        net._forward(0, len(net.layers) - 1)
        return {}, [blobs[index].data for index in ask["blobs"]]
    found = []
    for layer in range(len(net.layers)):
        net._forward(layer, layer)
        found += [blobs[index].data.copy() for index in net._top_ids(layer)]
    return {}, found


def forget(caffe, ask, arrays):
    """Free a net."""
    NETS.pop(ask["net"], None)
    return {}, []


ANSWERS = {"sees": sees, "load": load, "params": params, "forward": forward, "forget": forget}


def failure(error):
    """An exception in one line."""
    return {"error": " ".join(("%s: %s" % (type(error).__name__, error)).split())}


def main():
    """Greet, then answer until stdin ends."""
    requests = getattr(sys.stdin, "buffer", sys.stdin)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what else prints here must not get between the answers
    os.environ["GLOG_minloglevel"] = "2"
    try:
        import caffe

        caffe.set_mode_cpu()
    except Exception as error:  # whatever is wrong in there, the parent must learn it
        send(answers, failure(error))
        return
    version = str(getattr(caffe, "__version__", "unknown"))
    hello = {"caffe": version, "numpy": numpy.__version__, "python": sys.version.split()[0]}
    send(answers, dict(hello, types=list(caffe.layer_type_list())))
    while True:
        ask, arrays = receive(requests)
        if ask is None:
            return
        try:
            answer, found = ANSWERS[ask["op"]](caffe, ask, arrays)
        except Exception as error:  # as above
            answer, found = failure(error), []
        send(answers, answer, found)


if __name__ == "__main__":
    main()
