"""
Conversion from native families and to native families, GGUF, ONNX, int8 and merged adapters.

Every result is compared with its source. Read `native.py` first.
"""
