"""Pushes over HTTP to a Hub on loopback: checks, uploads, loading afterwards, and failures."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import tiny
import torch
from hub_server import TOKEN, USER, HubServer
from shapes import logits_of

from hf_tfm import TfmDecoderConfig
from hf_tfm.apps.cli import main
from hf_tfm.artifacts.refresh import code_files
from hf_tfm.artifacts.tokenizer_files import save_tokenizer
from hf_tfm.core.errors import InputError
from hf_tfm.hub import push


REPOSITORY = Path(__file__).parents[2]
HELPERS = REPOSITORY / "tests" / "helpers"
IDS = [[7, 8, 9, 10, 11, 12]]


def save(folder: Path, name: str = "TfmDecoderForCausalLM", seed: int = 0, **options) -> torch.nn.Module:
    model = tiny.build(name, seed=seed)
    model.save_pretrained(folder, **options)
    save_tokenizer(tiny.build_tokenizer(), folder)
    return model


@pytest.mark.quick
def test_the_state_of_a_run_is_not_pushed(tmp_path):
    kept = ["config.json", ".eval_results/x.yaml", "1_Pooling/config.json", "model.safetensors", "curve.png"]
    left = [
        *("checkpoint-3/config.json", ".recipe.json", ".git/HEAD", "optimizer.pt", "rng_state_0.pth", "scheduler.pt"),
        *("training_args.bin", "trainer_state.json", "checkpoint_complete.json", "runs/events.out.tfevents.1.host"),
        "__pycache__/a.py",
    ]
    for name in kept + left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert set(push.files_to_push(tmp_path)) == set(kept)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A decoder, a classifier of two shards, and an adapter for the decoder."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("whole")
    base = save(root / "decoder")
    save(root / "classifier", "TfmEncoderForSequenceClassification", max_shard_size="60KB")
    base.name_or_path = str(root / "decoder")
    torch.manual_seed(1)
    adapter = get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False))
    adapter.save_pretrained(root / "adapter")
    (root / "adapter" / "README.md").unlink()  # PEFT's own, of "More Information Needed"
    save_tokenizer(tiny.build_tokenizer(), root / "adapter")
    return root


@pytest.fixture
def decoder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole / "decoder", tmp_path / "decoder"))


def refusal(folder: Path, capsys, monkeypatch, *options: str, repo: str = "me/x") -> str:
    """Return the error line of a refused push, which must not upload anything."""
    monkeypatch.setattr(push, "upload", lambda *_: pytest.fail("it was uploaded"))
    capsys.readouterr()
    assert main(["push", str(folder), repo, *options]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and not printed.out
    return printed.err


@pytest.mark.quick
@pytest.mark.parametrize("name", ["config.json", "README.md", "modeling_tfm.py", "modeling_tfm_decoder.py"])
def test_a_path_or_a_token_in_any_file_stops_the_push(decoder, capsys, monkeypatch, name):
    before = (decoder / name).read_text() if (decoder / name).exists() else ""
    for planted in ("/home/ann/runs/x", TOKEN):
        text = before.replace("{", f'{{"note": "{planted}",', 1) if name.endswith("json") else f"{before}# {planted}\n"
        (decoder / name).write_text(text)
        said = refusal(decoder, capsys, monkeypatch)
        assert f"{name}: contains " in said and TOKEN not in said


@pytest.mark.quick
def test_pickled_or_damaged_weights_stop_the_push(decoder, capsys, monkeypatch):
    torch.save({}, decoder / "pytorch_model.bin")
    assert "pytorch_model.bin: a pickled file" in refusal(decoder, capsys, monkeypatch)
    (decoder / "pytorch_model.bin").unlink()
    weights = decoder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert "model.safetensors: is damaged" in refusal(decoder, capsys, monkeypatch)


def test_folders_without_model_and_invalid_names_are_refused(decoder, whole, tmp_path, capsys, monkeypatch):
    assert "no such folder" in refusal(tmp_path / "nowhere", capsys, monkeypatch)
    (tmp_path / "empty").mkdir()
    assert "no model and no results" in refusal(tmp_path / "empty", capsys, monkeypatch)
    assert "USER/NAME" in refusal(decoder, capsys, monkeypatch, repo="decoder")
    assert "me/a b" in refusal(decoder, capsys, monkeypatch, repo="me/a b")
    assert "a folder of this machine" in refusal(whole / "adapter", capsys, monkeypatch)
    (decoder / "README.md").write_text("---\nlicense: [\n---\n")
    assert "README.md: while parsing" in refusal(decoder, capsys, monkeypatch)
    (decoder / "README.md").unlink()
    (decoder / "tokenizer.json").unlink()
    assert "decoder" in refusal(decoder, capsys, monkeypatch)


def test_code_with_other_outputs_stops_the_push(decoder, capsys, monkeypatch):
    """Users run the folder's code, whatever the installed package does."""
    code = decoder / "modeling_tfm_decoder.py"
    before = code.read_text()
    code.write_text(before.replace("self.lm_head(select_positions", "1.01 * self.lm_head(select_positions"))
    assert code.read_text() != before
    assert "in a clean process logits differ by" in refusal(decoder, capsys, monkeypatch)
    (decoder / "modeling_tfm.py").unlink()
    said = refusal(decoder, capsys, monkeypatch)
    assert "in a clean process" in said and "modeling_tfm.py" in said


def test_a_card_whose_example_fails_stops_the_push(decoder, capsys, monkeypatch):
    render = push.render_card
    monkeypatch.setattr(push, "render_card", lambda record: render(record).replace("pipeline(", "pipelines("))
    (decoder / "README.md").unlink(missing_ok=True)
    said = refusal(decoder, capsys, monkeypatch)
    assert "README.md: its example does not run: NameError: name 'pipelines' is not defined" in said


# Over HTTP


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Hub in a thread; files beyond 16 kB go up in parts."""
    with HubServer(tmp_path_factory.mktemp("hub"), part_size=1 << 14) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def client(address: str, home: Path, *command, token: str | None = TOKEN) -> subprocess.CompletedProcess:
    """A process that knows this Hub and no other; its caches are in `home`."""
    known = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    kept = {n: v for n, v in os.environ.items() if n not in ("HF_TOKEN", "HF_MODULES_CACHE", "HF_HUB_CACHE")}
    environment = {**kept, **known, "PYTHONPATH": os.pathsep.join([str(HELPERS), str(REPOSITORY)])}
    if token:
        environment["HF_TOKEN"] = token
    run = [sys.executable, *map(str, command)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, cwd=home, timeout=600)
    assert TOKEN not in done.stdout + done.stderr
    return done


PUSHES = """
import json, sys
from pathlib import Path
import tiny
from hf_tfm import InputError
from hf_tfm.hub import push as hub
from hf_tfm.apps.cli import main

whole, results, named = Path(sys.argv[1]), Path(sys.argv[2]), ["--base-model", "me/decoder"]
codes = [
    main(["push", str(whole / "decoder"), "me/decoder", "--tag", "v1"]),
    main(["push", str(whole / "adapter"), "me/adapter", "--base", str(whole / "decoder"), *named]),
    main(["push", str(results), "me/results"]),
    main(["push", str(results), "me/dry", "--dry-run"]),
]
# What was checked once is not checked again here.
checked = hub.CheckedFolder(whole / "classifier", "model", hub.files_to_push(whole / "classifier"))
hub.upload(checked, "me/classifier", private=True, revision="dev")
checked = hub.CheckedFolder(whole / "decoder", "model", hub.files_to_push(whole / "decoder"))
for options in ({"private": True}, {"tag": "v1"}, {"revision": "v1"}, {"token": "hf_" + "Wrong" * 8}):
    try:
        hub.upload(checked, "me/decoder" if "token" not in options else "me/new", **options)
    except InputError as error:
        codes.append(str(error))
model = tiny.build("TfmEncoderForMaskedLM", seed=5)
codes.append(model.push_to_hub("encoder", tokenizer=tiny.build_tokenizer(), tags=["mine"]).oid)
print("codes", json.dumps(codes))
"""


@pytest.fixture(scope="module")
def pushed(server, whole, tmp_path_factory) -> dict:
    """Everything that can be pushed, in one process; what it said, and the Hub's address."""
    results = tmp_path_factory.mktemp("results")
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    task = {"task": "text", "data": "text/test.jsonl", "settings": {}, "results": {"accuracy": figure}}
    evaluation = {"model": {"name": "decoder"}, "command": "python evaluate.py", "tasks": [task]}
    (results / "evaluation.json").write_text(json.dumps(evaluation))
    done = client(server.address, tmp_path_factory.mktemp("home"), "-c", PUSHES, whole, results)
    assert done.returncode == 0, done.stderr[-3000:]
    codes = json.loads(done.stdout.rpartition("codes ")[2])
    return {"codes": codes, "said": done.stdout, "errors": done.stderr}


def files_at(server: HubServer, key: str, revision: str = "main") -> dict[str, dict]:
    store = server.store
    return store.repos[key]["commits"][store.find(key, revision)]["files"]


def content_of(server: HubServer, file: dict) -> bytes:
    return server.store.content(file["lfs"] or file["oid"]).read_bytes()


def test_older_tokenizer_files_are_updated(decoder):
    tiny.build_tokenizer().save_pretrained(decoder)
    saved = (decoder / "tokenizer_config.json").read_text()
    with push.checked_folder(decoder, clean_process=False) as checked:
        pushed = json.loads(checked.files["tokenizer_config.json"].read_text())
    assert pushed["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (decoder / "tokenizer_config.json").read_text() == saved


def test_the_complete_folder_is_pushed(pushed, server, whole):
    assert pushed["codes"][:4] == [0] * 4, pushed["errors"][-2000:]
    for revision, folder in (("v1", "decoder"), ("dev", "classifier")):
        there = files_at(server, f"models/me/{folder}", revision)
        for name, path in push.files_to_push(whole / folder).items():
            assert content_of(server, there[name]) == path.read_bytes(), name
        assert {"config.json", "tokenizer.json", "modeling_tfm.py", "configuration_tfm.py"} <= there.keys()
    assert len([name for name in there if name.endswith(".safetensors")]) > 1
    card = content_of(server, files_at(server, "models/me/decoder")["README.md"]).decode()
    assert "TfmDecoderForCausalLM" in card and "nformation" not in card
    assert "from_pretrained(\"me/decoder\", revision='v1', trust_remote_code=True)" in pushed["said"]


def test_branch_tag_and_privacy(pushed, server):
    repos = server.store.repos
    assert set(repos["models/me/decoder"]["refs"]) == {"heads/main", "tags/v1"}
    assert set(files_at(server, "models/me/classifier", "main")) == {".gitattributes"}
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server.address}/me/classifier/resolve/dev/config.json")
    assert urllib.request.urlopen(f"{server.address}/me/decoder/resolve/v1/config.json").status == 200
    assert "models/me/dry" not in repos and "datasets/me/dry" not in repos


def test_refusals_of_the_hub_are_one_line_and_change_nothing(pushed, server):
    public, tagged, on_a_tag, wrong = pushed["codes"][4:8]
    assert "exists and is public" in public and "tag v1 exists already" in tagged
    assert "v1 is a tag" in on_a_tag and "log in with `hf auth login`" in wrong and "WrongWrong" not in wrong
    assert len(server.store.repos["models/me/decoder"]["commits"]) == 2 and "models/me/new" not in server.store.repos


def test_a_pushed_adapter_names_its_base_on_the_hub(pushed, server, whole):
    there = files_at(server, "models/me/adapter")
    config = json.loads(content_of(server, there["adapter_config.json"]))
    assert config["base_model_name_or_path"] == "me/decoder"
    assert "adapter_model.safetensors" in there and "model.safetensors" not in there
    said = json.loads((whole / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert said == str(whole / "decoder")  # the folder here stays as it is


def test_a_pushed_model_brings_tokenizer_and_card(pushed, server):
    there = files_at(server, "models/me/encoder")
    assert {"model.safetensors", "modeling_tfm_encoder.py", "tokenizer.json", "README.md"} <= there.keys()
    card = content_of(server, there["README.md"]).decode()
    assert "TfmEncoderForMaskedLM" in card and "nformation" not in card and "\n- mine\n" in card


@pytest.fixture(scope="module")
def visits(pushed, server, tmp_path_factory) -> dict[str, dict]:
    """What a stranger with an empty cache finds, by repository and Auto class."""
    root = tmp_path_factory.mktemp("visitor")
    wanted = [("me/decoder", auto, "v1") for name, auto in tiny.MODELS.items() if "Decoder" in name]
    return visit(server.address, root, [*wanted, ("me/encoder", "AutoModelForMaskedLM", None)])


def visit(address: str, root: Path, wanted: list[tuple]) -> dict[str, dict]:
    named = [dict(zip(("repo", "auto_class", "revision"), one), ids=IDS) for one in wanted]
    (root / "visits.json").write_text(json.dumps(named))
    done = client(address, root, HELPERS / "hub_visitor.py", root / "visits.json", root / "found.pt", token=None)
    assert done.returncode == 0, done.stderr[-3000:]
    return {f"{one[0]} {one[1]}": found for one, found in zip(wanted, torch.load(root / "found.pt"))}


def test_every_auto_class_loads_it_without_this_package(visits, server, whole):
    assert len(visits) == 7
    commit = server.store.find("models/me/decoder", "v1")
    for name, auto_class in tiny.MODELS.items():
        if "Decoder" in name:
            found = visits[f"me/decoder {auto_class}"]
            assert found["model"] == name and found["module"].startswith(f"transformers_modules.me.decoder.{commit}.")
            assert found["vocabulary"] == len(tiny.build_tokenizer())
    with torch.no_grad():
        expected = logits_of(tiny.build("TfmDecoderForCausalLM")(torch.tensor(IDS)))
        masked = logits_of(tiny.build("TfmEncoderForMaskedLM", seed=5)(torch.tensor(IDS)))
    torch.testing.assert_close(visits["me/decoder AutoModelForCausalLM"]["outputs"], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(visits["me/encoder AutoModelForMaskedLM"]["outputs"], masked, atol=1e-6, rtol=0)


LOADS = """
import sys
import torch
from datasets import load_dataset
from peft import AutoPeftModelForCausalLM

assert load_dataset("me/results")["train"]["value"] == [0.5]
model = AutoPeftModelForCausalLM.from_pretrained("me/adapter", trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(torch.tensor(eval(sys.argv[1]))).logits, sys.argv[2])
"""


def test_adapters_and_results_load_by_name(pushed, server, whole, tmp_path):
    from peft import PeftModel

    done = client(server.address, tmp_path, "-c", LOADS, IDS, tmp_path / "logits.pt", token=None)
    assert done.returncode == 0, done.stderr[-3000:]
    model = PeftModel.from_pretrained(tiny.build("TfmDecoderForCausalLM"), whole / "adapter").eval()
    with torch.no_grad():
        expected = model(torch.tensor(IDS)).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-6, rtol=0)


def test_no_token_is_stored_or_sent_in_addresses(pushed, server):
    """Only requests to the addresses of files come without a token in the header."""
    for path in server.store.root.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


# Broken off

UPLOAD = """
import sys
from pathlib import Path
from hf_tfm import InputError
from hf_tfm.hub import push as hub

folder = Path(sys.argv[1])
try:
    hub.upload(hub.CheckedFolder(folder, "model", hub.files_to_push(folder)), "me/large")
except InputError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def large(tmp_path) -> Path:
    """A model in many shards."""
    save(tmp_path / "large", max_shard_size="20KB")
    assert len(list((tmp_path / "large").glob("*.safetensors"))) >= 4
    return tmp_path / "large"


def start_server(root: Path, port: int = 0, *options: str) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, HELPERS / "hub_server.py", root, "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def uploads(root: Path) -> list[str]:
    """Contents that came in whole or were begun, in order."""
    return re.findall(r"PUT \S+/objects/(\w{64})", (root / "requests.log").read_text())


def test_a_push_continues_when_the_hub_is_back(large, tmp_path):
    """The client waits; then the repository has one new commit with every complete file."""
    root = tmp_path / "hub"
    process, address = start_server(root, 0, "--die-after", "2")
    result = []
    pushing = threading.Thread(target=lambda: result.append(client(address, tmp_path, "-c", UPLOAD, large)))
    pushing.start()
    assert process.wait(timeout=300) == 9
    kept = {path.name for path in (root / "contents").iterdir() if re.fullmatch(r"\w{64}", path.name)}
    assert len(kept) == 2
    process, _ = start_server(root, int(address.rpartition(":")[2]))
    try:
        pushing.join(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert result[0].returncode == 0, result[0].stderr[-2000:]
    check_large(root, large)


def test_a_call_is_repeated_if_another_thread_closed_the_connection():
    closed = RuntimeError("Error while uploading 'a' to the Hub.")
    closed.__cause__ = RuntimeError("Cannot send a request, as the client has been closed.")
    answers = [closed, closed.__cause__, "done", RuntimeError("the disk is full")]

    def call():
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    assert push.retry_if_closed(call) == "done"
    with pytest.raises(RuntimeError, match="disk"):
        push.retry_if_closed(call)


def test_a_killed_push_continues(large, tmp_path):
    """After a kill and a restart, files that arrived are not sent again; until the end the repository is unchanged."""
    root = tmp_path / "hub"
    process, address = start_server(root, 0, "--die-after", "2")
    known = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    environment = {**os.environ, **known, "PYTHONPATH": str(REPOSITORY)}
    pushing = subprocess.Popen(
        [sys.executable, "-c", UPLOAD, large], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert process.wait(timeout=300) == 9
    pushing.kill()
    pushing.wait()
    arrived = {path.name for path in (root / "contents").iterdir() if re.fullmatch(r"\w{64}", path.name)}
    repo = json.loads((root / "repos.json").read_text())["models/me/large"]
    assert len(arrived) == 2 and len(repo["commits"]) == 1
    before = len(uploads(root))
    process, address = start_server(root)
    try:
        done = client(address, tmp_path, "-c", UPLOAD, large)
    finally:
        process.kill()
        process.wait()
    assert done.returncode == 0, done.stderr[-2000:]
    assert not arrived & set(uploads(root)[before:])
    check_large(root, large)


@pytest.mark.slow
def test_an_unreachable_hub_is_reported_in_one_line(large, tmp_path):
    process, address = start_server(tmp_path / "hub", 0, "--die-after", "2")
    done = client(address, tmp_path, "-c", UPLOAD, large)
    process.wait()
    assert done.returncode == 1
    assert re.search(r"error: me/large: .*; the same command continues where it stopped", done.stderr)
    assert "Traceback" not in done.stderr


def check_large(root: Path, large: Path) -> None:
    repo = json.loads((root / "repos.json").read_text())["models/me/large"]
    assert len(repo["commits"]) == 2
    files = repo["commits"][repo["refs"]["heads/main"]]["files"]
    for name, path in push.files_to_push(large).items():
        assert (root / "contents" / (files[name]["lfs"] or files[name]["oid"])).read_bytes() == path.read_bytes(), name


def test_obsolete_weights_are_deleted(server, large, tmp_path):
    """Obsolete shards would be loaded instead of new weights, or stay forever."""
    assert client(server.address, tmp_path, "-c", UPLOAD, large).returncode == 0
    assert "model.safetensors.index.json" in files_at(server, "models/me/large")
    shutil.rmtree(large)
    save(large, seed=3)
    assert client(server.address, tmp_path, "-c", UPLOAD, large).returncode == 0
    there = files_at(server, "models/me/large")
    assert [name for name in there if "safetensors" in name] == ["model.safetensors"]
    assert ".gitattributes" in there


def test_messages_of_the_hub_are_shown_without_the_token():
    with pytest.raises(InputError) as refused, push.explain_hub_errors("me/x", TOKEN):
        raise OSError(f"cannot send Bearer {TOKEN}\nto it")
    assert TOKEN not in str(refused.value) and "\n" not in str(refused.value)


# Trainers

TRAINS = """
import sys
import tiny
from transformers import TrainingArguments, default_data_collator
from hf_tfm.artifacts.record import RunRecord
from hf_tfm.train.trainer import RunTrainer

model, rows = tiny.build("TfmDecoderForCausalLM"), tiny.inputs_for("TfmDecoderForCausalLM", batch=8)
args = TrainingArguments(
    output_dir=sys.argv[1], max_steps=2, per_device_train_batch_size=4, save_steps=1, use_cpu=True, disable_tqdm=True,
    push_to_hub=True, hub_model_id="me/trained", hub_private_repo=True, logging_steps=1,
)
rows = [{name: value[row] for name, value in rows.items()} for row in range(8)]
trainer = RunTrainer(
    model, args, train_dataset=rows, data_collator=default_data_collator, processing_class=tiny.build_tokenizer(),
    record=RunRecord("a job"),
)
trainer.train()
trainer.push_to_hub()
"""


def test_trainer_pushes_the_complete_folder(server, tmp_path):
    """Model, code, tokenizer and card are pushed; the pickled arguments with the token are not."""
    done = client(server.address, tmp_path, "-c", TRAINS, tmp_path / "run", "--hub_token", TOKEN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "training_args.bin").is_file()
    there, repo = files_at(server, "models/me/trained"), server.store.repos["models/me/trained"]
    assert repo["private"]
    expected = {"config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json"}
    code = code_files(TfmDecoderConfig).keys()
    assert set(there) == expected | code | {".gitattributes", "tokenizer_config.json", "run_record.json"}
    assert "--hub_token" not in json.loads(content_of(server, there["run_record.json"]))["command"]
    assert content_of(server, there["model.safetensors"]) == (tmp_path / "run" / "model.safetensors").read_bytes()
    titles = [commit["title"] for commit in repo["commits"].values()]
    assert titles[1] == "Training in progress, step 1" and titles[-1] == "End of training"


# Others' clients and servers


def tool(name: str, *install: str) -> Path:
    """The folder of a tool in an environment of its own, kept for the next time; skips where it cannot be had."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hf_tfm_tests" / name
    if not (folder / "ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for command in install:
            done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"{name} cannot be installed: {done.stderr[-300:]}")
        (folder / "ready").touch()
    return folder


@pytest.mark.slow
def test_a_mirror_serves_pushed_models(visits, server, tmp_path):
    """A client behind olah, a proxy for the Hub, loads the same files."""
    installed = tool("olah", f"{sys.executable} -m venv .", "bin/pip install -q olah==0.5.4")
    port = int(server.address.rpartition(":")[2]) ^ 1
    where = server.address.removeprefix("http://")
    settings = {
        "host": "127.0.0.1", "port": port, "repos-path": str(tmp_path / "repos"), "metadata-cache-ttl": 0,
        "hf-scheme": "http", "hf-netloc": where, "hf-lfs-netloc": where, "mirror-scheme": "http",
        "mirror-netloc": f"127.0.0.1:{port}", "mirror-lfs-netloc": f"127.0.0.1:{port}",
    }  # fmt: skip
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (tmp_path / "olah.toml").write_text("\n".join(["[basic]", *lines]))
    command = [installed / "bin" / "olah-cli", "-c", tmp_path / "olah.toml", "--log-path", tmp_path / "logs"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/models/me/decoder")
        wanted = [("me/decoder", "AutoModelForCausalLM", "v1"), ("me/encoder", "AutoModelForMaskedLM", "main")]
        found = visit(f"http://127.0.0.1:{port}", tmp_path, wanted)
    finally:
        process.terminate()
        process.wait()
    for name, one in found.items():
        assert torch.equal(one["outputs"], visits[name]["outputs"])


def wait_for(address: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


JAVASCRIPT = """
import { createRepo, downloadFile, listFiles, uploadFiles } from "@huggingface/hub";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";

const [hubUrl, accessToken, folder, out] = process.argv.slice(2);
const found = {};
for await (const file of listFiles({ repo: "me/decoder", revision: "v1", hubUrl })) {
  const blob = await downloadFile({ repo: "me/decoder", revision: "v1", path: file.path, hubUrl, xet: false });
  writeFileSync(`${out}/${file.path}`, Buffer.from(await blob.arrayBuffer()));
}
const names = readdirSync(folder);
await createRepo({ repo: "me/from-javascript", accessToken, hubUrl });
const files = names.map((name) => ({ path: name, content: new Blob([readFileSync(`${folder}/${name}`)]) }));
await uploadFiles({ repo: "me/from-javascript", accessToken, hubUrl, files, useXet: false });
"""


@pytest.mark.slow
def test_the_javascript_client_reads_and_writes_too(pushed, server, whole, tmp_path):
    """A second client understands the Hub of these tests and reads the pushed files byte for byte."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    installed = tool("npm", "npm install --no-audit --no-fund @huggingface/hub@2.17.5")
    script = installed / f"check-{os.getpid()}.mjs"
    script.write_text(JAVASCRIPT)
    out = tmp_path / "out"
    out.mkdir()
    try:
        command = ["node", script, server.address, TOKEN, whole / "decoder", out]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        script.unlink()
    assert done.returncode == 0, done.stderr[-2000:]
    there = files_at(server, f"models/{USER}/from-javascript")
    for name, path in push.files_to_push(whole / "decoder").items():
        assert (out / name).read_bytes() == path.read_bytes() == content_of(server, there[name]), name
