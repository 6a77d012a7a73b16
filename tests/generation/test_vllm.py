"""A vLLM server that is made up here: it answers over HTTP what a real one would, in this process."""

import json
import os
import platform
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl.generation.vllm_client import VLLMClient

import alignment
from alignment.config.distributed import DistributedConfig
from alignment.config.errors import ConfigError, UserError
from alignment.config.generation import Generation, GenerationConfig, VLLMConfig, VLLMTransfer, require_gpu
from alignment.config.model import LoraConfig, ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.generation import server
from alignment.generation.launched import LaunchedVLLM
from alignment.generation.server import Server
from alignment.generation.transfer import NCCLTransfer, nccl_transfer
from alignment.generation.vllm import VLLMGenerator, build_vllm
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model

PROMPTS = [np.arange(5, 5 + n, dtype=np.int32) for n in (3, 1, 2)]
EOS, OTHER_END = 2, 9
ANSWERS = {
    (5, 6, 7): [[20, 21, EOS], [20, 21, 22]],  # ended, cut
    (5,): [[6, 7, 8], [OTHER_END]],  # by the stop string '"#', by the model's own end
    (5, 6): [[30, 31], [33, EOS]],
}


class StandIn(ThreadingHTTPServer):
    """What is asked of it is kept; weights are read when they are told, as a server does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.log: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.weights: dict[str, Tensor] = {}
        self.overrides: dict[str, Any] = {}
        self.dev_mode, self.longest, self.logprobs_mode, self.refuses = True, 512, "raw_logprobs", ""
        self.device, self.start = "cuda", "one"
        self.key, self.loaded = "", ""

    def said(self, route: str, content: Any) -> Any:
        """The answer, or None for one that the route has not."""
        if route == "health":
            return {}
        if route == "v1/models":
            return {"data": [{"id": "policy"}]}
        if route == "server_info" and self.dev_mode:
            model = {"max_model_len": self.longest, "hf_overrides": self.overrides, "logprobs_mode": self.logprobs_mode}
            settings = {"model_config": model, "device_config": {"device": self.device}, "instance_id": self.start}
            return {"vllm_config": settings}
        if route == "collective_rpc":
            assert content["method"] == "reload_weights"
            self.loaded = content["kwargs"]["weights_path"]
            self.weights = {}
            for file in Path(self.loaded).glob("*.safetensors"):
                self.weights |= load_file(file)
            return {"results": [None]}
        if route in ("reset_prefix_cache", "sleep", "wake_up"):
            return {}
        if route == "v1/completions":
            self.requests.append(content)
            assert self.log.count("wake_up") == self.log.count("sleep")
            (prompt,) = content["prompt"]
            replies = ANSWERS[tuple(prompt)]
            assert content["n"] == len(replies) and content["logprobs"] == 0
            logprobs = [{"token_logprobs": [-0.1 * token for token in ids]} for ids in replies]
            pairs = zip(replies, logprobs, strict=True)
            return {"choices": [{"token_ids": ids, "logprobs": given} for ids, given in pairs]}
        return None


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def answer(self, content: Any) -> None:
        route = self.path.removeprefix("/").partition("?")[0]
        given = self.headers.get("Authorization", "")
        if route.startswith("v1/") and self.server.key and given != f"Bearer {self.server.key}":
            self.send_error(401)
            return
        if route not in ("health", "server_info", "v1/models"):
            self.server.log.append(route)
        said = self.server.said(route, content)
        refused = bool(self.server.refuses) and route == self.server.refuses
        body = b"weights of\nanother model" if refused else json.dumps(said).encode()
        self.send_response(400 if refused else 404 if said is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.answer(json.loads(body) if body else None)

    def log_message(self, format: str, *words: Any) -> None: ...


@pytest.fixture
def served() -> Iterator[StandIn]:
    server = StandIn()
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def model(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    torch.manual_seed(0)
    model = load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    config: Any = model.hf.generation_config
    config.eos_token_id = [EOS, OTHER_END]
    return model


def asking(served: StandIn, **settings: Any) -> GenerationConfig:
    vllm = VLLMConfig(host="127.0.0.1", port=served.server_port, timeout_s=0)
    return GenerationConfig(max_new_tokens=3, engine=Generation.vllm, vllm=vllm, **settings)


def built(model: LanguageModel, tokenizer: PreTrainedTokenizerBase, served: StandIn, **settings: Any) -> VLLMGenerator:
    return build_vllm(model, tokenizer, asking(served, **settings), DistributedConfig())


def drawn(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, served: StandIn, seed: int = 0, **settings: Any
) -> Any:
    generator = built(model, tokenizer, served, **settings)
    return generator.generate(PROMPTS, keys=[4, 5, 6], replies=2, seed=seed)


def test_answers_become_replies_in_the_order_of_the_prompts(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, served: StandIn
) -> None:
    generated = drawn(model, tokenizer, served, stop=['"#'])
    ids = [[reply.ids.tolist() for reply in row] for row in generated.replies]
    assert ids == [ANSWERS[tuple(prompt.tolist())] for prompt in PROMPTS]
    assert [[reply.finished for reply in row] for row in generated.replies] == [
        [True, False],
        [True, True],
        [False, True],
    ]
    assert generated.replies[1][0].text == "!"
    assert generated.replies[0][0].text == tokenizer.decode([20, 21]).strip()
    assert generated.replies[0][0].ids.dtype == np.int32
    assert generated.computed == 3 + 3 + 3 + 1 + 2 + 2


@pytest.mark.parametrize(
    ("mode", "settings", "is_known"),
    [
        ("raw_logprobs", {}, True),
        ("raw_logprobs", {"temperature": 0.7}, False),
        ("processed_logprobs", {"temperature": 0.7}, True),
        ("processed_logprobs", {"top_k": 5}, False),
        ("processed_logprobs", {"top_p": 0.5}, False),
        ("raw_logprobs", {"min_new_tokens": 2}, False),
    ],
)
def test_the_servers_log_probs_are_kept_where_they_are_of_the_trainers_distribution(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    served: StandIn,
    mode: str,
    settings: dict[str, Any],
    is_known: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served.logprobs_mode = mode
    replies = [reply for row in drawn(model, tokenizer, served, **settings).replies for reply in row]
    assert ("generation/mismatch is left out" in capsys.readouterr().out) == (not is_known)
    for reply in replies:
        if is_known:
            np.testing.assert_allclose(reply.drawn_logprobs, -0.1 * reply.ids, rtol=1e-6)
        else:
            assert reply.drawn_logprobs is None


def test_weights_of_tokens_need_the_log_probs_of_their_draws(
    served: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"engine": "vllm", "temperature": 0.7, "vllm": {"host": "127.0.0.1", "port": served.server_port}}
    rule = r"^ppo.importance_clip needs .* --logprobs-mode processed_logprobs where generation.temperature .* got 0.7$"
    with pytest.raises(ConfigError, match=rule):
        alignment.run("tiny_ppo", generation=asked, ppo={"importance_clip": 2.0}, output_dir="run")
    assert not served.log


def test_every_setting_reaches_the_server(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, served: StandIn
) -> None:
    drawn(model, tokenizer, served, temperature=0.7, top_k=5, top_p=0.9, stop=["x", "y"])
    wanted = {
        "n": 2,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": 3,
        "min_tokens": 0,
        "stop": ["x", "y"],
        "stop_token_ids": [EOS, OTHER_END],
        "return_token_ids": True,
    }
    assert len(served.requests) == 3
    for request in served.requests:
        assert {name: request[name] for name in wanted} == wanted
    served.requests.clear()
    drawn(model, tokenizer, served, min_new_tokens=2)
    assert all(request["min_tokens"] == 2 and "stop" not in request for request in served.requests)


def test_each_prompt_has_a_seed_of_its_own(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, served: StandIn
) -> None:
    def seeds(seed: int) -> dict[int, int]:
        served.requests.clear()
        drawn(model, tokenizer, served, seed)
        return {len(request["prompt"][0]): request["seed"] for request in served.requests}

    assert seeds(1) == seeds(1)
    everything = [*seeds(1).values(), *seeds(2).values()]
    assert len(set(everything)) == 6 and all(0 <= seed < 2**62 for seed in everything)


def moved(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, rank: int) -> LanguageModel:
    torch.manual_seed(0)
    model = load_language_model(ModelConfig(init=tiny_init, lora=LoraConfig(rank=rank)), tokenizer, WHOLE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def require_same(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, weights: dict[str, Tensor], model: LanguageModel
) -> None:
    """Loaded into a model without an adapter they make the same logits."""
    there = load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    tied = {} if "lm_head.weight" in weights else {"lm_head.weight": weights["model.embed_tokens.weight"]}
    assert there.hf.load_state_dict({**weights, **tied}, strict=True)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(there.hf(input_ids=ids).logits, model.hf(input_ids=ids).logits)


@pytest.mark.parametrize("rank", [0, 4])
def test_the_weights_are_pushed_before_the_first_rollout(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, served: StandIn, tmp_path: Path, rank: int
) -> None:
    """As files under the names of a model without an adapter, which are gone afterwards."""
    model = moved(tiny_init, tokenizer, rank)
    generator = built(model, tokenizer, served)
    generator.generate(PROMPTS, keys=[4, 5, 6], replies=2, seed=0)
    assert served.log == ["collective_rpc", "reset_prefix_cache", *["v1/completions"] * 3]
    require_same(tiny_init, tokenizer, served.weights, model)
    vllm = VLLMConfig(host="127.0.0.1", port=served.server_port, folder=str(tmp_path))
    there = build_vllm(model, tokenizer, GenerationConfig(engine=Generation.vllm, vllm=vllm), DistributedConfig())
    there.transfer.push(model)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_has_left_is_removed_and_nothing_else(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, served: StandIn, tmp_path: Path
) -> None:
    """Of a run that lives, of another machine, and of somebody else: another name."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine, pids = platform.node(), {"dead": ended.pid, "alive": os.getpid()}
    names = {name: f"weights-{mine}-{pid}-x" for name, pid in pids.items()}
    names |= {"elsewhere": f"weights-{mine}2-{ended.pid}-x", "beside": f"weights-{mine}-2-{ended.pid}-x"}
    names |= {"other": "weights-x", "no number": f"weights-{mine}-a-x"}
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("")
    vllm = VLLMConfig(host="127.0.0.1", port=served.server_port, folder=str(tmp_path))
    config = GenerationConfig(engine=Generation.vllm, vllm=vllm)
    build_vllm(moved(tiny_init, tokenizer, 0), tokenizer, config, DistributedConfig())
    assert {path.name for path in tmp_path.iterdir()} == set(names.values()) - {names["dead"]}


def test_a_server_with_a_head_of_its_own_is_given_one(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, served: StandIn
) -> None:
    """On a CPU vLLM packs a tied head once, at its start, and would go on with it."""
    model, served.device = moved({**tiny_init, "tie_word_embeddings": True}, tokenizer, 0), "cpu"
    with pytest.raises(
        ConfigError, match=r"a CPU keeps a head that is tied .*start it with --hf-overrides '\{\"tie_word"
    ):
        built(model, tokenizer, served)
    served.overrides = {"tie_word_embeddings": False}
    built(model, tokenizer, served).transfer.push(model)
    assert torch.equal(served.weights["lm_head.weight"], served.weights["model.embed_tokens.weight"])


class Client(VLLMClient):
    """trl's with its wire cut."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.log: list[str] = []

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, Tensor]]
    ) -> None:
        self.log.append("weights")
        for (name, dtype, shape), (sent, tensor) in zip(metadata, named_params, strict=True):
            assert (sent, str(tensor.dtype), list(tensor.shape)) == (name, f"torch.{dtype}", shape)
            self.weights[name] = tensor

    def reset_prefix_cache(self) -> None:
        self.log.append("reset")


@pytest.mark.parametrize("rank", [0, 4])
def test_the_weights_go_through_trls_client(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None over the CPU's memory."""
    model, client = moved(tiny_init, tokenizer, rank), Client()
    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "cpu", None, raising=False)
        NCCLTransfer(client, torch.device("cpu")).push(model)
    assert client.log == ["weights", "reset"]
    require_same(tiny_init, tokenizer, client.weights, model)


def test_no_server_one_that_takes_no_weights_and_one_that_refuses_them_are_one_line_each(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, served: StandIn
) -> None:
    generator = built(model, tokenizer, served)
    served.refuses = "collective_rpc"
    at = f"127.0.0.1:{served.server_port}"
    with pytest.raises(UserError, match=f"^the vLLM server at {at} refused collective_rpc .* 400: weights of an"):
        generator.generate(PROMPTS, keys=[0, 1, 2], replies=2, seed=0)
    served.refuses = ""
    long = [np.arange(510, dtype=np.int32)]
    with pytest.raises(UserError, match=r"^prompts and generation.max_new_tokens .* 512 tokens, got 513: .*len 513$"):
        generator.generate(long, keys=[0], replies=2, seed=0)
    served.dev_mode = False
    with pytest.raises(ConfigError, match=f"^generation.vllm.host and port .* VLLM_SERVER_DEV_MODE=1 .* {at}$"):
        built(model, tokenizer, served)
    nowhere = GenerationConfig(engine=Generation.vllm, vllm=VLLMConfig(port=1, timeout_s=0))
    with pytest.raises(ConfigError, match=r"^generation.vllm.host and port .* got 'localhost:1', where none answered"):
        build_vllm(model, tokenizer, nowhere, DistributedConfig())


def test_what_takes_connections_and_says_nothing_is_not_waited_for_without_end(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ANSWERS_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        vllm = VLLMConfig(host="127.0.0.1", port=mute.getsockname()[1], timeout_s=0)
        config = GenerationConfig(engine=Generation.vllm, vllm=vllm)
        with pytest.raises(ConfigError, match=r"^generation.vllm.host and port .* where none answered in 0 s"):
            build_vllm(model, tokenizer, config, DistributedConfig())


@pytest.mark.parametrize(
    ("route", "answer"),
    [
        ("v1/models", {"object": "list"}),
        ("v1/models", {"data": []}),
        ("server_info", {"vllm_config": "VllmConfig(...)"}),
        ("server_info", {"tp_size": 1}),
    ],
)
def test_a_server_of_another_kind_is_one_line(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    served: StandIn,
    route: str,
    answer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = served.said
    monkeypatch.setattr(served, "said", lambda asked, content: answer if asked == route else plain(asked, content))
    with pytest.raises(ConfigError, match=r"^generation.vllm.host and port .* which answers as none of vLLM's does"):
        built(model, tokenizer, served)


def test_a_server_that_wants_a_key_is_given_that_of_the_environment(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, served: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.key = "open"
    with pytest.raises(UserError, match=r"^the vLLM server at .* refused v1/models with status 401: "):
        built(model, tokenizer, served)
    monkeypatch.setenv("VLLM_API_KEY", "open")
    assert drawn(model, tokenizer, served, stop=['"#']).computed == 14


def test_a_proxy_is_not_asked_for_it(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, served: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert drawn(model, tokenizer, served, stop=['"#']).computed == 14


def test_another_server_at_the_port_of_the_runs_own_is_told_from_it(served: StandIn) -> None:
    """Before anything is asked of it: it may be another run's, and would have its weights taken away."""
    settings: dict[str, Any] = {"host": "127.0.0.1", "port": served.server_port, "timeout_s": 0.0}
    with pytest.raises(ConfigError, match=r"^generation.vllm.port must be free .* got that of '127.0.0.1:\d+', where"):
        Server(LaunchedVLLM(**settings, name="policy-1")).connect()
    assert not served.log


def test_a_folder_is_named_from_the_root_and_one_without_room_is_one_line(
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    served: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For the server may run elsewhere; and what was written is taken away again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared").mkdir()
    vllm = VLLMConfig(host="127.0.0.1", port=served.server_port, folder="shared")
    model = moved(tiny_init, tokenizer, 0)
    generator = build_vllm(model, tokenizer, GenerationConfig(engine=Generation.vllm, vllm=vllm), DistributedConfig())
    generator.transfer.push(model)
    assert served.loaded.startswith(str(tmp_path / "shared" / "weights-"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # bytes of a file
    try:
        with pytest.raises(
            UserError, match=r"^generation.vllm.folder must be a folder with room .* got '/.*shared' \("
        ):
            generator.transfer.push(model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "shared").iterdir())


def test_a_server_that_is_gone_is_one_line(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = StandIn()
    thread = Thread(target=server.serve_forever)
    thread.start()
    generator = built(model, tokenizer, server)
    server.shutdown()
    thread.join()
    server.server_close()
    with pytest.raises(UserError, match=r"does not answer any more .*start it again; the run goes on from its last"):
        generator.generate(PROMPTS, keys=[0, 1, 2], replies=2, seed=0)


def test_no_gpu_no_package_no_group_are_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    nccl = VLLMTransfer.nccl
    with pytest.raises(ConfigError, match=r"^generation.vllm.transfer=nccl needs distributed.device=cuda, got 'cpu'; "):
        nccl_transfer(VLLMConfig(transfer=nccl), torch.device("cpu"))

    def fails(error: Exception) -> Any:
        def start(self: VLLMClient, **settings: Any) -> None:
            assert settings == {"host": "h", "server_port": 1, "group_port": 2, "connection_timeout": 3.0}
            raise error

        return start

    config = VLLMConfig(host="h", port=1, group_port=2, timeout_s=3.0, transfer=nccl)
    for error, message in (
        (
            ImportError("vLLM is not installed."),
            r"^generation.vllm.transfer=nccl needs the extra `vllm`: pip .*not",
        ),
        (OSError("refused"), r"^generation.vllm.host and port must be a vLLM server's, got 'h:1' \(refused\)$"),
        (
            RuntimeError("no weight-transfer engine"),
            r"^generation.vllm.host and port .* \(no weight-transfer engine\)$",
        ),
    ):
        monkeypatch.setattr(VLLMClient, "__init__", fails(error))
        with pytest.raises(ConfigError, match=message):
            nccl_transfer(config, torch.device("cuda"))


def test_what_the_server_cannot_do_alike_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^generation.min_new_tokens must be 0 with generation.stop under vLLM"):
        GenerationConfig(engine=Generation.vllm, min_new_tokens=1, stop=["x"])
    with pytest.raises(ConfigError, match=r"^generation.vllm needs generation.engine=vllm"):
        GenerationConfig(vllm=VLLMConfig(port=1))
    with pytest.raises(ConfigError, match=r"^generation.vllm.folder must be a folder that both machines share"):
        VLLMConfig(host="gpu7")
    with pytest.raises(ConfigError, match=r"^generation.vllm.folder goes with transfer=files"):
        VLLMConfig(transfer=VLLMTransfer.nccl, folder="x")
    with pytest.raises(ConfigError, match=r"^generation.vllm.group_port goes with transfer=nccl"):
        VLLMConfig(group_port=3)
    for host in ("http://gpu7", "gpu7:8000", "::1", ""):
        with pytest.raises(ConfigError, match=r"^generation.vllm.host must be a machine's name or IPv4 address"):
            VLLMConfig(host=host, folder="x")


def test_a_server_that_sleeps_is_awake_for_a_rollout_alone(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, served: StandIn
) -> None:
    """From the start on: awake before the weights come, and asleep again when the last reply is there. It keeps the
    weights while it sleeps."""
    vllm = VLLMConfig(host="127.0.0.1", port=served.server_port, timeout_s=0, sleep=True)
    config = GenerationConfig(max_new_tokens=3, engine=Generation.vllm, vllm=vllm, stop=['"#'])
    generator = build_vllm(model, tokenizer, config, DistributedConfig())
    for _ in range(2):
        generator.generate(PROMPTS, keys=[0, 1, 2], replies=2, seed=0)
    model.changed()
    generator.generate(PROMPTS, keys=[0, 1, 2], replies=2, seed=0)
    replies = [*["v1/completions"] * 3, "sleep"]
    awake = ["wake_up", "collective_rpc", "reset_prefix_cache", *replies]
    assert served.log == ["sleep", *awake, "wake_up", *replies, *awake]


def test_a_server_that_sleeps_is_for_a_gpu() -> None:
    asleep = GenerationConfig(engine=Generation.vllm, vllm=VLLMConfig(sleep=True))
    require_gpu(asleep, "cuda")
    with pytest.raises(ConfigError, match=r"^generation\.vllm\.sleep needs distributed\.device=cuda, .* got 'cpu'$"):
        require_gpu(asleep, "cpu")


@pytest.mark.parametrize("closes", [1, 2])
def test_what_a_server_has_closed_meanwhile_is_asked_once_more(
    closes: int, served: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM closes a connection that is idle for 5 seconds, which the next request may cross on its way."""
    answer = Handler.do_POST
    closed: list[str] = []

    def do_post(handler: Handler) -> None:
        if len(closed) < closes:
            closed.append(handler.path)
            handler.close_connection = True
        else:
            answer(handler)

    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1")
    monkeypatch.setattr(Handler, "do_POST", do_post)
    asked = Server(asking(served).vllm)
    asked.connect()
    if closes == 1:
        asked.sleep()
        assert closed == ["/sleep?level=1"] and served.log == ["sleep"]
    else:
        with pytest.raises(UserError, match=r"does not answer any more \(ConnectionError\): start it again; the run"):
            asked.sleep()
