"""DeepSeek-VL2 without PyTorch: `export.py` makes ONNX graphs of a checkpoint, `network.py` runs them.

Exporting needs the package onnx, running needs onnxruntime; nothing here imports torch.
"""
