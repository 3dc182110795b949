"""
Out of here and into here: native families, GGUF, ONNX, int8, merged adapters. Every result is compared with its
source. Read `native.py` first.
"""
