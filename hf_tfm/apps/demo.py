"""
The demo page of a model in the browser: a tab for its head, such as chat, masks or labels, and a view of its attention.

Only this module needs Gradio (`pip install hf-tfm[demo]`).
"""

import contextlib
import copy
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, set_seed

from ..artifacts.open import auto_class_of, open_model
from ..core.errors import InputError
from ..core.inference import unwrap_adapter
from ..core.limits import longest_input
from ..core.visible_text import visible
from ..data.forms.reader import read_rows
from ..evaluate.predict import Predictor, open_predictor
from ..tasks.decoding import compare_decodings, decoding_methods
from ..tasks.fill_mask import fill_masks
from ..tasks.generation import encode_prompt, sampling_options, stream_text
from . import html_report
from .chat import Chat
from .formatting import percent
from .inspect.architecture import EXAMPLE


# Gradio reads this when it is imported; the page must not send anything to third parties.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
try:
    import gradio as gr
except ImportError:
    raise InputError("the page needs Gradio, which is not installed: pip install 'hf-tfm[demo]'") from None

_MAX_ATTENTION_TOKENS = 48
_EXAMPLES = {
    "context": "Alice was beginning to get very tired of sitting by her sister on the bank. Once or twice she had "
    "peeped into the book her sister was reading, but it had no pictures or conversations in it.",
    "question": "What was her sister doing?",
    "text": "I sent money to my friend in London yesterday, but Anna has not got it yet.",
    "texts": "The cat sat on the mat.\nA kitten was lying on the rug.\nShares fell sharply on Monday.",
    "options": "She fell asleep.\nShe read a book.\nShe ate the pictures.",
}


def serve(path: str, port: int, base: str | None = None, trust_remote_code: bool = False) -> None:
    """Serve the page of a model on this machine only, until Ctrl-C. Raises `InputError` if the port is taken."""
    page = build(path, base, trust_remote_code)
    try:
        launch(page, server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True)
    except OSError as error:
        raise InputError(f"port {port} is not free; give another --port") from error
    print(f"http://127.0.0.1:{port}  (Ctrl-C ends)", flush=True)
    page.block_thread()


def launch(page: gr.Blocks, **options: Any) -> Any:
    """Call Gradio's `launch` with local fonts, so that the page fetches nothing from elsewhere."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return page.launch(theme=theme, ssr_mode=False, footer_links=[], **options)


def build(path: str, base: str | None = None, trust_remote_code: bool = False, title: str | None = None) -> gr.Blocks:
    """
    Build the page of a model.

    Args:
        title: by default the name of the folder.

    Raises:
        InputError: there is no such model, or no page for its head.
    """
    kind = auto_class_of(path, trust_remote_code)
    if kind not in _PAGES:
        raise InputError(f"{path}: is a model for {kind}, for which there is no page")
    if kind == "AutoModelForSeq2SeqLM":
        model, tokenizer = open_model(path, kind, base, trust_remote_code)
        predictor = Predictor(model, tokenizer, kind)
    else:
        predictor = open_predictor(path, base, trust_remote_code)
    title = title or (Path(path).resolve().name if Path(path).exists() else path)
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        size = f"{predictor.model.num_parameters():,} parameters"
        gr.Markdown(f"# {title}\n{type(unwrap_adapter(predictor.model)).__name__}, {size}")
        with gr.Tabs():
            _PAGES[kind](predictor)
            with gr.Tab("Attention"):
                _attention(predictor)
    return page


@contextlib.contextmanager
def _errors_shown() -> Iterator[None]:
    """Show an `InputError` on the page."""
    try:
        yield
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _show_stream_errors(function: Callable[..., Iterator]) -> Callable[..., Iterator]:
    """Show an `InputError` of a generator on the page."""

    @functools.wraps(function)
    def wrapper(*values: Any) -> Iterator:
        with _errors_shown():
            yield from function(*values)

    return wrapper


def _form(inputs: Sequence[gr.Component], function: Callable, action: str, *outputs: gr.Component) -> None:
    """Add a button that shows the outputs for the inputs; Enter in a field of one line presses it too."""
    button = gr.Button(action, variant="primary")
    for output in outputs:
        output.render()
    gr.on(
        [button.click, *(field.submit for field in inputs if isinstance(field, gr.Textbox) and field.lines == 1)],
        _errors_shown()(function),
        inputs,
        list(outputs),
        api_name=action.lower().replace(" ", "_"),
    )


def _table(*columns: str) -> gr.Dataframe:
    """Return a table for texts with their probabilities."""
    return gr.Dataframe(headers=[*columns, "probability"], datatype="str", interactive=False, render=False)


def _several_lines(text: str, noun: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        raise InputError(f"give at least two {noun}, each on a line of its own")
    return lines


def _predict(predictor: Predictor, record: dict[str, Any]) -> dict[str, Any]:
    """Return the prediction for one record whose fields have their standard names."""
    fields = {f"{name}_field": name for name in record if name != "options"}
    predict = replace(predictor, fields=fields, top=max(predictor.top, 8))
    [output] = predict(read_rows([record], predict.reading(), "the page"))
    return output


def _sampling_controls(model: PreTrainedModel) -> list[gr.Component]:
    """Return the sampling options of `hf-tfm generate`, set to the model's own settings."""
    config = model.generation_config
    temperature = (1.0 if config.temperature is None else config.temperature) if config.do_sample else 0.0
    longest = longest_input(model.config, 1 << 16)
    return [
        gr.Slider(0, 2, temperature, step=0.05, label="Temperature", info="0 takes the likeliest token"),
        gr.Slider(0, 200, config.top_k or 0, step=1, label="Top-k", info="0: no cut"),
        gr.Slider(0.05, 1, 1.0 if config.top_p is None else config.top_p, step=0.01, label="Top-p", info="1: no cut"),
        gr.Slider(0, 1, config.min_p or 0.0, step=0.01, label="Min-p", info="0: no cut"),
        gr.Slider(0.8, 2, config.repetition_penalty or 1.0, step=0.05, label="Repetition penalty", info="1: none"),
        gr.Slider(1, min(2048, longest), min(128, longest), step=1, label="New tokens", info="at most"),
        gr.Number(0, label="Seed", precision=0),
    ]


def _causal(predictor: Predictor) -> None:
    if predictor.tokenizer.chat_template:
        with gr.Tab("Chat"):
            _chat(predictor)
    with gr.Tab("Continue a text"):
        _continuation(predictor)
    with gr.Tab("Ways of decoding"):
        _decodings(predictor)


def _chat(predictor: Predictor) -> None:
    def answer(message: str, history: list[dict], system: str, *controls: Any) -> Iterator[str]:
        *sampling, new_tokens, seed = controls
        chat = Chat(predictor.model, predictor.tokenizer, system or None, new_tokens, **sampling_options(*sampling))
        chat.turns = [{"role": turn["role"], "content": _text_of(turn["content"])} for turn in history]
        set_seed(int(seed) + len(history))
        so_far = ""
        for piece in chat.stream(message):
            so_far += piece
            yield so_far

    with gr.Accordion("Settings", open=False) as settings:
        system = gr.Textbox(label="System", info="stands in front of the conversation")
        with gr.Row():
            controls = _sampling_controls(predictor.model)
    gr.ChatInterface(
        _show_stream_errors(answer),
        chatbot=gr.Chatbot(height=460, show_label=False, render_markdown=False, buttons=["copy"]),
        additional_inputs=[system, *controls],
        additional_inputs_accordion=settings,
        api_name="chat",
    )


def _text_of(content: Any) -> str:
    """Return the text of a turn, which Gradio gives as a string or in parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _continuation(predictor: Predictor) -> None:
    model, tokenizer = predictor.model, predictor.tokenizer

    def go_on(prompt: str, *controls: Any) -> Iterator[str]:
        *sampling, new_tokens, seed = controls
        ids, room = encode_prompt(model, tokenizer, prompt)
        set_seed(int(seed))
        so_far = ""
        options = sampling_options(*sampling) | {"max_new_tokens": min(new_tokens, room)}
        for piece in stream_text(model, tokenizer, ids, skip_prompt=False, **options):
            so_far += piece
            yield so_far

    prompt = gr.Textbox("Once upon a time", label="Text", lines=3)
    with gr.Row():
        button = gr.Button("Continue", variant="primary")
        stop = gr.Button("Stop")
    text = gr.Textbox(label="Continued", lines=8, buttons=["copy"])
    with gr.Accordion("Settings", open=False), gr.Row():
        controls = _sampling_controls(model)
    running = button.click(_show_stream_errors(go_on), [prompt, *controls], text, api_name="continue")
    stop.click(None, cancels=[running])


def _decodings(predictor: Predictor) -> None:
    def compare(prompt: str, tokens: float, temperature: float, top_k: float, top_p: float, beams: float) -> str:
        methods = decoding_methods(temperature, int(top_k), top_p, beams=int(beams))
        decodings = compare_decodings(predictor.model, predictor.tokenizer, prompt, methods, int(tokens))
        return html_report.comparison_as_html(prompt, decodings)

    prompt = gr.Textbox("Once upon a time", label="Text")
    with gr.Row():
        controls = [
            gr.Slider(5, 100, 40, step=1, label="New tokens"),
            gr.Slider(0.1, 2, 0.8, step=0.05, label="Temperature"),
            gr.Slider(1, 200, 50, step=1, label="Top-k"),
            gr.Slider(0.05, 1, 0.9, step=0.01, label="Top-p"),
            gr.Slider(2, 8, 4, step=1, label="Beams"),
        ]
    _form([prompt, *controls], compare, "Compare", gr.HTML(render=False))


def _masked(predictor: Predictor) -> None:
    model, tokenizer = predictor.model, predictor.tokenizer

    def fill(text: str) -> list[list[str]]:
        masks = fill_masks(model, tokenizer, text, 8)
        names = [f"{tokenizer.mask_token} {number}" for number in range(1, len(masks) + 1)]
        return [[name, visible(token), percent(share)] for name, rows in zip(names, masks) for token, share in rows]

    with gr.Tab("Masks"):
        mask = tokenizer.mask_token or "[MASK]"
        text = gr.Textbox(f"The cat {mask} on the {mask}.", label=f"Text with {mask}")
        _form([text], fill, "Fill in", _table("mask", "token"))


def _labels(predictor: Predictor) -> None:
    pair = predictor.kind == "AutoModelForNextSentencePrediction" or bool(predictor.fields.get("text_pair_field"))
    several = predictor.model.config.problem_type == "multi_label_classification"

    def classify(*texts: str) -> dict[str, float] | str:
        prediction = _predict(predictor, dict(zip(("text", "text_pair"), texts)))
        if "predicted_number" in prediction:
            return f"{prediction['predicted_number']:.4f}"
        if "predicted_follows" in prediction:
            share = prediction["predicted_score"]
            return {"follows": share, "does not follow": 1 - share}
        return prediction["predicted_scores"]

    with gr.Tab("Labels"):
        inputs = [gr.Textbox(_EXAMPLES["text"], label="Text")]
        if pair:
            inputs.append(gr.Textbox("She asked me where it was.", label="Second text"))
        output = gr.Label(label="Probability of each label by itself" if several else "Result", render=False)
        _form(inputs, classify, "Label", output)


def _tags(predictor: Predictor) -> None:
    def tag(text: str) -> tuple[dict[str, Any], list[list[str]]]:
        prediction = _predict(predictor, {"text": text})
        place, places = 0, []
        for word in prediction["tokens"]:
            place = text.index(word, place)
            places.append((place, place + len(word)))
            place += len(word)
        scores = prediction["predicted_scores"]
        spans = [(*at, *of) for at, of in zip(places, zip(prediction.get("predicted_tags", ()), scores))]
        if "predicted_entities" in prediction:
            spans = []
            for entity in prediction["predicted_entities"]:
                first, last = entity["first_word"], entity["last_word"]
                spans.append((places[first][0], places[last][1], entity["type"], min(scores[first : last + 1])))
        rows = [[text[start:end], label, percent(score)] for start, end, label, score in spans]
        return _marked(text, spans), rows

    with gr.Tab("Tags"):
        text = gr.Textbox(_EXAMPLES["text"], label="Text", lines=3)
        _form([text], tag, "Tag", gr.HighlightedText(label="Tags", render=False), _table("text", "tag"))


def _marked(text: str, spans: Sequence[tuple]) -> dict[str, Any]:
    """Return a text with marked spans, each a start, an end and a label, for a `HighlightedText`."""
    entities = [{"start": start, "end": end, "entity": label} for start, end, label, *_ in spans]
    return {"text": text, "entities": entities}


def _answers(predictor: Predictor) -> None:
    def answer(question: str, context: str) -> tuple[str, dict[str, Any], list[list[str]]]:
        prediction = _predict(predictor, {"question": question, "context": context})
        answers, best = prediction["predicted_answers"], prediction["predicted_answer"]
        spans = [(one["start"], one["end"], "answer") for one in answers[:1]]
        rows = [[one["text"], percent(one["score"])] for one in answers]
        caption = f"{best or 'no answer'} ({percent(prediction['predicted_score'])})"
        return caption, _marked(context, spans), rows

    with gr.Tab("Answers"):
        inputs = [gr.Textbox(_EXAMPLES["question"], label="Question")]
        inputs.append(gr.Textbox(_EXAMPLES["context"], label="Text", lines=6))
        outputs = [gr.Textbox(label="Answer", render=False), gr.HighlightedText(label="Likeliest span", render=False)]
        _form(inputs, answer, "Find the answer", *outputs, _table("span"))


def _options(predictor: Predictor) -> None:
    def choose(question: str, options: str) -> list[list[str]]:
        several = _several_lines(options, "options")
        prediction = _predict(predictor, {"question": question, "options": several})
        ranked = sorted(zip(several, prediction["predicted_scores"]), key=lambda pair: -pair[1])
        return [[option, percent(share)] for option, share in ranked]

    with gr.Tab("Options"):
        inputs = [gr.Textbox("Alice opened the book.", label="Question, or what went before")]
        inputs.append(gr.Textbox(_EXAMPLES["options"], label="Options, one a line", lines=4))
        _form(inputs, choose, "Choose", _table("option"))


def _embeddings(predictor: Predictor) -> None:
    def compare(texts: str) -> str:
        lines = _several_lines(texts, "texts")
        embed = replace(predictor, fields={"text_field": "text"})
        records = read_rows([{"text": line} for line in lines], embed.reading(), "the page")
        vectors = F.normalize(torch.tensor([row["embedding"] for row in embed(records)]), dim=-1)
        numbers = [str(number) for number in range(1, len(lines) + 1)]
        names = [f"{line}  {number}" for line, number in zip(lines, numbers)]
        return html_report.matrix(names, numbers, (vectors @ vectors.T).tolist(), "Cosines", numbers=True)

    with gr.Tab("Similarity"):
        text = gr.Textbox(_EXAMPLES["texts"], label="Texts, one a line", lines=6)
        _form([text], compare, "Compare", gr.HTML(render=False))


def _translation(predictor: Predictor) -> None:
    with gr.Tab("Translate"):
        output = gr.Textbox(label="Translation", render=False)
        text = gr.Textbox("Where is the cat?", label="Text")
        _form([text], lambda text: _translated(predictor, text)[0], "Translate", output)


@torch.inference_mode()
def _translated(predictor: Predictor, text: str) -> tuple[str, torch.Tensor, torch.Tensor]:
    """Return the translation, and the ids of source and translation."""
    if not text.strip():
        raise InputError("there is no text to translate")
    model, tokenizer = predictor.model, predictor.tokenizer
    inputs = tokenizer(text, return_tensors="pt", truncation=True, return_token_type_ids=False).to(model.device)
    ids = model.generate(**inputs, max_new_tokens=128)
    return tokenizer.decode(ids[0], skip_special_tokens=True).strip(), inputs["input_ids"], ids


def _attention(predictor: Predictor) -> None:
    tokenizer, plain = predictor.tokenizer, unwrap_adapter(predictor.model)
    eager = eager_twin(plain)
    config = plain.config.decoder if plain.config.is_encoder_decoder else plain.config
    blocks, heads = config.num_hidden_layers, config.num_attention_heads

    @torch.inference_mode()
    def show(text: str, block: float, head: float) -> str:
        if not text.strip():
            raise InputError("there is no text to show")
        if plain.config.is_encoder_decoder:
            _, source, target = _translated(predictor, text)
            source, target = source[:, :_MAX_ATTENTION_TOKENS], target[:, :_MAX_ATTENTION_TOKENS]
            attentions = eager(input_ids=source, decoder_input_ids=target, output_attentions=True).cross_attentions
        else:
            inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=_MAX_ATTENTION_TOKENS).to(
                plain.device
            )
            source = target = inputs["input_ids"]
            attentions = eager.base_model(**inputs, output_attentions=True).attentions
        if not attentions or attentions[0] is None:
            raise InputError(f"{type(plain).__name__} returns no attention weights")
        weights = attentions[int(block) - 1][0].float()
        weights = weights.mean(0) if head == 0 else weights[int(head) - 1]
        rows, columns = ([tokenizer.decode([number]) for number in ids[0].tolist()] for ids in (target, source))
        which = "mean of all heads" if head == 0 else f"head {int(head)}"
        return html_report.matrix(rows, columns, weights.tolist(), f"Block {int(block)}, {which}")

    text = gr.Textbox(EXAMPLE, label="Text")
    with gr.Row():
        block = gr.Slider(1, blocks, blocks, step=1, label="Block")
        head = gr.Slider(0, heads, 0, step=1, label="Head", info="0: the mean of all")
    button = gr.Button("Look", variant="primary")
    events = [button.click, text.submit, block.release, head.release]
    gr.on(events, _errors_shown()(show), [text, block, head], gr.HTML(), api_name="look")


def eager_twin(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model that shares the weights but returns attention weights; the other keeps its fast attention."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, shared)
    twin.set_attn_implementation("eager")
    return twin


_PAGES: dict[str, Callable[[Predictor], None]] = {
    "AutoModelForCausalLM": _causal,
    "AutoModelForMaskedLM": _masked,
    "AutoModelForPreTraining": _masked,
    "AutoModelForSequenceClassification": _labels,
    "AutoModelForNextSentencePrediction": _labels,
    "AutoModelForTokenClassification": _tags,
    "AutoModelForQuestionAnswering": _answers,
    "AutoModelForMultipleChoice": _options,
    "AutoModelForSeq2SeqLM": _translation,
    "AutoModel": _embeddings,
}
