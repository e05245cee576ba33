"""The interchangeable readers.

Each module offers one function, ``read(path, *, prototxt=None, **options) -> RawNet``; none imports another.
"""
