"""Stands in for vLLM's server as a program that a run starts: it notes how, has a worker of its own, and answers.

FAKE_VLLM in the environment: what it does otherwise. `refuses`: it ends at once, with an error. `breaks`: it answers
requests for replies with an error. `hangs`: it never answers them. A number: it ends at the request for replies that
follows so many. Replies are made of the seeds alone.
"""

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WORDS = sys.argv[3:]  # behind -m MODULE
NOTE = Path(os.environ["FAKE_VLLM_NOTE"])
IS_BROKEN = os.environ.get("FAKE_VLLM") == "breaks"
ASKED: list[str] = []


class Handler(BaseHTTPRequestHandler):
    def answer(self, content: Any) -> None:
        body = json.dumps(said(self.path.removeprefix("/").partition("?")[0], content)).encode()
        self.send_response(500 if IS_BROKEN and self.path == "/v1/completions" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.answer(json.loads(body) if body else None)

    def log_message(self, format: str, *words: Any) -> None: ...


class Listening(ThreadingHTTPServer):
    request_queue_size = 256  # that ask at the same time


def log(line: str) -> None:
    """One write for a whole line: requests are answered side by side, and print writes a line and its end apart."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def said(route: str, content: Any) -> Any:
    if route == "v1/models":
        return {"data": [{"id": WORDS[WORDS.index("--served-model-name") + 1]}]}
    if route == "server_info":
        model = {"max_model_len": 256, "hf_overrides": {"tie_word_embeddings": False}, "logprobs_mode": "raw_logprobs"}
        return {"vllm_config": {"model_config": model, "device_config": {"device": "cpu"}, "instance_id": "one"}}
    if route == "collective_rpc":
        ASKED.append(content["method"])
        if content["method"] == "reload_weights":
            files = sorted(path.name for path in Path(content["kwargs"]["weights_path"]).glob("*.safetensors"))
            NOTE.with_name("weights.json").write_text(json.dumps(files))
            log("weights")
    if route == "v1/completions":
        mode = os.environ.get("FAKE_VLLM", "")
        if IS_BROKEN:
            log("RuntimeError: the engine is gone")
        elif mode == "hangs":
            log("replies")
            time.sleep(600)
        elif mode and ASKED.count(route) == int(mode):
            log("RuntimeError: out of memory")
            os._exit(1)
        ASKED.append(route)
        log("replies")
        ids = [6 + content["seed"] % 5, 6 + content["seed"] // 5 % 5, content["stop_token_ids"][0]]
        return {"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": [-1.0] * 3}}] * content["n"]}
    return {}


if __name__ == "__main__":
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    NOTE.write_text(json.dumps({"words": WORDS, "environment": dict(os.environ), "pids": [os.getpid(), worker.pid]}))
    if os.environ.get("FAKE_VLLM") == "refuses":
        sys.exit("ValueError: no room for the model")
    port = int(WORDS[WORDS.index("--port") + 1])
    Listening(("127.0.0.1", port), Handler).serve_forever()
