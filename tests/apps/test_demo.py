"""
`hf-tfm demo`: the page of each head compared with the model itself, its Space, and a page in a real browser.
"""

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import tiny
import torch
from tiny import build, build_tokenizer

from hf_tfm.apps.cli import main
from hf_tfm.core.errors import InputError
from hf_tfm.data.tokenizer import train_tokenizer


HEADS = {
    "TfmDecoderForCausalLM": dict(eos_token_id=None),
    "TfmEncoderForMaskedLM": {},
    "TfmEncoderForPreTraining": {},
    "TfmEncoderForSequenceClassification": dict(num_labels=3, problem_type="single_label_classification"),
    "TfmDecoderForSequenceClassification": dict(num_labels=3, problem_type="multi_label_classification"),
    "TfmEncoderForNextSentencePrediction": {},
    "TfmEncoderForTokenClassification": dict(id2label={0: "O", 1: "B-x", 2: "I-x"}),
    "TfmEncoderForQuestionAnswering": {},
    "TfmEncoderForMultipleChoice": {},
    "TfmEncoderModel": {},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A tiny model of every head in a folder of its name, and `chat`, which has a chat template."""
    root = tmp_path_factory.mktemp("models")
    for name, switches in HEADS.items():
        build(name, **switches).save_pretrained(root / name)
        build_tokenizer().save_pretrained(root / name)
    tokenizer = train_tokenizer(tiny.CORPUS, vocab_size=tiny.VOCAB_SIZE, num_spare_tokens=0)
    ids = dict(pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=None)
    build("TfmDecoderForCausalLM", vocab_size=len(tokenizer), max_position_embeddings=256, **ids).save_pretrained(
        root / "chat"
    )
    tokenizer.save_pretrained(root / "chat")
    return root


@pytest.fixture(scope="module")
def page_of(demo, folders):
    """The page of a model in `folders`, built once."""
    return functools.cache(lambda name: demo.build(str(folders / name)))


@pytest.fixture(scope="module")
def demo():
    pytest.importorskip("gradio", reason="the page needs Gradio")
    from hf_tfm.apps import demo

    return demo


def event(page, name: str):
    """The function that a button of the page calls."""
    return next(handler.fn for handler in page.fns.values() if handler.api_name == name)


def outputs(folder: Path, *texts: str):
    from hf_tfm.artifacts.open import open_model

    model, tokenizer = open_model(str(folder))
    with torch.no_grad():
        return model(**tokenizer(*texts, return_tensors="pt"))


def test_without_gradio_one_line_names_the_extra(folders, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hf_tfm.apps.demo", raising=False)
    assert main(["demo", str(folders / "chat")]) == 2
    assert "pip install 'hf-tfm[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", HEADS)
def test_every_head_has_a_page_and_shows_its_attention(page_of, name):
    page = page_of(name)
    shown = event(page, "look")("the cat sat on the mat", 2, 1)
    model = build(name, **HEADS[name])
    model.set_attn_implementation("eager")
    inputs = build_tokenizer()("the cat sat on the mat", return_tensors="pt")
    with torch.no_grad():
        weights = model.base_model(**inputs, output_attentions=True).attentions[1][0, 0]
    numbers = [float(number) for number in re.findall(r': ([\d.]+)"', shown)]
    assert numbers == pytest.approx(weights.flatten().tolist(), abs=6e-4)
    assert "Block 2, head 1" in shown


def test_the_eager_twin_shares_weights_and_leaves_the_model_unchanged(demo):
    model = build("TfmDecoderForCausalLM")
    before = model.config._attn_implementation
    twin = demo.eager_twin(model)
    assert twin.config._attn_implementation == "eager" and model.config._attn_implementation == before != "eager"
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)


@pytest.mark.parametrize("name", ["TfmEncoderForMaskedLM", "TfmEncoderForPreTraining"])
def test_masks(page_of, folders, name):
    from hf_tfm.apps.formatting import percent

    shown = event(page_of(name), "fill_in")("the [MASK] sat [MASK]")
    found = outputs(folders / name, "the [MASK] sat [MASK]")
    logits = found.logits if "logits" in found else found.prediction_logits
    ids = build_tokenizer()("the [MASK] sat [MASK]")["input_ids"]
    best = logits[0, ids.index(tiny.MASK)].softmax(-1).topk(8)
    assert [row[0] for row in shown] == ["[MASK] 1"] * 8 + ["[MASK] 2"] * 8
    assert [row[2] for row in shown[:8]] == [percent(value) for value in best.values.tolist()]


@pytest.mark.parametrize("name", ["TfmEncoderForSequenceClassification", "TfmDecoderForSequenceClassification"])
def test_labels(page_of, folders, name):
    shown = event(page_of(name), "label")("the cat sat")
    logits = outputs(folders / name, "the cat sat").logits[0]
    shares = logits.softmax(-1) if "Encoder" in name else logits.sigmoid()
    assert shown == pytest.approx({f"LABEL_{number}": share for number, share in enumerate(shares.tolist())}, abs=1e-5)


def test_next_sentence(page_of, folders):
    folder = folders / "TfmEncoderForNextSentencePrediction"
    shown = event(page_of(folder.name), "label")("the cat", "sat on")
    share = float(outputs(folder, "the cat", "sat on").logits[0].softmax(-1)[0])
    assert shown == pytest.approx({"follows": share, "does not follow": 1 - share}, abs=1e-5)


def test_tags_are_marked_at_their_words(page_of):
    text = "the cat, <b>sat</b> the cat"
    marked, rows = event(page_of("TfmEncoderForTokenClassification"), "tag")(text)
    assert marked["text"] == text and marked["entities"]
    assert [text[one["start"] : one["end"]] for one in marked["entities"]] == [row[0] for row in rows]
    assert {one["entity"] for one in marked["entities"]} == {row[1] for row in rows} == {"x"}


def test_answers_are_marked_in_the_text(page_of, folders):
    from hf_tfm.data.records import Records
    from hf_tfm.evaluate.predict import open_predictor

    folder, context = folders / "TfmEncoderForQuestionAnswering", "the cat sat on the mat and looked at the moon"
    caption, marked, rows = event(page_of(folder.name), "find_the_answer")("who sat?", context)
    [said] = open_predictor(str(folder))(Records([{"question": "who sat?", "context": context}], ["it"], "it"))
    best = said["predicted_answers"][0]
    assert caption.startswith(f"{best['text']} (") and rows[0][0] == best["text"]
    [span] = marked["entities"]
    assert marked["text"] == context and (span["start"], span["end"]) == (best["start"], best["end"])


def test_options(page_of):
    choose = event(page_of("TfmEncoderForMultipleChoice"), "choose")
    shown = dict(choose("the cat", "sat\nran\n\nlooked"))
    assert set(shown) == {"sat", "ran", "looked"}
    shares = [float(share.rstrip("%")) for share in shown.values()]
    assert sum(shares) == pytest.approx(100, abs=0.2) and shares == sorted(shares, reverse=True)
    with pytest.raises(Exception, match="at least two options"):
        choose("the cat", "sat")


def test_similarities(page_of):
    shown = event(page_of("TfmEncoderModel"), "compare")("the cat sat\nthe cat sat\nrain fell")
    written = re.findall(r'">(-?[\d.]+)</td>', shown)
    assert len(written) == 9 and written[0] == written[1] == written[4] == "1.00" and written[2] != "1.00"


def test_a_text_is_continued_piece_by_piece(page_of):
    page = page_of("TfmDecoderForCausalLM")
    pieces = list(event(page, "continue")("the cat", 0.0, 0, 1.0, 0.0, 1.0, 12, 0))
    assert len(pieces) > 2 and all(later.startswith(earlier) for earlier, later in zip(pieces, pieces[1:]))
    drawn = [list(event(page, "continue")("the cat", 2.0, 0, 1.0, 0.0, 1.0, 12, seed))[-1] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    compared = event(page, "compare")("the cat", 5, 0.7, 40, 0.8, 3)
    assert compared.count('class="tok" tabindex="0"') == 25 and "beam search, 3 beams" in compared
    with pytest.raises(Exception, match="leaves no room"):
        list(event(page, "continue")("zq" * 200, 0.0, 0, 1.0, 0.0, 1.0, 12, 0))


def test_mistakes_are_one_line(demo, folders, tmp_path, capsys):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        demo.build(str(tmp_path / "nowhere"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", str(folders / "TfmEncoderModel"), "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"error: port {port} is not free; give another --port\n"
    assert main(["demo", str(folders / "chat"), "--space", str(folders / "chat")]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


def test_translations(demo, tmp_path):
    pytest.importorskip("sacrebleu")
    from hf_tfm.tasks.translation import build_translator, train_shared_tokenizer

    tokenizer = train_shared_tokenizer(tiny.CORPUS, tiny.VOCAB_SIZE, 64)
    size = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
    build_translator("vaswani2017/nano", tokenizer, 64, size).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    page = demo.build(str(tmp_path))
    assert isinstance(event(page, "translate")("the cat sat"), str)
    assert "Rows attend to columns" in event(page, "look")("the cat sat", 1, 0)


def test_a_space_of_an_adapter_contains_its_base(demo, folders, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = folders / "TfmEncoderForSequenceClassification"
    model = get_peft_model(
        build(base.name, **HEADS[base.name]), LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
    )
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    build_tokenizer().save_pretrained(tmp_path / "adapter")
    demo_space(tmp_path / "adapter", tmp_path / "space")
    config = json.loads((tmp_path / "space/model/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base" and "peft==" in (tmp_path / "space/requirements.txt").read_text()
    assert str(tmp_path) not in (tmp_path / "space/app.py").read_text()
    page = demo.build(str(tmp_path / "space/model"), base=str(tmp_path / "space/base"))
    own = demo.build(str(tmp_path / "adapter"))
    assert event(page, "label")("the cat") == event(own, "label")("the cat")


def test_a_file_that_must_not_be_published_is_refused(demo, folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders / "TfmEncoderModel", folder)
    (folder / "optimizer_state.pkl").write_bytes(b"x")
    with pytest.raises(InputError, match="optimizer_state.pkl: a pickled file"):
        demo_space(folder, tmp_path / "space")
    assert not (tmp_path / "space").exists()


def demo_space(folder: Path, target: Path) -> None:
    from hf_tfm.apps.hub_space import write_space

    write_space(str(folder), str(target))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Served:
    """A page in a process of its own; `url` is where it is."""

    def __init__(self, command: list[str], port: int, **options):
        self.url = f"http://127.0.0.1:{port}/"
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        self.lines: list[bytes] = []
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True).start()

    def __enter__(self) -> "Served":
        for _ in range(600):
            if self.process.poll() is not None:
                raise AssertionError(b"".join(self.lines).decode())
            try:
                urllib.request.urlopen(self.url, timeout=5)
                return self
            except OSError:
                time.sleep(0.5)
        raise AssertionError("the page did not start")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)


def own_environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **more}


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.slow
def test_a_conversation_in_a_browser(demo, folders, browser, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "hf_tfm.apps.cli", "demo", str(folders / "chat"), "--port", str(port)]
    with Served(command, port, env=own_environment()) as served:
        local = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if f":{port:04X} " in line]
        assert "0100007F:" in local[0] and not any(address.startswith("00000000:") for address in local)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        elsewhere: list[str] = []
        page.on("request", lambda request: None if served.url in request.url else elsewhere.append(request.url))
        page.goto(served.url + "?__theme=dark")
        page.locator("textarea:visible").last.fill("the cat sat")
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelectorAll('.message.bot').length > 0", timeout=60_000)
        page.get_by_role("tab", name="Ways of decoding").click()
        page.get_by_role("button", name="Compare").click()
        page.wait_for_selector(".tfm .tok[tabindex]", timeout=60_000)
        token = page.locator(".tfm .tok[tabindex]").first
        assert not token.locator(".tip").is_visible()
        token.hover()
        assert "entropy" in token.locator(".tip").inner_text()
        colour = page.locator(".tfm h3").first.evaluate("heading => getComputedStyle(heading).color")
        assert colour == "rgb(31, 35, 40)", "what is shown is dark on white, whatever the page around it"
        page.get_by_role("tab", name="Attention").click()
        page.get_by_role("button", name="Look").click()
        page.wait_for_selector(".tfm .matrix td", timeout=60_000)
        page.screenshot(path=tmp_path / "page.png")
        assert [url for url in elsewhere if not url.startswith(("data:", "blob:"))] == [], "nothing is fetched"


@pytest.mark.slow
def test_a_space_starts(demo, folders, browser, tmp_path):
    from huggingface_hub import SpaceCard

    space, port = tmp_path / "space", free_port()
    assert main(["demo", str(folders / "TfmEncoderForSequenceClassification"), "--space", str(space)]) == 0
    card = SpaceCard.load(space / "README.md").data
    assert (card.sdk, card.app_file, card.title) == ("gradio", "app.py", "TfmEncoderForSequenceClassification")
    colours = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
    assert card.get("colorFrom") in colours and card.get("colorTo") in colours and card.get("emoji")
    needed = dict(line.split("==") for line in (space / "requirements.txt").read_text().splitlines())
    assert needed["gradio"] == card.sdk_version and {"torch", "transformers"} <= needed.keys()
    environment = own_environment(GRADIO_SERVER_PORT=str(port), PYTHONPATH="")
    where = subprocess.run(
        [sys.executable, "-c", "import hf_tfm; print(hf_tfm.__file__)"],
        cwd=space, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(space), "the Space runs the code that it carries"
    with Served([sys.executable, "app.py"], port, cwd=space, env=environment) as served:
        page = browser.new_page()
        page.goto(served.url)
        page.get_by_label("Text").first.fill("the cat sat")
        page.get_by_role("button", name="Label").click()
        page.wait_for_selector("text=LABEL_2", timeout=60_000)
        assert page.locator("text=LABEL_").count() >= 3
