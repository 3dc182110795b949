"""
Measuring saved models and predicting with them.

Read `predict.py` first; `language_model.py` measures bits per byte.
"""
