"""The server answers with what `generate` writes, over HTTP on loopback."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from tiny import build

from hf_tfm.convert.serving import answer_refusals


def ask(port: int, path: str, body: dict | None = None) -> dict:
    request = urllib.request.Request(f"http://localhost:{port}{path}", headers={"Content-Type": "application/json"})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(request, data, timeout=60) as answer:
        return json.load(answer)


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_a_refusal_of_the_template_is_an_answer_of_400(tokenizer, monkeypatch):
    fastapi = pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    monkeypatch.setattr(fastapi.FastAPI, "build_middleware_stack", fastapi.FastAPI.build_middleware_stack)
    answer_refusals()
    app = fastapi.FastAPI()
    tokenizer.chat_template = "{{ raise_exception('message 1: role is tool') }}"

    @app.post("/v1/chat/completions")
    def chat(body: dict) -> str:
        return tokenizer.apply_chat_template(body["messages"], tokenize=False)

    answer = TestClient(app).post("/v1/chat/completions", json={"messages": [{"role": "tool", "content": "a"}]})
    assert answer.status_code == 400 and answer.json()["error"]["message"] == "message 1: role is tool"


@pytest.mark.slow
def test_a_chat_over_http_equals_generate(tmp_path, tokenizer, port):
    for name in ("fastapi", "uvicorn", "openai"):  # the server reads requests by openai's types
        pytest.importorskip(name)
    model = build("TfmDecoderForCausalLM")
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] != 'user' %}{{ raise_exception('no role but user') }}"
        "{% endif %}{{ message['content'] }} {% endfor %}"
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    command = [sys.executable, "-m", "hf_tfm.apps.cli", "serve", tmp_path, "--port", str(port), "--device", "cpu"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            for _ in range(120):
                try:
                    ask(port, "/health")
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert server.poll() is None, server.stderr.read()
                    time.sleep(1)
            messages = [{"role": "user", "content": "the cat sat on"}]
            body = {"model": str(tmp_path), "messages": messages, "max_tokens": 8, "temperature": 0}
            answer = ask(port, "/v1/chat/completions", body)
            for changes in ({}, {"stream": True}):
                wrong = {**body, **changes, "messages": [{"role": "system", "content": "a"}]}
                with pytest.raises(urllib.error.HTTPError) as refused:
                    ask(port, "/v1/chat/completions", wrong)
                assert refused.value.code == 400
                assert json.load(refused.value)["error"]["message"] == "no role but user"
        finally:
            server.terminate()
    inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        written = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = tokenizer.decode(written, skip_special_tokens=True)
    assert answer["choices"][0]["message"]["content"].strip() == expected.strip() != ""
