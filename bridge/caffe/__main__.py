"""``python -m bridge.caffe SCRIPT.py ARGS``: run a script whose ``import caffe`` means this package."""

from __future__ import annotations

import importlib.util
import sys

from bridge.caffe.installing import run_script
from bridge.errors import BridgeError

_USAGE = """\
usage: python -m bridge.caffe SCRIPT.py ARGS      run a script; its 'import caffe' means this package
       python -m bridge.caffe --cpu SCRIPT.py ... the same on the CPU, though the script asks for a GPU
       python -m bridge.caffe -m MODULE ARGS      the same for a module, as python -m runs it
       python -m bridge.caffe train|test|time|device_query ...  as the caffe program
       python -m bridge.caffe convert_imageset|compute_image_mean|extract_features|upgrade_... as Caffe's programs
"""


def main(arguments: list[str]) -> int:
    """Run a script, a module, or a command of the caffe program; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] == "--cpu" and len(arguments) > 1:
        from bridge.caffe.state import stay_on_cpu

        stay_on_cpu()
        return main(arguments[1:])
    if arguments[0] == "-m" and len(arguments) > 1:
        return _module(arguments[1], arguments[2:])
    if not arguments[0].endswith(".py") and importlib.util.find_spec("bridge.caffe.commands"):
        from bridge.caffe import commands

        if arguments[0] in commands.NAMES:
            return int(commands.main(arguments))
    try:
        run_script(arguments[0], arguments[1:])
    except BridgeError as error:
        if error.__traceback__ is None or not _in_script(error):
            print(f"error: {error}", file=sys.stderr)
            return 2
        raise
    return 0


def _in_script(error: BridgeError) -> bool:
    """Whether the script itself ran when the error came."""
    frame = error.__traceback__
    while frame is not None:
        code, names = frame.tb_frame.f_code, frame.tb_frame.f_globals
        if names.get("__name__") == "__main__" and not code.co_filename.endswith("__main__.py"):
            return True
        frame = frame.tb_next
    return False


def _module(name: str, arguments: list[str]) -> int:
    import runpy

    from bridge.caffe.installing import install, restore_numpy_names

    install()
    restore_numpy_names()
    sys.argv[1:] = arguments
    sys.path[0] = ""
    runpy.run_module(name, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
