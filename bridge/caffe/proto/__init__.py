"""Caffe's protocol buffers; ``caffe_pb2`` has the message classes."""
