"""What a model card says to people: a section a function, from the run record alone, and none where that is silent."""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from .record import CURVE_FILE


_CAUSAL = ("AutoModelForCausalLM", "text-generation", "A causal language model: it continues text.")
# What a card calls the model's use, by how its class is called: Auto class, pipeline tag, what it does.
_TASKS = {
    "ForCausalLM": _CAUSAL,
    "LMHeadModel": _CAUSAL,  # GPT-2, CTRL, XLM
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask", "A masked language model: it fills gaps in text."),
    "ForPreTraining": (
        "AutoModelForPreTraining",
        "fill-mask",
        "A masked language model that also tells whether two pieces of text belong together.",
    ),
    "ForNextSentencePrediction": (
        "AutoModelForNextSentencePrediction",
        None,
        "It tells whether one piece of text follows another.",
    ),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification", "It labels texts."),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification", "It tags words in texts."),
    "ForQuestionAnswering": (
        "AutoModelForQuestionAnswering",
        "question-answering",
        "It finds the answer to a question in a text.",
    ),
    "EncoderDecoderModel": ("AutoModelForSeq2SeqLM", "translation", "It translates."),
    "ForMultipleChoice": ("AutoModelForMultipleChoice", "multiple-choice", "It chooses one of several options."),
}
_BASE = ("AutoModel", "feature-extraction", "It turns texts into vectors.")
# What transformers has pipelines for, with something to try.
_PIPELINES = {
    "text-generation": '"Once upon a time", max_new_tokens=40',
    "fill-mask": 'f"The old king had a {run.tokenizer.mask_token}."',
    "text-classification": '"How long does it take?"',
    "token-classification": '"Ada Lovelace was born in London."',
    "feature-extraction": '"The old king had a daughter."',
}
# Watts of a core and of a gigabyte of memory where nobody measured: the defaults of Green Algorithms.
CORE_WATTS, MEMORY_WATTS = 12.0, 0.3725


def task_of(model_class: str) -> tuple[str, str | None]:
    """Auto class and pipeline tag of a model class by its name; the base model's where it has no head."""
    return _task(model_class)[:2]


def is_adapter(record: dict[str, Any]) -> bool:
    """Whether the folder holds an adapter rather than a whole model."""
    return "adapter" in record and not record["adapter"].get("merged")


def has_own_code(record: dict[str, Any]) -> bool:
    """Whether the folder carries the model's code."""
    return bool(record["model"]["config"].get("auto_map"))


def opening(record: dict[str, Any], folder: Any) -> str:
    """The call that opens a whole model's folder."""
    trust = ", trust_remote_code=True" if has_own_code(record) else ""
    if record.get("library") == "sentence-transformers":
        return f'SentenceTransformer("{folder}"{trust})'
    return f'{task_of(record["model"]["class"])[0]}.from_pretrained("{folder}"{trust})'


def body(record: dict[str, Any], name: str, has_curve: bool, evaluation: dict[str, Any] | None) -> str:
    """All of a card behind its metadata."""
    sections = [
        f"# {name}\n\n{_summary(record)}",
        _loading(record),
        _data(record),
        _results(record),
        _evaluation(evaluation) if evaluation else "",
        _training(record, has_curve),
        _samples(record),
        _limits(record),
        _reproducing(record),
    ]
    return "\n\n".join(section for section in sections if section)


def results_body(model: str, evaluation: dict[str, Any]) -> str:
    """The card of a data set of results."""
    return f"# Results of {model}\n\nOne figure a line in `results.jsonl`.\n\n{_evaluation(evaluation)}"


def interval(figure: dict[str, float]) -> str:
    """How sure a figure is."""
    return f"95 % interval {figure['low']:.3f} to {figure['high']:.3f}, n {figure['n']:,}"


def energy(record: dict[str, Any]) -> tuple[float, str, str] | None:
    """
    Watt-hours of a run, whether they are `measured` or `an estimate`, and where they come from: watts that the record
    states, else what the processor counted, else Green Algorithms' defaults (Lannelongue et al. 2021) for cores and
    memory. None for a GPU whose watts nobody stated: no counter of the processor sees it.
    """
    hardware, seconds = record.get("hardware", {}), record.get("seconds")
    if not seconds:
        return None
    if (watts := record.get("watts")) is not None:
        return watts * seconds / 3600, "an estimate", f"{as_text(seconds)} s at {watts:g} W, as stated for this machine"
    if "gpu" in hardware:
        return None
    if joules := record.get("joules"):
        counted = ", ".join(f"{name} {as_text(used)} J" for name, used in joules.items())
        return sum(joules.values()) / 3600, "measured", f"{counted}; by RAPL, of all that ran on them meanwhile"
    if "memory_gib" not in hardware:
        return None
    watts = CORE_WATTS * hardware["threads"] + MEMORY_WATTS * hardware["memory_gib"]
    source = (
        f"{as_text(seconds)} s; {hardware['threads']} × {CORE_WATTS:g} W for cores and {hardware['memory_gib']} × "
        f"{MEMORY_WATTS} W for memory, the defaults of Green Algorithms (Lannelongue et al.)"
    )
    return watts * seconds / 3600, "an estimate", source


def _task(model_class: str) -> tuple[str, str | None, str]:
    return next((task for suffix, task in _TASKS.items() if model_class.endswith(suffix)), _BASE)


def _summary(record: dict[str, Any]) -> str:
    model = record["model"]
    config = model["config"]
    heads, key_value_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    adapter, base = record.get("adapter", {}), record.get("base_model")
    what = [_task(model["class"])[2]]
    if record.get("library") == "sentence-transformers":
        what = ["It turns texts into vectors to compare and to search with (sentence-transformers)."]
    if base:
        what.append(f"An adapter for `{base}`." if is_adapter(record) else f"Trained on from `{base}`.")
    rows = {
        "class": model["class"],
        "parameters": f"{model['parameters']:,}",
        "of these outside the embedding": f"{model['parameters_without_embedding']:,}",
        "weights": record.get("weights"),
        "blocks": config.get("num_hidden_layers"),
        "width": config.get("hidden_size"),
        "heads (query / key-value)": f"{heads} / {key_value_heads or heads}" if heads else None,
        "feed-forward width": config.get("intermediate_size"),
        "feed-forward": _feed_forward(config),
        "norm": _norm(config),
        "positions": config.get("position_embedding_type"),
        "attention windows": _windows(config),
        "beside native shapes": ", ".join(what for name, what in _OWN.items() if config.get(name)) or None,
        "vocabulary": config.get("vocab_size"),
        "longest sequence": config.get("max_position_embeddings"),
        "labels": len(config.get("id2label") or {}) if model["class"].endswith("Classification") else None,
        "adapter": f"{adapter['type']} of rank {adapter['rank']}, alpha {adapter['alpha']}"
        f"{', merged' if adapter.get('merged') else ''}"
        if adapter
        else None,
        "adapter's weights, with the head's": f"{adapter['parameters']:,} ({adapter['share']:.2%})"
        if adapter
        else None,
    }
    table = _table(("", ""), [(name, value) for name, value in rows.items() if value is not None])
    return f"{' '.join(what)}\n\n{table}"


# Switches that no native family has.
_OWN = {"attention_gate": "a gate on each head", "value_residual": "embeddings in the values"}


def _feed_forward(config: dict[str, Any]) -> str | None:
    if config.get("gated_mlp") is None:
        return config.get("hidden_act")
    return f"{config['hidden_act']}{', gated' if config['gated_mlp'] else ''}"


def _windows(config: dict[str, Any]) -> str | None:
    """How far local attention looks, and in how many of the blocks; None if all see everything."""
    types, window = config.get("layer_types") or [], config.get("sliding_window")
    local = types.count("sliding_attention")
    if not local or not window:
        return None
    reach = f"{window} tokens to each side" if config.get("model_type") == "tfm_encoder" else f"{window} tokens"
    return f"{reach}, in {local} of {len(types)} blocks"


def _norm(config: dict[str, Any]) -> str | None:
    if not config.get("norm_type"):
        return None
    where = {"pre": "before", "post": "after"}[config["norm_position"]]
    return f"{config['norm_type']} {where} the sublayer{', on queries and keys too' if config.get('qk_norm') else ''}"


def _loading(record: dict[str, Any]) -> str:
    auto_class, custom_code = task_of(record["model"]["class"])[0], has_own_code(record)
    trust = ", trust_remote_code=True" if custom_code else ""
    if record.get("library") == "sentence-transformers":
        code = [
            "from sentence_transformers import SentenceTransformer",
            "",
            'path = "."  # this folder, or its name on the Hub',
            f"embedder = SentenceTransformer(path{trust})",
            'embeddings = embedder.encode(["A cat sat on the mat.", "A cat was sitting there."])',
            "print(embedder.similarity(embeddings, embeddings))",
        ]
        return f"## How to load it\n\n{_code('python', code)}{_ways(record)}"
    lines = [
        f"from transformers import AutoTokenizer, {auto_class}",
        "",
        'path = "."  # this folder, or its name on the Hub',
        "tokenizer = AutoTokenizer.from_pretrained(path)",
    ]
    if is_adapter(record):
        # What the base model's configuration knows nothing of.
        own = ", pad_token_id=tokenizer.pad_token_id"
        if record["model"]["class"].endswith("Classification"):
            labels = {int(number): name for number, name in record["model"]["config"]["id2label"].items()}
            own += f", id2label={labels}"
        if record.get("pooling"):
            config = record["model"]["config"]
            chosen = (name for name in ("classifier_pooling", "use_pooler") if name in config)
            own += "".join(f", {name}={config[name]!r}" for name in chosen)
        lines.insert(0, "from peft import PeftConfig, PeftModel")
        lines.append("base = PeftConfig.from_pretrained(path).base_model_name_or_path  # or where you have it")
        lines.append(f"model = {auto_class}.from_pretrained(base{own}{trust})")
        lines.append("model = PeftModel.from_pretrained(model, path)")
        if auto_class == "AutoModelForCausalLM":
            lines[1] = lines[1].replace("import ", "import GenerationConfig, ")
            lines.append("model.generation_config = GenerationConfig.from_pretrained(path)")
    else:
        lines.append(f"model = {auto_class}.from_pretrained(path{trust})")
    if record.get("chat"):
        lines += [
            "",
            f'chat = [{{"role": "user", "content": {json.dumps(record["chat"], ensure_ascii=False)}}}]',
            "inputs = tokenizer.apply_chat_template("
            'chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")',
            "output = model.generate(**inputs, max_new_tokens=128, do_sample=False)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    return f"## How to load it\n\n{_code('python', lines)}{_ways(record)}"


def _ways(record: dict[str, Any]) -> str:
    """The other ways to open it: with the package, through a pipeline, as a native model."""
    model_class, custom_code = record["model"]["class"], has_own_code(record)
    ways, tag = [], task_of(model_class)[1]
    if custom_code:
        ways.append("With `import hf_tfm` in front, `trust_remote_code` is not needed.")
    if tag in _PIPELINES and not is_adapter(record) and record.get("library", "transformers") == "transformers":
        trust = ", trust_remote_code=True" if custom_code else ""
        lines = [
            "from transformers import pipeline",
            "",
            'path = "."',
            f'run = pipeline("{tag}", model=path{trust})',
            f"print(run({_PIPELINES[tag]}))",
        ]
        ways.append(f"As a pipeline:\n\n{_code('python', lines)}")
    if is_adapter(record):
        ways.append("Folded into its base model, to do without PEFT: `hf-tfm merge . merged`.")
    elif custom_code and (families := native_families(record)):
        config = record["model"]["config"]
        full = "sliding_attention" not in config.get("layer_types", ())  # as llama.cpp reads every decoder's layer
        tools = "TEI, vLLM" if config["model_type"] == "tfm_encoder" else "vLLM, llama.cpp" if full else "vLLM"
        ways.append(
            f"As a native {' or '.join(families.values())}, for tools that run no code of others ({tools}, …), "
            f"with the identical weights: `hf-tfm export . native --to {next(iter(families))}`."
        )
    elif not custom_code:
        ways.append(f"It is transformers' own `{model_class}`: whatever knows that class opens it as it stands.")
    return "".join(f"\n\n{way}" for way in ways)


def native_families(record: dict[str, Any]) -> dict[str, str]:
    """The native families that a model of this package can be given out as: their names by those of `hf-tfm export`."""
    from ..core.errors import InputError
    from ..models.configuration_tfm import TfmDecoderConfig, TfmEncoderConfig
    from .families import FAMILIES, native_config

    fields, found = record["model"]["config"], {}
    sides = {"tfm_decoder": TfmDecoderConfig, "tfm_encoder": TfmEncoderConfig}
    if (config_class := sides.get(fields.get("model_type"))) is None:
        return {}
    head = record["model"]["class"].removeprefix("TfmDecoder").removeprefix("TfmEncoder").removeprefix("For")
    config = config_class.from_dict(fields)
    for name, family in FAMILIES.items():
        if config.model_type != f"tfm_{family.side}" or head not in family.heads:
            continue
        try:
            native_config(config, family, head)
        except InputError:
            continue
        found[name] = family.title
    return found


def _code(kind: str, lines: Iterable[str]) -> str:
    """A block that ends where it shall, whatever backticks are in it."""
    text = "\n".join(lines)
    fence = max(["```", *(found + "`" for found in re.findall("`{3,}", text))], key=len)
    return f"{fence}{kind}\n{text}\n{fence}"


def _data(record: dict[str, Any]) -> str:
    if not record.get("data"):
        return ""
    columns = ("name", "split", "documents", "records", "bytes", "tokens", "license", "sha256")
    used = [column for column in columns if any(column in source for source in record["data"])]
    rows = [[as_text(source.get(column, "")) for column in used] for source in record["data"]]
    return "## Data\n\n" + _table([{"license": "licence"}.get(column, column) for column in used], rows)


def _results(record: dict[str, Any]) -> str:
    """A table of figures; those with an interval stand beside the baselines' and say on how many records."""
    results = record.get("results")
    if not results:
        return ""
    pictures = [f"![{caption}]({name})" for name, caption in record.get("pictures", {}).items()]
    if not all(isinstance(value, dict) and "low" in value for value in results.values()):
        table = _table(("", ""), [(name, as_text(value)) for name, value in results.items()])
        return "\n\n".join(["## Results", f"On the {record.get('measured_on', 'validation')} data.", table, *pictures])
    columns = {"this model": results, **record.get("baselines", {})}
    counts = {figure["n"] for figures in columns.values() for figure in figures.values()}
    show: Callable[[dict], str] = _estimate if len(counts) == 1 else lambda f: f"{_estimate(f)}, n {f['n']:,}"
    rows = [
        [metric, *(show(figures[metric]) if metric in figures else "" for figures in columns.values())]
        for metric in results
    ]
    on = f"{record.get('measured_on', 'test')} records, with 95 % intervals"
    text = f"## Results\n\nOn {next(iter(counts)):,} {on}." if len(counts) == 1 else f"## Results\n\nOn {on}."
    if record.get("measured_on") == "validation" and "best" in record:
        text += " The best checkpoint was chosen on these records, so the figures are somewhat too good."
    return "\n\n".join([text, _table(("", *columns), rows), *pictures])


def _evaluation(evaluation: dict[str, Any]) -> str:
    rows = [
        (task["task"], task["data"], name, _estimate(figure), f"{figure['n']:,}")
        for task in evaluation["tasks"]
        for name, figure in task["results"].items()
    ]
    table = _table(("task", "data", "figure", "with its 95 % interval", "records"), rows) if rows else ""
    # Figures of several runs stand together; each has its command.
    commands = dict.fromkeys(task.get("command", evaluation["command"]) for task in evaluation["tasks"])
    samples = [sample for task in evaluation["tasks"] for sample in task.get("samples", [])]
    parts = [_code("bash", commands), table, *(_code("text", [sample]) for sample in samples)]
    return "\n\n".join(["## Evaluation", *filter(None, parts)])


def _estimate(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _training(record: dict[str, Any], has_curve: bool) -> str:
    seconds, used = record.get("seconds"), energy(record)
    facts = {
        "steps": record.get("steps"),
        "tokens": record.get("tokens"),
        "minutes": seconds and f"{seconds / 60:.1f}",
        **({f"energy ({used[1]})": f"{as_text(used[0])} Wh: {used[2]}"} if used else {}),
        "seed": record.get("seed"),
        "started": record.get("started"),
        "commit": record.get("commit"),
        "commit of the source that ended it": record.get("ended_with_commit"),
        **{name.replace("_", " "): value for name, value in record.get("hardware", {}).items()},
        **{f"{name} version": value for name, value in record.get("versions", {}).items()},
    }
    rows = [(name, as_text(value)) for name, value in facts.items() if value is not None]
    curve = f"\n\n![loss over steps]({CURVE_FILE})" if has_curve else ""
    return f"## Training\n\n{_table(('', ''), rows)}{curve}" if rows else ""


def _samples(record: dict[str, Any]) -> str:
    if not record.get("samples"):
        return ""
    quoted = "\n\n".join(_code("text", [sample]) for sample in record["samples"])
    return f"## Samples\n\nChosen by nobody:\n\n{quoted}"


def _limits(record: dict[str, Any]) -> str:
    """What the record shows that it cannot do, or that its figures do not show."""
    model, tokens = record["model"], record.get("tokens")
    longest, trained = model["config"].get("max_position_embeddings"), record.get("block_length")
    trained = trained or record.get("max_length")
    limits = []
    if tokens:
        per_parameter = tokens / model["parameters"]
        limits.append(f"It saw {tokens:,} tokens, {as_text(per_parameter)} for each parameter; some 20 are usual.")
    if longest and trained and trained < longest:
        limits.append(f"It takes {longest:,} tokens, but was trained on no more than {trained:,} at once.")
    elif longest:
        limits.append(f"It takes {longest:,} tokens at most.")
    if shared := {split: count for split, count in record.get("overlap_with_train", {}).items() if count}:
        counted = ", ".join(f"{count:,} of {split}" for split, count in shared.items())
        limits.append(f"Records with a text that train has too: {counted}.")
    if task_of(model["class"])[0] in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
        limits.append("It writes what its data makes likely, not what is true, and nothing holds back what offends.")
    elif record.get("data"):
        limits.append("It was measured on data like that in the table above; on other texts it may do worse.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits) if limits else ""


_ROUNDED = {"bfloat16": "bf16", "float16": "f16"}


def _reproducing(record: dict[str, Any]) -> str:
    if not record.get("command"):
        return ""
    commit, versions = record.get("commit"), record.get("versions", {})
    lines = [f"git checkout {commit.removesuffix('+changes')}"] if commit else []
    pinned = [f"{name}=={versions[name].partition('+')[0]}" for name in ("torch", "transformers") if name in versions]
    lines += [f"pip install -e . {' '.join(pinned)}".strip(), record["command"]]
    if record.get("adapter", {}).get("merged"):
        lines.append("hf-tfm merge ADAPTER MERGED")
    if to := next((to for kind, to in _ROUNDED.items() if record.get("weights", "").startswith(kind)), None):
        lines.append(f"hf-tfm export MODEL ROUNDED --to {to}")
    text = "## How to reproduce it\n\nIn a checkout of hf_tfm's source, with the data of the hashes above:\n\n"
    text += _code("bash", lines)
    if commit and commit.endswith("+changes"):
        text += "\n\nFiles differed from that commit when this was run, so it may not give the same figures."
    return text


def as_text(value: Any) -> str:
    """A number as people read it; what is no number as JSON, texts as they are."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(header: tuple | list, rows: list) -> str:
    lines = [f"| {' | '.join(str(h) for h in header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in row)} |" for row in rows]
    return "\n".join(lines)
