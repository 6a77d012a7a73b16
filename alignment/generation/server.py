"""A vLLM server as it is asked over HTTP; nothing of vLLM's needs to be installed beside this package for it."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import requests
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util import Retry

from alignment.config.errors import ConfigError, UserError
from alignment.config.generation import VLLMConfig
from alignment.generation.launched import LaunchedVLLM
from alignment.terminal import say

AT_ONCE = 256  # connections that are kept open


class Again(Retry):
    """But for a request that has waited its time: it would wait as long once more, and be computed twice."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: BaseHTTPResponse | None = None,
        error: Exception | None = None,
        *rest: Any,
        **more: Any,
    ) -> Self:
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, *rest, **more)


KEPT_TOO_LONG = Again(total=1, connect=0, read=1, allowed_methods=None)
"""A connection that has been idle is closed by the server, vLLM's after 5 seconds, which may be just when the next
request is on its way: that one is sent again on a new connection, whatever it asks."""
PAUSE_S, ANSWERS_S = 0.5, 10.0  # between two looks whether it is up, and how long one waits
DEV_MODE = "VLLM_SERVER_DEV_MODE=1 in its environment"
PROCESSED = "processed_logprobs"
INFO = "server_info?config_format=json"
AGAIN = "the run goes on from its last checkpoint by the same command"
NOT_VLLMS = (requests.JSONDecodeError, LookupError, TypeError, AttributeError)  # to read such an answer
MADE_FOR = "vLLM's, of a version whose /v1/completions has return_token_ids"
MOST_NATS = 1e30  # far from what float32 takes
FROM_FILES = {"load_config": {"load_format": "auto"}}


class ServerError(UserError):
    """The server is gone, or refuses what is asked of it."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A reply as the server gives it."""

    ids: list[int]
    logprobs: list[float]
    """[t] nats, of each token when it was drawn: of the model's own distribution or of the one that temperature, top_k
    and top_p make of it, as the server's `--logprobs-mode` says."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the server says of its model."""

    longest: int
    """Tokens of a prompt and its reply together."""
    on_cpu: bool
    is_untied: bool
    """Its head was told to be another than its embeddings: `--hf-overrides '{"tie_word_embeddings": false}'`."""
    logprobs_mode: str
    start: str
    """Names this start of the server: its next one has another."""


class Server:
    """Raises, wherever it is asked:
    ServerError: it does not answer, or answers with an error; names the server.
    """

    def __init__(self, config: VLLMConfig) -> None:
        self.at = config.at()
        self._url, self._timeout_s = f"http://{self.at}", config.timeout_s
        self._request_timeout_s = config.request_timeout_s
        self._own = config if isinstance(config, LaunchedVLLM) else None
        self._session = requests.Session()
        self._session.trust_env = False  # else a proxy is asked for it, were it on this very machine
        if key := os.environ.get("VLLM_API_KEY"):  # which a server that the run starts demands, for it has it too
            self._session.headers["Authorization"] = f"Bearer {key}"
        self._session.mount("http://", HTTPAdapter(pool_maxsize=AT_ONCE, max_retries=KEPT_TOO_LONG))
        self.name = ""

    def connect(self) -> ServedModel:
        """Waits until it is up, at most `generation.vllm.timeout_s`.

        Raises:
            ConfigError: there is none, or it was started without what pushing weights needs.
            ServerError: the run has started it, and it has ended.
        """
        rule = "generation.vllm.host and port must be a vLLM server's"
        self._wait(rule)
        if self._answer("GET", INFO, None).status_code != 200:
            raise ConfigError(f"{rule} that was started with {DEV_MODE}, without which it takes no weights: {self.at}")
        try:
            self.name = str(self._ask("GET", "v1/models", None)["data"][0]["id"])
            served = self._served()
        except NOT_VLLMS as error:
            raise ConfigError(f"{rule}, got {self.at!r}, which answers as none of vLLM's does") from error
        if self._own is not None and self._own.name not in ("", self.name):
            free = "generation.vllm.port must be free for the server that the run starts (null: one that is)"
            raise ConfigError(f"{free}, got that of {self.at!r}, where another server listens")
        if self._own is not None:  # it began without weights, and reads none in that format
            self._post("collective_rpc", {"method": "update_config", "kwargs": {"overrides": FROM_FILES}})
        return served

    def served(self) -> ServedModel:
        """As it is now, for a server that is started apart may have been started again."""
        try:
            return self._served()
        except NOT_VLLMS as error:
            raise self._other(INFO, "its settings", f"{type(error).__name__}: {error}") from error

    def _served(self) -> ServedModel:
        settings = self._ask("GET", INFO, None)["vllm_config"]
        model = settings["model_config"]
        return ServedModel(
            longest=model["max_model_len"],
            on_cpu=settings["device_config"]["device"] == "cpu",
            is_untied=model["hf_overrides"].get("tie_word_embeddings") is False,
            logprobs_mode=model["logprobs_mode"],
            start=settings["instance_id"],
        )

    def complete(self, prompt: list[int], sampling: dict[str, Any], vocabulary: int) -> list[Completion]:
        """`sampling`: the fields of a request to /v1/completions; as many replies as its `n` says, each of 1 to
        `max_tokens` tokens of a vocabulary of so many.

        Raises:
            ServerError: the answer is anything else.
        """
        route = "v1/completions"
        asked = {"model": self.name, "prompt": [prompt], "logprobs": 0, "return_token_ids": True, **sampling}
        wanted = f"{sampling['n']} replies of 1 to {sampling['max_tokens']} token ids < {vocabulary} with log-probs"
        try:
            choices = self._post(route, asked)["choices"]
            completions = [Completion(each["token_ids"], each["logprobs"]["token_logprobs"]) for each in choices]
            lengths = [len(each.ids) for each in completions]
            is_full = all(len(each.logprobs) == len(each.ids) for each in completions)
            is_known = all(type(token) is int and 0 <= token < vocabulary for each in completions for token in each.ids)
            every = [nats for each in completions for nats in each.logprobs]
            is_number = all(isinstance(nats, float | int) and abs(nats) < MOST_NATS for nats in every)
        except NOT_VLLMS as error:
            raise self._other(route, wanted, f"{type(error).__name__}: {error}") from error
        if len(completions) != sampling["n"] or not all(0 < each <= sampling["max_tokens"] for each in lengths):
            raise self._other(route, wanted, f"{len(completions)} replies, of {lengths} tokens")
        if not is_known:
            strange = [token for each in completions for token in each.ids if token not in range(vocabulary)]
            raise self._other(route, wanted, f"the tokens {strange[:5]}")
        if not is_full or not is_number:
            raise self._other(route, wanted, "log-probs that are not a number for each token")
        return completions

    def load(self, folder: Path) -> None:
        """Take the weights of a folder in Hugging Face form that the server can read, and forget what it has cached of
        the old ones."""
        self._post("collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        self.forget()

    def forget(self) -> None:
        """Keys and values that the weights of before have made."""
        self._post("reset_prefix_cache", None)

    def sleep(self) -> None:
        """Its weights go to the machine's memory, and its keys and values are forgotten."""
        self._post("sleep?level=1", None)

    def wake_up(self) -> None:
        self._post("wake_up", None)

    def _wait(self, rule: str) -> None:
        begun = time.monotonic()
        deadline, waits = begun + self._timeout_s, f"in {self._timeout_s:g} s (generation.vllm.timeout_s)"
        while not self._is_up():
            if self._own is not None and self._own.has_ended():
                raise ServerError(f"the vLLM server that the run started has ended: {self._own.why()}")
            if time.monotonic() >= deadline and self._own is not None:
                raise ServerError(f"the vLLM server that the run started is not up {waits}: {self._own.why()}")
            if time.monotonic() >= deadline:
                where = f"{self.at!r}, where none answered {waits}"
                raise ConfigError(f"{rule}, got {where}; start one: vllm serve FOLDER, with {DEV_MODE}")
            time.sleep(PAUSE_S)
        if self._own is not None and time.monotonic() > begun + PAUSE_S:
            say(f"vLLM: the server is up, waited for {time.monotonic() - begun:.0f} s")

    def _is_up(self) -> bool:
        try:
            return self._session.get(f"{self._url}/health", timeout=ANSWERS_S).status_code == 200
        except (requests.RequestException, HTTPError):  # urllib3's where the host is no name at all
            return False

    def _post(self, route: str, content: dict[str, Any] | None) -> Any:
        return self._ask("POST", route, content)

    def _answer(self, method: str, route: str, content: dict[str, Any] | None) -> requests.Response:
        try:
            return self._session.request(method, f"{self._url}/{route}", json=content, timeout=self._request_timeout_s)
        except requests.Timeout as error:
            waited = f"has not answered {route} in {self._request_timeout_s:g} s (generation.vllm.request_timeout_s)"
            way = f"give it longer, or start it again where it hangs; {AGAIN}"
            if self._own is not None:
                raise ServerError(f"the vLLM server that the run started {waited}: {self._own.why()}; {way}") from error
            raise ServerError(f"the vLLM server at {self.at} {waited}: see its log; {way}") from error
        except requests.RequestException as error:
            what = f"the vLLM server at {self.at} does not answer any more ({type(error).__name__})"
            if self._own is not None:
                what = "the vLLM server that the run started does not answer any more"
                raise ServerError(f"{what}: {self._own.why()}; {AGAIN}") from error
            raise ServerError(f"{what}: start it again; {AGAIN}") from error

    def _other(self, route: str, wanted: str, came: str) -> ServerError:
        what = f"the vLLM server at {self.at} must answer {route} with {wanted}, got {' '.join(came.split())[:200]}"
        return ServerError(f"{what}; generation.vllm.host and port must be {MADE_FOR}")

    def _ask(self, method: str, route: str, content: dict[str, Any] | None) -> Any:
        answer = self._answer(method, route, content)
        if answer.status_code >= 500 and self._own is not None:  # its engine may have died behind it
            what = f"the vLLM server that the run started failed at {route} (status {answer.status_code})"
            raise ServerError(f"{what}: {self._own.why()}; {AGAIN}")
        if answer.status_code != 200:
            said = " ".join(answer.text.split())[:300]
            raise ServerError(f"the vLLM server at {self.at} refused {route} with status {answer.status_code}: {said}")
        return answer.json() if answer.content else None
