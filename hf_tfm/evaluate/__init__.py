"""
Measuring saved models and predicting with them.

Read `predict.py` first, then `measure_model.py`, the measurements of `training/evaluate_model.py`; figures of language
models are in `language_model.py`, their results on disk in `result_store.py`.
"""
