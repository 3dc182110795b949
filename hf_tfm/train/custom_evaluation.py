"""Evaluation of a Trainer by a function of the model, rather than by its loss over batches."""

import time
from typing import Any


class MeasuredEvaluation:
    """A mixin in front of a Trainer class; `measure` returns the metrics."""

    def measure(self, eval_dataset: Any) -> dict[str, float]:
        """Return metrics by name, such as `loss`."""
        raise NotImplementedError

    def evaluate(
        self: Any, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        started = time.time()
        figures = self.measure(self.eval_dataset if eval_dataset is None else eval_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.time() - started, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
