"""
Training: recipes, trainers, optimizers, adapters, reports.

Read `trainer.py` first: atomic checkpoints, signals, exact resume (`run_identity.py`), for any Trainer. `recipe.py`
reads the options of a script. Pretraining stands in `pretrain.py` with `pretrain_recipe.py`, `pretrain_model.py`,
`pretrain_objective.py` and `pretrain_data.py`, its optimizers in `optim.py` and `muon.py`; fine-tuning in
`finetune.py` and `finetuning_trainer.py`.
"""
