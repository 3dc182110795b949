"""
Opens folders with another version of transformers, without importing this package.

Run as `python older_reader.py REQUESTS ANSWERS`. REQUESTS is a JSON list of `{folder, auto_class, texts, rows, chat}`;
ANSWERS receives the tokens and outputs, or the error, of each.
"""

import json
import logging
import sys
import warnings

import torch
import transformers


def read(folder, auto_class=None, texts=(), rows=(), chat=None):
    answer = {}
    if texts:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        answer["ids"] = tokenizer(texts)["input_ids"]
        answer["padded"] = dict(tokenizer(texts, padding=True))
        answer["decoded"] = tokenizer.batch_decode(answer["ids"])
        answer["skipped"] = tokenizer.batch_decode(answer["ids"], skip_special_tokens=True)
        answer["special"] = sorted(tokenizer.all_special_tokens)
        answer["named"] = {
            name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)
        }
        if chat:
            answer["chat"] = tokenizer.apply_chat_template(chat, tokenize=False)
        tokenizer.save_pretrained(f"{folder}/again")
    if auto_class:
        model, report = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)
        answer["missing"] = sorted(report["missing_keys"])
        answer["outputs"] = []
        model.float().eval()
        for row in rows:
            with torch.no_grad():
                outputs = model(**{name: torch.tensor(value) for name, value in row.items()})
            names = ("logits", "prediction_logits", "seq_relationship_logits", "start_logits", "end_logits")
            names = [name for name in names if outputs.get(name) is not None] or ["last_hidden_state"]
            answer["outputs"].append({name: outputs[name].tolist() for name in names})
    return answer


class Recorder(logging.Handler):
    """Records the messages of the library."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def main(requests, answers):
    recorder = Recorder()
    warnings.showwarning = lambda message, *_, **__: recorder.lines.append(str(message))
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.add_handler(recorder)
    answers_list = []
    with open(requests, encoding="utf-8") as file:
        for request in json.load(file):
            recorder.lines = []
            try:
                answer = read(**request)
            except Exception as error:  # the test decides which errors are allowed
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers_list.append({**answer, "said": recorder.lines})
    with open(answers, "w", encoding="utf-8") as file:
        json.dump({"version": transformers.__version__, "answers": answers_list}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
