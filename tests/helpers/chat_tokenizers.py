"""Tiny tokenizers that behave as those of the model families: their kind, special tokens, and where these stand."""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from audit_helpers import SENTENCES, tiny_llama
from published_templates import mark_answers, template
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


_CORPUS = [
    *SENTENCES,
    "10 21 32 43 54 65 76 87 98 09",
    *(f"{number}: Tell me of {text.upper()}. {text.title()}!?" for number, text in enumerate(SENTENCES)),
]


@dataclass(frozen=True)
class Family:
    """
    A family of tokenizers.

    Args:
        kind: `byte_level` (GPT-2, Qwen, Llama 3), `byte_fallback` (Llama 2, Gemma), `unigram` (T5), `wordpiece` (BERT).
        named: Names of its special tokens: `bos`, `eos`, `pad`, `unk`, …
        others: Further special tokens.
        plain: Added tokens that are not special, as Qwen's <think>.
        template: Name of its chat template.
        stops: Tokens at which generation stops; the eos token if there are none.
        adds: Tokens that it puts around a text, as `<s> $A`.
        spare: Number of reserved tokens.
        rows_in_steps_of: The embeddings have a multiple of this many rows.
        takes_system: Whether the chat template takes a system message.
    """

    kind: str
    named: dict[str, str]
    others: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    template: str | None = None
    stops: tuple[str, ...] = ()
    adds: str = "$A"
    spare: int = 0
    rows_in_steps_of: int = 1
    takes_system: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def tokenizer(self, chat_template: str | None = None, marked: bool = False) -> PreTrainedTokenizerFast:
        """Returns its tokenizer, perhaps with another chat template or with one that marks answers."""
        specials = tuple(dict.fromkeys([*self.named.values(), *self.others]))
        specials += tuple(f"<|reserved_special_token_{number}|>" for number in range(self.spare))
        backend = Tokenizer.from_str(_train(self.kind, specials))
        backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in self.plain])
        second = self.adds.removeprefix("[CLS] ").replace("$A", "$B:1").replace("[SEP]", "[SEP]:1")
        around = sorted({word for word in self.adds.split() if not word.startswith("$")})
        if around:
            backend.post_processor = processors.TemplateProcessing(
                single=self.adds,
                pair=f"{self.adds} {second}",
                special_tokens=[(token, backend.token_to_id(token)) for token in around],
            )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            extra_special_tokens=[token for token in specials if token not in self.named.values()],
            clean_up_tokenization_spaces=False,
            **{f"{name}_token": token for name, token in self.named.items()},
            **self.options,
        )
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        elif self.template is not None:
            tokenizer.chat_template = mark_answers(self.template) if marked else template(self.template)
        return tokenizer

    def model(self, tokenizer: PreTrainedTokenizerFast, **options: Any) -> Any:
        """Returns a new tiny Llama for it, whose generation stops where the family's does."""
        rows = -(-len(tokenizer) // self.rows_in_steps_of) * self.rows_in_steps_of
        model = tiny_llama(tokenizer, vocab_size=rows, **options)
        if self.stops:
            model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(self.stops))
        return model


@cache
def _train(kind: str, specials: tuple[str, ...]) -> str:
    """Returns a tokenizer as JSON, trained on a few sentences; special tokens stand where the kind has them."""
    added = [AddedToken(token, special=True, normalized=False) for token in specials]
    if kind == "byte_level":
        tokenizer = Tokenizer(models.BPE())
        # Words with their blank, single digits, and the rest: as Llama 3 and Qwen cut texts.
        words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(_CORPUS, trainer)
        tokenizer.add_special_tokens(added)
    elif kind == "byte_fallback":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(
            vocab_size=256 + len(specials) + 150,
            special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
            show_progress=False,
        )
        tokenizer.train_from_iterator(_CORPUS, trainer)
        # The bytes are no special tokens: they are what the model falls back to.
        parts = json.loads(tokenizer.to_str())
        parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["content"].startswith("<0x")]
        tokenizer = Tokenizer.from_str(json.dumps(parts))
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=added, unk_token="<unk>", show_progress=False, shrinking_factor=0.9
        )
        tokenizer.train_from_iterator(_CORPUS, trainer)
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=added, show_progress=False)
        tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer.to_str()


_IM = ("<|im_start|>", "<|im_end|>")
_SENTENCEPIECE = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")
_QWEN_PLAIN = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>")
_DEEPSEEK_TOOLS = tuple(
    f"<｜{name}｜>"
    for name in [f"tool▁{part}▁{edge}" for part in ("calls", "call", "outputs", "output") for edge in ("begin", "end")]
    + ["tool▁sep"]
)
_COMMAND = tuple(f"<|{name}_TOKEN|>" for name in ("START_OF_TURN", "END_OF_TURN", "USER", "CHATBOT", "SYSTEM"))
_GEMMA = {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"}
_HARMONY = ("<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|constrain|>")
_LFM_TOOLS = tuple(f"<|tool_{part}_{edge}|>" for part in ("list", "call", "response") for edge in ("start", "end"))
_GLM = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")

FAMILIES = {
    "qwen2": Family("byte_level", {"pad": "<|endoftext|>", "eos": "<|im_end|>"}, (*_IM, *_VISION), _QWEN_PLAIN, "qwen2",
                    ("<|im_end|>", "<|endoftext|>"), rows_in_steps_of=64),
    "qwen2_base": Family("byte_level", {"pad": "<|endoftext|>", "eos": "<|endoftext|>"}, _IM, _QWEN_PLAIN, "qwen2",
                         ("<|endoftext|>", "<|im_end|>"), rows_in_steps_of=128),
    "qwen3": Family("byte_level", {"pad": "<|endoftext|>", "eos": "<|im_end|>"}, (*_IM, *_VISION), _QWEN_PLAIN, "qwen3",
                    ("<|im_end|>", "<|endoftext|>"), rows_in_steps_of=64),
    "llama2": Family("byte_fallback", _SENTENCEPIECE | {"pad": "<unk>"}, template="llama2", adds="<s> $A"),
    "llama2_pad_eos": Family("byte_fallback", _SENTENCEPIECE | {"pad": "</s>"}, template="llama2", adds="<s> $A"),
    "llama3": Family("byte_level", {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "pad": "<|eot_id|>"},
                     ("<|end_of_text|>", *_HEADERS), (), "llama3", ("<|end_of_text|>", "<|eot_id|>"),
                     "<|begin_of_text|> $A", 24),
    "llama3_base": Family("byte_level",
                          {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "pad": "<|end_of_text|>"},
                          _HEADERS, (), None, ("<|end_of_text|>",), "<|begin_of_text|> $A", 24),
    "llama3.1": Family("byte_level",
                       {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "pad": "<|finetune_right_pad_id|>"},
                       ("<|end_of_text|>", *_HEADERS), (), "llama3.1", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
                       "<|begin_of_text|> $A", 2000),
    "mistral_v1": Family("byte_fallback", _SENTENCEPIECE | {"pad": "</s>"}, template="mistral_v1", adds="<s> $A"),
    "mistral_v3": Family("byte_fallback", _SENTENCEPIECE | {"pad": "<unk>"}, ("[INST]", "[/INST]"), (), "mistral_v3",
                         adds="<s> $A", spare=700),
    "mistral_v7": Family("byte_level", {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"},
                         ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), (), "mistral_v7",
                         adds="<s> $A", spare=900),
    "gemma": Family("byte_fallback", _GEMMA, ("<start_of_turn>", "<end_of_turn>"), (), "gemma",
                    ("<eos>", "<end_of_turn>"), "<bos> $A", 99, takes_system=False),
    "gemma_base_eos": Family("byte_fallback", _GEMMA, ("<start_of_turn>", "<end_of_turn>"), (), "gemma",
                             ("<eos>", "<end_of_turn>"), "<bos> $A", takes_system=False,
                             options={"padding_side": "left"}),
    "gemma3": Family("byte_fallback", _GEMMA, ("<start_of_turn>", "<end_of_turn>", "<start_of_image>"), (), "gemma3",
                     ("<eos>", "<end_of_turn>"), "<bos> $A", 6242, 64, options={"padding_side": "left"}),
    "phi3": Family("byte_fallback", _SENTENCEPIECE | {"eos": "<|endoftext|>", "pad": "<|endoftext|>"},
                   ("<|assistant|>", "<|user|>", "<|system|>", "<|end|>"), (), "phi3",
                   ("<|endoftext|>", "<|assistant|>", "<|end|>"), rows_in_steps_of=64),
    "phi4": Family("byte_level", {"bos": "<|endoftext|>", "eos": "<|im_end|>", "pad": "<|dummy_85|>"},
                   (*_IM, "<|im_sep|>"), (), "phi4", ("<|endoftext|>", "<|im_end|>")),
    "zephyr": Family("byte_fallback", _SENTENCEPIECE | {"pad": "</s>"}, template="zephyr", adds="<s> $A"),
    "tinyllama": Family("byte_fallback", _SENTENCEPIECE | {"pad": "</s>"}, template="zephyr"),
    "deepseek2": Family("byte_level", {"bos": "<｜begin▁of▁sentence｜>", "eos": "<｜end▁of▁sentence｜>",
                                       "pad": "<｜end▁of▁sentence｜>"}, (), (), "deepseek2",
                        adds="<｜begin▁of▁sentence｜> $A", rows_in_steps_of=128),
    "deepseek3": Family("byte_level", {"bos": "<｜begin▁of▁sentence｜>", "eos": "<｜end▁of▁sentence｜>",
                                       "pad": "<｜▁pad▁｜>"}, (), (*_DEEPSEEK, *_DEEPSEEK_TOOLS, "<think>", "</think>"),
                        "deepseek3", adds="<｜begin▁of▁sentence｜> $A", spare=814, rows_in_steps_of=128),
    "vicuna": Family("byte_fallback", _SENTENCEPIECE | {"pad": "<unk>"}, template="vicuna", adds="<s> $A"),
    "alpaca_gpt2": Family("byte_level", {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<|endoftext|>",
                                         "unk": "<|endoftext|>"}, template="alpaca"),
    "falcon": Family("byte_level", {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}, template="falcon"),
    "command_r": Family("byte_level", {"bos": "<BOS_TOKEN>", "eos": "<|END_OF_TURN_TOKEN|>", "pad": "<PAD>"},
                        _COMMAND, ("<|START_RESPONSE|>", "<|END_RESPONSE|>"), "command_r", adds="<BOS_TOKEN> $A"),
    "granite": Family("byte_level", {"bos": "<|end_of_text|>", "eos": "<|end_of_text|>", "pad": "<|end_of_text|>",
                                     "unk": "<|end_of_text|>"},
                      ("<|start_of_role|>", "<|end_of_role|>"), (), "granite"),
    "olmo2": Family("byte_level", {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<|pad|>",
                                   "unk": "<|endoftext|>"}, template="olmo2", rows_in_steps_of=128),
    "smollm2": Family("byte_level", {"bos": "<|im_start|>", "eos": "<|im_end|>", "pad": "<|im_end|>",
                                     "unk": "<|endoftext|>"}, (), (), "smollm2"),
    "smollm3": Family("byte_level", {"eos": "<|im_end|>", "pad": "<|im_end|>"}, ("<|im_start|>",),
                      ("<think>", "</think>"), "smollm3", spare=200),
    "internlm2": Family("byte_fallback", _SENTENCEPIECE | {"pad": "</s>"}, _IM, (), "bos_chatml",
                        ("</s>", "<|im_end|>"), "<s> $A", 500),
    "yi": Family("byte_fallback", {"unk": "<unk>", "bos": "<|startoftext|>", "eos": "<|im_end|>", "pad": "<unk>"},
                 ("<|endoftext|>", "<|im_start|>"), (), "chatml"),
    "stablelm": Family("byte_level", {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<|endoftext|>"},
                       template="zephyr", rows_in_steps_of=64),
    "openchat": Family("byte_fallback", _SENTENCEPIECE | {"eos": "<|end_of_turn|>", "pad": "<|end_of_turn|>"},
                       template="openchat", adds="<s> $A"),
    "glm4": Family("byte_level", {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}, _GLM,
                   ("<think>", "</think>", *_QWEN_PLAIN[:4], "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
                   "glm4", ("<|endoftext|>", "<|user|>", "<|observation|>"), "[gMASK] <sop> $A",
                   options={"padding_side": "left"}),
    "nemotron": Family("byte_level", {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<unk>"},
                       ("<extra_id_0>", "<extra_id_1>"), (), "nemotron", ("</s>", "<extra_id_1>")),
    "nemotron3": Family("byte_level", {"unk": "<unk>", "bos": "<s>", "eos": "<|im_end|>", "pad": "<|im_end|>"},
                        ("<|im_start|>", "</s>"), (*_QWEN_PLAIN,), "chatml", ("</s>", "<|im_end|>"), spare=900),
    "gpt_oss": Family("byte_level", {"bos": "<|startoftext|>", "eos": "<|return|>", "pad": "<|endoftext|>"},
                      _HARMONY, (), "gpt_oss", ("<|return|>", "<|endoftext|>", "<|call|>"), spare=1000),
    "lfm2": Family("byte_level", {"bos": "<|startoftext|>", "eos": "<|im_end|>", "pad": "<|pad|>"},
                   ("<|im_start|>", "<|endoftext|>", *_LFM_TOOLS),
                   ("<think>", "</think>", "<image>"), "bos_chatml", adds="<|startoftext|> $A", spare=500),
    "bert": Family("wordpiece", {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
                   adds="[CLS] $A [SEP]", spare=99,
                   options={"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}),
    "t5": Family("unigram", {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
                 tuple(f"<extra_id_{number}>" for number in range(100)), adds="$A </s>"),
    "roberta": Family("byte_level", {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "cls": "<s>",
                                     "sep": "</s>", "mask": "<mask>"}, adds="<s> $A </s>"),
    "gpt2": Family("byte_level", {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>",
                                  "pad": "<|endoftext|>"}),
    # Families of which only the templates that TRL ships are used.
    "gemma4": Family("byte_fallback", _GEMMA, ("<|turn>", "<turn|>", '<|"|>', "<|channel>", "<channel|>", "<|think|>",
                                               "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
                                               "<tool_response|>", "<|image|>", "<|audio|>", "<|video|>"),
                     (), None, ("<eos>", "<turn|>", "<|tool_response>"), "<bos> $A", options={"padding_side": "left"}),
    "idefics3": Family("byte_level", {"bos": "<|begin_of_text|>", "eos": "<end_of_utterance>", "pad": "<|pad|>"},
                       ("<image>", "<|end_of_text|>"), (), None, adds="<|begin_of_text|> $A"),
    "smolvlm": Family("byte_level", {"bos": "<|im_start|>", "eos": "<end_of_utterance>", "pad": "<|im_end|>"},
                      ("<image>",), (), None),
    "llava": Family("byte_fallback", _SENTENCEPIECE | {"pad": "<unk>"}, ("<image>",), adds="<s> $A"),
    "muse": Family("byte_level", {"bos": "<|begin_of_text|>", "eos": "<|eot|>", "pad": "<|pad|>"},
                   ("<|eom|>", "<|start|>", "<|message|>", "<|patch|>", "<|video|>"), (), None,
                   ("<|eot|>", "<|eom|>"), "<|begin_of_text|> $A"),
}  # fmt: skip

# The family of each chat template that TRL ships, by the beginning of its name; the longest one counts.
_TRL_FAMILIES = {
    "cohere": "command_r", "deepseek": "deepseek3", "diffusion_gemma": "gemma4", "gemma": "gemma", "gemma3": "gemma3",
    "gemma4": "gemma4", "glm4moe": "glm4", "gptoss": "gpt_oss", "idefics3": "idefics3", "lfm2": "lfm2",
    "llama3": "llama3", "llama3_1": "llama3.1", "llama3_2": "llama3.1", "llava_next": "llava", "muse": "muse",
    "nemotron": "nemotron3", "phi3": "phi3", "qwen": "qwen3", "qwen2": "qwen2", "smolvlm": "smolvlm",
}  # fmt: skip


def trl_templates() -> dict[str, str]:
    """Returns the chat templates that the installed TRL ships, by name."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.jinja"))}


def trl_family(name: str) -> Family:
    """Returns the family whose tokenizer a chat template of TRL is written for."""
    start = max((start for start in _TRL_FAMILIES if name.startswith(start)), key=len)
    return FAMILIES[_TRL_FAMILIES[start]]
