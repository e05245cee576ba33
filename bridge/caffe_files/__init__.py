"""Caffe's own files, and the rules by which Caffe reads them."""
