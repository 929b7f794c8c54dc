"""Backends for NVIDIA GPUs: CUDA graphs, TensorRT and TensorRT for RTX, and the parts that they share."""
