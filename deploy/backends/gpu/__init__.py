"""NVIDIA GPUs: what all their backends share, CUDA graphs, TensorRT and TensorRT for RTX."""
