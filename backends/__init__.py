"""The interchangeable readers: each module offers one function, ``read(path, *, prototxt=None, **options) -> RawNet``."""
