"""
Prints outputs of released models for the reference texts of their run records, without importing this package.

`tests/artifacts/test_released.py` runs `python reference_reader.py FOLDER AUTO_CLASS …` in a separate process, which
prints one line of JSON for each folder.
"""

import json
import sys
from pathlib import Path

from outsider import NotInstalled


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInstalled())
    import torch
    import transformers

    torch.set_num_threads(1)
    for folder, auto_class in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        reference = json.loads((Path(folder) / "run_record.json").read_text(encoding="utf-8"))["reference"]
        opener = getattr(transformers, auto_class)
        model = opener.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        inputs = tokenizer(reference["text"], return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            if "tokens" in reference["outputs"]:
                settings = dict(do_sample=False, max_new_tokens=24, min_new_tokens=24)
                print(json.dumps({"tokens": model.generate(**inputs, **settings)[0, -24:].tolist()}))
            else:
                outputs = model(**inputs).items()
                print(json.dumps({name: value.argmax(-1).flatten().tolist() for name, value in outputs}))
