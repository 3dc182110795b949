"""The `hf-tfm` command: its output, its help, and one line with exit code 2 for wrong input."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from folders import edit_config
from parity_table import native_model
from tiny import build_tokenizer

from hf_tfm.apps import cli
from hf_tfm.apps.cli import main, training
from hf_tfm.apps.cli.app import Command


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A decoder and an encoder of this package, a native model, and folders with faults."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in {
        "decoder": tiny.build("TfmDecoderForCausalLM"),
        "gpt2": tiny.build("TfmDecoderForCausalLM", "gpt2", eos_token_id=None),
        "encoder": tiny.build("TfmEncoderForMaskedLM"),
        "base": tiny.build("TfmEncoderModel"),
        "choice": tiny.build("TfmEncoderForMultipleChoice"),
        "tagger": tiny.build("TfmEncoderForTokenClassification"),
        "llama": native_model("llama", "CausalLM", vocab_size=tiny.VOCAB_SIZE),
        # Fewer embeddings than the tokenizer has tokens.
        "narrow": tiny.build("TfmDecoderForCausalLM", vocab_size=200),
        "narrow_encoder": tiny.build("TfmEncoderForMaskedLM", vocab_size=200),
        "narrow_classifier": tiny.build("TfmEncoderForSequenceClassification", vocab_size=200),
        "narrow_base": tiny.build("TfmEncoderModel", vocab_size=200),
    }.items():
        model.save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    (folder / "empty").mkdir()
    (folder / "one.jsonl").write_text('{"text": "the cat"}\n')
    for name, config in {
        "listed": "[]",
        "adapter": '{"task_type": "CAUSAL_LM", "base_model_name_or_path": "/nowhere/base"}',
    }.items():
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text(config)
    for name in ("truncated", "not_json", "unknown", "contradiction", "no_weights"):
        shutil.copytree(folder / "llama", folder / name)
    weights = folder / "truncated/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (folder / "not_json/config.json").write_text("{")
    edit_config(folder / "unknown", model_type="yeti")
    edit_config(folder / "contradiction", num_attention_heads=5)
    (folder / "no_weights/model.safetensors").unlink()
    return folder


REPOSITORY = Path(__file__).parents[2]
COMMANDS = cli.cli.commands
# Those that pass their arguments on to a script, and groups of them, which other tests run.
OWN_COMMANDS = sorted(name for name, each in COMMANDS.items() if isinstance(each, Command))


def examples(name: str) -> list[str]:
    return [line.strip() for line in COMMANDS[name].epilog.splitlines()]


def test_help_shows_every_command(capsys):
    assert main(["--help"]) == main(["-h"]) == 0
    shown = capsys.readouterr().out
    assert all(f"│ {name} " in shown for name in COMMANDS)
    for group in ("train", "evaluate"):
        assert main([group, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(f"│ {name} " in shown for name in COMMANDS[group].commands)


@pytest.mark.parametrize("name", OWN_COMMANDS)
def test_help_of_a_command_has_examples_that_parse(name, capsys):
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert examples(name)
    for example in examples(name):
        assert f"   {example}\n" in shown, "an example is shown on one line, however narrow the terminal"
        program, command, *arguments = shlex.split(example)
        assert (program, command) == ("hf-tfm", name)
        COMMANDS[name].make_context(name, arguments)


def test_every_script_is_a_command():
    scripts = {path.stem for path in (REPOSITORY / "training").glob("*.py")}
    words = {script: training.command_names(script) for script in scripts}
    assert words["pretrain_clm"] == ("train", "clm") and words["finetune_qa"] == ("train", "qa")
    assert len(set(words.values())) == len(scripts)
    for first, *second in words.values():
        assert first in COMMANDS and (not second or second[0] in COMMANDS[first].commands)


def test_a_script_runs_as_a_command(tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("the cat sat on the mat\n" * 20)
    argv, path = list(sys.argv), list(sys.path)
    assert main(["train", "tokenizer", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: hf-tfm train tokenizer ")
    output = ["--output", str(tmp_path / "tokenizer")]
    assert main(["train", "tokenizer", "--data", str(tmp_path / "texts.txt"), "--vocab-size", "300", *output]) == 0
    assert (tmp_path / "tokenizer/tokenizer.json").is_file()
    assert main(["train", "classification", "--nothing", "1"]) == 2
    assert capsys.readouterr().err == "error: the command line: unknown field 'nothing'\n"
    assert (argv, path) == (sys.argv, sys.path)


def test_lists_take_several_values():
    command = COMMANDS["predict"]
    for arguments in (["--options-fields", "a", "b", "--top", "2", "m", "f"], ["m", "f", "--options-fields", "a", "b"]):
        assert command.make_context("predict", arguments).params["options_fields"] == ["a", "b"]


def test_convert_and_export(models, tmp_path, capsys):
    assert main(["convert", str(models / "llama"), str(tmp_path / "ours")]) == 0
    printed = capsys.readouterr().out
    assert "TfmDecoderForCausalLM" in printed and "outputs equal the source's within" in printed
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "llama"]) == 0
    assert "LlamaForCausalLM" in capsys.readouterr().out
    assert (tmp_path / "back/model.safetensors").read_bytes() == (models / "llama/model.safetensors").read_bytes()
    assert main(["export", str(models / "decoder"), str(tmp_path / "untied"), "--to", "qwen3", "--untie"]) == 0
    assert b"lm_head.weight" in (tmp_path / "untied/model.safetensors").read_bytes()[:5000]


def test_convert_lists_weights_without_a_place(tmp_path, capsys):
    native_model("bert", "PreTraining").save_pretrained(tmp_path / "native")
    assert main(["convert", str(tmp_path / "native"), str(tmp_path / "ours"), "--head", "MaskedLM"]) == 0
    assert "left behind" in (printed := capsys.readouterr().out) and "cls.seq_relationship.weight" in printed


@pytest.mark.parametrize("model", ["decoder", "llama"])
def test_generate_continues_the_prompt(models, model, capsys):
    arguments = ["generate", str(models / model), "the cat sat", "--max-new-tokens", "8"]

    def text(*options: str) -> str:
        assert main([*arguments, *options]) == 0
        return capsys.readouterr().out

    likeliest = text("--temperature", "0")
    assert likeliest.startswith("the cat sat") and len(likeliest) > len("the cat sat\n")
    assert text("--temperature", "0", "--seed", "1") == likeliest
    drawn = text("--temperature", "2")
    assert text("--temperature", "2") == drawn
    assert text("--temperature", "2", "--seed", "1") != drawn


def test_generate_stops_at_the_last_position(models, capsys):
    """A further position would raise an IndexError."""
    assert main(["generate", str(models / "gpt2"), "the", "--max-new-tokens", "1000", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("the")


def test_fill_mask_shows_candidates(models, capsys):
    assert main(["fill-mask", str(models / "encoder"), "the [MASK] sat", "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    shares = [float(line.split("%")[0]) for line in lines]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.1
    assert main(["fill-mask", str(models / "encoder"), "[MASK] cat [MASK]", "--top", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[::3] == ["[MASK] 1", "[MASK] 2"]


def test_a_file_that_cannot_be_written_is_one_line(models, tmp_path, capsys):
    """The results stay on the screen."""
    target = tmp_path / "nowhere/checks.json"
    assert main(["verify", str(models / "decoder"), "--only", "loading", "--json", str(target)]) == 2
    printed = capsys.readouterr()
    assert "all from the checkpoint" in printed.out and printed.err == f"error: {target}: No such file or directory\n"
    picture = ["--picture", str(models / "llama/config.json/x")]
    assert main(["inspect", str(models / "encoder"), *picture]) == 2
    assert "config.json/x" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_a_closed_pipe_is_not_an_error(models, tmp_path):
    """As `hf-tfm predict … | head -1`."""
    (tmp_path / "many.jsonl").write_text('{"text": "the cat sat on the mat"}\n' * 5000)
    command = [sys.executable, "-m", "hf_tfm.apps.cli", "predict", models / "base", tmp_path / "many.jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141
    assert "Traceback" not in errors and "BrokenPipe" not in errors


def light(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The `hf-tfm` command in a process of its own, which ends by printing which heavy packages it has imported."""
    program = (
        "import sys, hf_tfm_command\ntry:\n    code = hf_tfm_command.main(sys.argv[1:])\n"
        "except SystemExit as end:\n    code = end.code\n"
        "print(sorted({'torch', 'transformers', 'hf_tfm'} & set(sys.modules)), code)"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env={**os.environ, **environment}, cwd=REPOSITORY,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["inspect", "--help"], 0), (["train", "--help"], 0), (["dance"], 2), (["plan", "tiny"], 2)],
)
def test_help_and_mistakes_import_no_torch(arguments, code):
    done = light(*arguments)
    assert done.stdout.splitlines()[-1] == f"[] {code}", done.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("hf-tfm gen", {"generate"}),
        ("hf-tfm chat model --top", {"--top-k", "--top-p"}),
        ("hf-tfm train cl", {"clm", "classification"}),
        ("hf-tfm predict model file --pooling m", {"mean", "max"}),
    ],
)
def test_bash_completes_without_torch(typed, offered):
    place = str(len(typed.split()) - 1)
    done = light(_HF_TFM_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=place)
    *lines, last = done.stdout.splitlines()
    assert (set(lines), last) == (offered, "[] 0"), done.stderr


def test_a_shell_gets_its_completion_script():
    done = light(_HF_TFM_COMPLETE="source_bash")
    assert "_HF_TFM_COMPLETE=complete_bash" in done.stdout and "-F" in done.stdout and not done.stderr


WRONG = {
    "missing folder": ("convert {models}/nowhere {out}", "nowhere: no such folder"),
    "unknown name": ("convert nowhere {out}", "nowhere is no folder, and the Hub has no such model either"),
    "file instead of folder": ("convert {models}/llama/config.json {out}", "is a file; give the folder"),
    "folder without config": ("convert {models}/empty {out}", "no config.json"),
    "config that is not JSON": ("convert {models}/not_json {out}", "not_json"),
    "unknown family in": ("convert {models}/unknown {out}", "'yeti' cannot be converted; supported are gpt2"),
    "fields that contradict": ("convert {models}/contradiction {out}", "not a multiple of"),
    "truncated weights": ("convert {models}/truncated {out}", "truncated: Error while deserializing"),
    "no weights": ("convert {models}/no_weights {out}", "no_weights: "),
    "own model in": ("convert {models}/decoder {out}", "is one of this package already"),
    "missing GGUF file": ("convert {models}/llama {out} --gguf-file none.gguf", "none.gguf"),
    "unknown head": ("convert {models}/llama {out} --head Chat", "has no head 'Chat'"),
    "destination with something in it": ("convert {models}/llama {models}/encoder", "is not an empty folder"),
    "destination is a file": ("convert {models}/llama {models}/llama/config.json", "is not an empty folder"),
    "destination that cannot be": ("convert {models}/llama {models}/llama/config.json/x", "config.json/x"),
    "unknown family out": ("export {models}/decoder {out} --to yeti", "unknown format 'yeti'; choose one of gpt2"),
    "family missing": ("export {models}/decoder {out}", "Missing '--to' ("),
    "native model out": ("export {models}/llama {out} --to llama", "is no Tfm model"),
    "shape that does not fit": ("export {models}/decoder {out} --to llama", "qk_norm=True: Llama has no QK-norm"),
    "existing destination out": ("export {models}/decoder {models}/encoder --to qwen3", "is not an empty folder"),
    "no command": ("", "Missing command; choose one of generate, "),
    "unknown command": ("dance", "No such command 'dance'; choose one of generate, "),
    "encoder cannot generate": (
        "generate {models}/encoder hello",
        "contains TfmEncoderForMaskedLM, which AutoModelForCausalLM does not open",
    ),
    "no folder to generate from": ("generate {models}/nowhere hello", "nowhere: no such folder"),
    "several missing": ("index --encoder {models}/base", "Missing 'docs', 'OUT' (see hf-tfm index --help)"),
    "no value": ("generate {models}/decoder hello --top-p", "requires an argument. (see hf-tfm generate --help)"),
    "abbreviated option": (
        "chat {models}/decoder --max-new 4",
        "No such option: --max-new. Did you mean --max-new-tok",
    ),
    "unknown choice": ("predict m f --pooling mid", "'--pooling': 'mid' is not one of 'mean', 'max', 'cls', 'last'"),
    "number too small": ("generate {models}/decoder hello --max-new-tokens 0", "must be at least 1, not 0"),
    "number too large": ("generate {models}/decoder hello --top-p 1.5", "'--top-p': must be at most 1, not 1.5"),
    "not a number": ("generate {models}/decoder hello --temperature hot", "must be a number, not hot"),
    "not a whole number": ("generate {models}/decoder hello --top-k 1.5", "must be a whole number, not 1.5"),
    "prompt too long": ("generate {models}/decoder " + "the" * 200, "leaves no room"),
    "no number": ("generate {models}/decoder hello --temperature nan", "'--temperature': must be at least 0, not nan"),
    "seed out of range": ("generate {models}/decoder hello --seed -1", "must be at least 0, not -1"),
    "seed too large": ("chat {models}/decoder --seed 99999999999", "must be at most 4294967295, not 99999999999"),
    "text without picture": ("inspect {models}/decoder --text hello", "--text needs --picture"),
    "layer without senses": ("inspect {models}/decoder --layer 1", "--layer needs --senses"),
    "adapter file that holds a list": (
        "generate {models}/listed hello",
        "adapter_config.json: holds no object but a list",
    ),
    "adapter to verify": ("verify {models}/adapter", "is an adapter: verify the model"),
    "folder below a file": (
        "predict {models}/base {models}/one.jsonl --out {models}/llama/config.json/x.jsonl",
        "config.json/x.jsonl: cannot be written",
    ),
    "field as this command calls it": (
        "predict {models}/choice {models}/one.jsonl",
        "no field 'question' (--question-field names it)",
    ),
    "words as this command calls them": (
        "predict {models}/tagger {models}/one.jsonl --words-field word",
        "no field 'word' (--words-field)",
    ),
    "base that is gone": ("generate {models}/adapter hello", "name its folder with --base"),
    "no mask": ("fill-mask {models}/encoder hello", "write [MASK]"),
    "prompt that is no text": ("generate {models}/decoder caf\udce9", "'prompt': contains bytes that are not UTF-8"),
    "masked text that is no text": ("fill-mask {models}/encoder '[MASK] \udcff'", "contains bytes that are not UTF-8"),
    "question that is no text": ("ask {models} \udcff --decoder {models}/decoder", "contains bytes that are not UTF-8"),
    "system prompt that is no text": ("chat {models}/decoder --system \udcff", "contains bytes that are not UTF-8"),
    "prompt of another tokenizer": ("generate {models}/narrow 'the cat'", "the model has embeddings of 200"),
    "methods compared with another tokenizer": ("generate {models}/narrow 'the cat' --compare", "embeddings of 200"),
    "masks of another tokenizer": ("fill-mask {models}/narrow_encoder 'the [MASK]'", "embeddings of 200"),
    "records of another tokenizer": ("predict {models}/narrow_classifier {models}/one.jsonl", "embeddings of 200"),
    "embeddings of another tokenizer": ("predict {models}/narrow_base {models}/one.jsonl", "embeddings of 200"),
    "no head": ("fill-mask {models}/base [MASK]", "no weights for decoder.bias, which TfmEncoderForMaskedLM needs"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_writes_nothing(models, tmp_path, capsys, case):
    command, message = WRONG[case]
    before = sorted(models.rglob("*"))
    argv = [part.format(models=models, out=tmp_path / "deep/out") for part in shlex.split(command)]
    code = main(argv)
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
    assert message in printed.err
    assert not printed.out
    assert not list(tmp_path.iterdir()) and sorted(models.rglob("*")) == before


def test_a_mistake_in_a_process_of_its_own_is_one_line_too(models, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hf_tfm_command", "convert", models / "truncated", tmp_path / "out"],
        capture_output=True, text=True, timeout=300, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
