"""
Training: optimizers, trainers, recipes, reports, adapters.

Read `trainer.py` first; `pretrain.py` and `finetune.py` hold what the two kinds of scripts share.
"""
