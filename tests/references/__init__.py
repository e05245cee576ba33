"""What the layers of Caffe's forks compute, in plain NumPy; a module for each family of layers."""

from tests.references import detection, layers, twins
from tests.references.common import REFERENCES

__all__ = ["REFERENCES", "detection", "layers", "twins"]
