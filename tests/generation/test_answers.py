"""What a server answers otherwise than it was asked to, or not at all; it is made up here."""

import json
import math
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest

from alignment.config.errors import ConfigError, UserError
from alignment.config.generation import VLLMConfig
from alignment.generation.server import Server

SAMPLING = {"n": 2, "max_tokens": 3}
LOGPROBS = {"token_logprobs": [-1.0, -2.0]}
REPLY = {"token_ids": [7, 99], "logprobs": LOGPROBS}


class Stand(ThreadingHTTPServer):
    """Answers all with `body`, once `answers` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.asked, self.redirects, self.answers = b"{}", 0, False, Event()
        self.answers.set()


class Handler(BaseHTTPRequestHandler):
    server: Stand

    def do_POST(self) -> None:
        self.server.asked += 1
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.answers.wait()
        self.send_response(302 if self.server.redirects else 200)
        self.send_header("Location", "/health")
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST

    def log_message(self, format: str, *words: Any) -> None: ...


@pytest.fixture
def stand() -> Iterator[Stand]:
    server = Stand()
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.answers.set()
    server.shutdown()
    thread.join()
    server.server_close()


def asked(stand: Stand, request_timeout_s: float = 60.0) -> Server:
    settings: dict[str, Any] = {"timeout_s": 0.0, "request_timeout_s": request_timeout_s}
    return Server(VLLMConfig(host="127.0.0.1", port=stand.server_port, **settings))


@pytest.mark.parametrize(
    ("choices", "came"),
    [
        ([REPLY], r"1 replies, of \[2\] tokens"),
        ([REPLY] * 3, r"3 replies, of \[2, 2, 2\] tokens"),
        ([REPLY, {"text": "a", "logprobs": LOGPROBS}], "KeyError: 'token_ids'"),
        ([REPLY, {**REPLY, "token_ids": None}], "TypeError: "),
        ([REPLY, {**REPLY, "logprobs": None}], "TypeError: "),
        ([REPLY, {"token_ids": [], "logprobs": {"token_logprobs": []}}], r"2 replies, of \[2, 0\] tokens"),
        ([REPLY, {"token_ids": [7] * 4, "logprobs": LOGPROBS}], r"2 replies, of \[2, 4\] tokens"),
        ([REPLY, {**REPLY, "token_ids": [7, 100]}], r"the tokens \[100\]"),
        ([REPLY, {**REPLY, "token_ids": [7, "a"]}], r"the tokens \['a'\]"),
        ([REPLY, {**REPLY, "logprobs": {"token_logprobs": [-1.0]}}], "log-probs that are not a number for each token"),
        ([REPLY, {**REPLY, "logprobs": {"token_logprobs": [-1.0, None]}}], "log-probs that are not a number for each"),
        *(
            (
                [REPLY, {**REPLY, "logprobs": {"token_logprobs": [-1.0, nats]}}],
                "log-probs that are not a number for each",
            )
            for nats in (math.nan, -math.inf, math.inf, -1e300)
        ),
        (None, "JSONDecodeError: "),
    ],
)
def test_an_answer_that_is_not_what_was_asked_is_one_line(stand: Stand, choices: Any, came: str) -> None:
    stand.body = b"<html>gateway</html>" if choices is None else json.dumps({"choices": choices}).encode()
    rule = (
        r"^the vLLM server at \S+ must answer v1/completions with 2 replies of 1 to 3 token ids < 100 with log-probs, "
    )
    with pytest.raises(UserError, match=f"{rule}got {came}.*; generation.vllm.host and port must be vLLM's, of a ver"):
        asked(stand).complete([5], SAMPLING, 100)


def test_an_answer_as_it_was_asked_is_taken(stand: Stand) -> None:
    stand.body = json.dumps({"choices": [REPLY, REPLY]}).encode()
    assert [(each.ids, each.logprobs) for each in asked(stand).complete([5], SAMPLING, 100)] == [
        ([7, 99], [-1.0, -2.0])
    ] * 2


def test_settings_that_are_none_are_one_line(stand: Stand) -> None:
    stand.body = b"<html>gateway</html>"
    with pytest.raises(
        UserError, match=r"^the vLLM server at \S+ must answer server_info\S* with its settings, got JSON"
    ):
        asked(stand).served()


def test_a_request_is_waited_for_as_long_as_the_key_says_and_asked_once(stand: Stand) -> None:
    stand.answers.clear()
    rule = (
        r"^the vLLM server at \S+ has not answered sleep\S* in 0.2 s \(generation.vllm.request_timeout_s\): see its log"
    )
    with pytest.raises(UserError, match=rule):
        asked(stand, request_timeout_s=0.2).sleep()
    assert stand.asked == 1


def test_a_health_that_is_elsewhere_without_end_is_one_line(stand: Stand) -> None:
    stand.redirects = True
    with pytest.raises(ConfigError, match=r"^generation.vllm.host and port .* where none answered in 0 s"):
        asked(stand).connect()


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_request_has_a_time(value: float) -> None:
    with pytest.raises(ConfigError, match=r"^generation.vllm.request_timeout_s must be > 0, and .* at the most, got "):
        VLLMConfig(request_timeout_s=value)


@pytest.mark.parametrize("host", ["a..b", ".x", "a" * 64, "."])
def test_a_host_has_no_empty_label_and_none_too_long(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^generation.vllm.host must be a machine's name or IPv4 address"):
        VLLMConfig(host=host, folder="x")
    assert VLLMConfig(host="gpu-7.rack_1.example.", folder="x").host
