"""A reward model reads a reply as its training laid it out, in its own tokens and template, whoever the policy is."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alignment.check.reward_model import trained_ids
from alignment.config.batch import BatchConfig
from alignment.config.data import DataConfig, ExampleKind, Template, TrainSource
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.errors import ConfigError
from alignment.config.model import ModelConfig
from alignment.data.chat import ensure_template
from alignment.data.ends import end_of_turn
from alignment.data.load import load_split
from alignment.data.records import Message, Record, Source, assistant
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.generation.dialogue import Reader
from alignment.generation.generate import Reply, end_ids, reply_of
from alignment.generation.samples import Samples
from alignment.generation.score import reward_model_scorer
from alignment.models.load import load_scalar_model, save_model
from alignment.models.tokenizer import load_tokenizer, prepare_tokenizer

Family = Callable[[str], PreTrainedTokenizerBase]
ON_CPU = DistributedConfig(device=Device.cpu)
FAMILIES = ["llama2", "llama3", "qwen", "qwen3", "gemma", "phi3", "mistral", "zephyr", "plain"]
ENDS = {  # what stands behind a reply in training, whatever token a policy ended it with
    "llama2": " </s>",
    "llama3": "<|eot_id|>",
    "qwen": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "gemma": "<end_of_turn>\n<eos>",
    "phi3": "<|end|>\n<|endoftext|>",
    "mistral": "</s>",
    "zephyr": "</s>",
    "plain": "</s>",
}
OPENS = {"llama2": " ", "qwen3": "<think>\n\n</think>\n\n", "mistral": " ", "plain": " "}
KEEPS = {"qwen", "qwen3", "phi3", "zephyr"}  # the space around a turn; the others trim it
TURNS: list[list[Message]] = [
    [{"role": "user", "content": "hello"}],
    [
        {"role": "user", "content": "how are you?"},
        {"role": "assistant", "content": "fine."},
        {"role": "user", "content": "hello there"},
    ],
]
NOBODY_S = np.array([5, 4, 3], dtype=np.int32)  # tokens of the policy: no judge looks at them


def drawn(*replies: tuple[str, bool], turns: list[list[Message]] = TURNS, **more: Any) -> Samples:
    """(text, finished) of each reply, to each of the prompts alike."""
    at = [Source("prompts.jsonl", line) for line in range(1, len(turns) + 1)]
    records = [Record(prompt, (), None, source, **more) for prompt, source in zip(turns, at, strict=True)]
    ends = tuple(finished for _, finished in replies)
    examples = [Example(NOBODY_S, (NOBODY_S,) * len(replies), None, source, ends) for source in at]
    return Samples(records, examples, [[Reply(NOBODY_S, end, text) for text, end in replies] for _ in records])


def tokenizer_of(name: str, family: Family) -> PreTrainedTokenizerBase:
    """A family's; `plain` has no template of its own."""
    if name != "plain":
        tokenizer = family(name)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer
    tokenizer = load_tokenizer(ModelConfig(init={"model_type": "llama"}))
    tokenizer.chat_template = None
    assert ensure_template(tokenizer) is not None
    return tokenizer


@pytest.fixture(scope="module")
def judge(family: Family, tiny_init: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random reward model with the tokenizer and the template of a family."""

    def folder(name: str) -> Path:
        path: Path = tmp_path_factory.mktemp("judges") / name
        own = tokenizer_of(name, family)
        torch.manual_seed(0)
        save_model(load_scalar_model(ModelConfig(init={**tiny_init, "vocab_size": len(own)}), own, WHOLE), own, path)
        return path

    return folder


def trained_on(folder: Path, pairs: list[dict[str, Any]], tmp_path: Path) -> list[Example]:
    """The examples that the task `reward` makes of these pairs with that model's tokenizer."""
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    data = DataConfig(train=TrainSource(path=str(tmp_path / "pairs.jsonl")))
    loaded = load_split("train", data, prepare_tokenizer(ModelConfig(path=str(folder))), ExampleKind.pairs)
    assert loaded is not None
    return loaded.examples


@torch.no_grad()
def plain_score(folder: Path, tokenizer: PreTrainedTokenizerBase, prompt: str, reply: str) -> float:
    """transformers alone, in float64: the head at the last token. No token spans the reply's beginning."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    texts = (prompt, prompt + reply, reply)
    before, joint, alone = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    ids = joint if joint[: len(before)] == before else before + alone
    return float(model.score(model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reply_is_scored_as_the_reward_model_was_trained(
    judge: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    """Token for token what training makes of the same dialogue, and in number what transformers makes of its text."""
    folder = judge(name)
    scorer = reward_model_scorer(str(folder), BatchConfig(max_tokens=200), ON_CPU)
    tokenizer, (first, second) = scorer.reader.tokenizer, ("fine.", " hello\n\nuser of the ")
    samples = drawn((first, True), (second, True), ("fine. hello", False), ("", True), ("", False))
    read = scorer.reader.examples(samples)
    pairs = [{"prompt": prompt, "chosen": first, "rejected": second} for prompt in TURNS]
    for own, theirs in zip(read, trained_on(folder, pairs, tmp_path), strict=True):
        assert own.prompt_ids.tolist() == theirs.prompt_ids.tolist()
        assert [ids.tolist() for ids in own.completion_ids[:2]] == [ids.tolist() for ids in theirs.completion_ids]
    scores, end, opens = scorer.score(samples), ENDS[name], OPENS.get(name, "")
    inside = second if name in KEEPS else second.strip()
    said = [first + end, inside + end, "fine. hello", end, end]
    for row, prompt in enumerate(TURNS):
        head = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        for column, text in enumerate(said[:3]):
            expected = plain_score(folder, tokenizer, head, opens + text)
            assert scores[row, column].item() == pytest.approx(expected, abs=2e-5)
        assert tokenizer.decode(read[row].completion_ids[3]).strip().endswith(end.strip())  # of an empty reply
        assert scores[row, 3] == scores[row, 4] or not read[row].finished[4]
        assert min(abs(scores[row, 0] - scores[row, column]).item() for column in (1, 2, 3)) > 1e-4


def test_a_policy_s_own_split_of_a_text_has_no_say(judge: Callable[[str], Path]) -> None:
    """Two policies that put the same text together from other tokens have the same score."""
    scorer = reward_model_scorer(str(judge("gemma")), BatchConfig(max_tokens=8192), ON_CPU)
    one = drawn(("hello there", True))
    other = replace(one, examples=[replace(e, completion_ids=(np.arange(9, dtype=np.int32),)) for e in one.examples])
    assert torch.equal(scorer.score(one), scorer.score(other))


def test_a_reply_ended_by_a_stop_string_is_complete(judge: Callable[[str], Path]) -> None:
    """Its text ends before the string, and what is judged ends as a reply in training does."""
    scorer = reward_model_scorer(str(judge("phi3")), BatchConfig(max_tokens=8192), ON_CPU)
    tokenizer = scorer.reader.tokenizer
    ids = np.array(tokenizer("fine. STOP", add_special_tokens=False)["input_ids"], dtype=np.int32)
    reply = reply_of(ids, tokenizer, before=0, by_token=False, by_string=["STOP"])
    assert (reply.text, reply.finished) == ("fine. ", True)
    samples = drawn(("fine. ", True))
    assert torch.equal(scorer.score(replace(samples, replies=[[reply], [reply]])), scorer.score(samples))


@pytest.mark.parametrize("text", ["<think>\nhello\n</think>\n\nfine", "<think>\nhello there"])
def test_a_cut_reply_that_its_template_rewrites(family: Family, text: str) -> None:
    """A template may take the reasoning out of a reply and write it elsewhere: what follows it is the reply's end."""
    tokenizer = family("qwen3")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ message['content'] + '<|im_end|>\n' }}",
        "{{ message['content'].split('</think>')[-1].lstrip() + '<|im_end|>\n' }}",
    )
    (first, _) = Reader(tokenizer, None, "reward.path").examples(drawn((text, False)))
    assert tokenizer.decode(first.completion_ids[0]).endswith(text.split("</think>")[-1].strip())


def test_what_a_template_leaves_out_of_replies_is_said_once(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = family("zephyr")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content'] +", "message['content'].split('</think>')[-1] +"
    )
    reader = Reader(tokenizer, None, "gold_model")
    reader.examples(drawn(("fine.", True)))
    assert capsys.readouterr().out == ""
    samples = drawn(("hello</think>fine.", True), ("fine.", True), ("hello</think>", False))
    for _ in range(2):
        (read, _) = reader.examples(samples)
        assert tokenizer.decode(read.completion_ids[0]) == "fine.</s>"
    line = "gold_model: 4 replies lose a part to its chat template, such as their reasoning; the rest is scored\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize("limit", [None, 60])
def test_a_reply_that_its_template_writes_elsewhere_is_read_behind_its_prompt(
    family: Family, limit: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Nemotron's does: the prompt opens the reasoning, and a reply that closes it is written without the opening.
    What a policy happens to draw ends no run, nor are the replies beside it read otherwise for it."""
    tokenizer = family("qwen3")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{{ '<think></think>' if m['role'] == 'assistant' and '</think>' not in m['content'] }}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{{ '<|im_start|>assistant\n<think>\n' if add_generation_prompt }}"
    )
    long: list[Message] = [{"role": "user", "content": "hello"}, *assistant("fine. " * 9), *TURNS[0]]
    replies = [("hello\n</think>\n\nfine.", True), ("fine.", True), ("hello</think>", False)]
    (read,) = Reader(tokenizer, limit, "reward.path").examples(drawn(*replies, turns=[long]))
    kept = long if limit is None else TURNS[0]
    asked, written = (
        tokenizer.apply_chat_template([*kept, *more], tokenize=False, add_generation_prompt=not more)
        for more in ([], assistant("fine."))
    )
    wholes = [tokenizer.decode([*read.prompt_ids, *ids]) for ids in read.completion_ids]
    assert wholes == [f"{asked}{replies[0][0]}<|im_end|>", written.removesuffix("\n"), f"{asked}{replies[2][0]}"]
    assert ("were cut" in capsys.readouterr().out) == (limit is not None)
    for text, wanted in zip(("hello\n</think>\n\nfine.", "fine."), read.completion_ids, strict=False):
        found = trained_ids(Record(kept, (), None, read.source), text, tokenizer)
        assert found.tolist() == [*read.prompt_ids, *wanted]


def test_a_prompt_without_a_template_is_read_as_it_is(family: Family) -> None:
    tokenizer = family("qwen")
    turns: list[list[Message]] = [[{"role": "user", "content": "Q: hello\nA:"}]]
    (read,) = Reader(tokenizer, None, "reward.path").examples(
        drawn((" fine.", True), (" fine", False), turns=turns, template=Template.none)
    )
    assert tokenizer.decode(read.prompt_ids) == "Q: hello\nA:"
    assert [tokenizer.decode(ids) for ids in read.completion_ids] == [" fine.<|im_end|>", " fine"]


def test_tools_are_read_too(family: Family) -> None:
    tool = {"type": "function", "function": {"name": "hello", "parameters": {"type": "object", "properties": {}}}}
    tokenizer = family("qwen")
    bare, with_tool = (
        Reader(tokenizer, None, "reward.path").examples(drawn(("fine.", True), tools=tools))[0]
        for tools in ((), (tool,))
    )
    assert "# Tools" in tokenizer.decode(with_tool.prompt_ids)
    assert "# Tools" not in tokenizer.decode(bare.prompt_ids)


def test_only_what_the_model_has_no_positions_for_is_cut_and_that_is_said(
    family: Family, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = family("zephyr")
    samples = drawn(("fine.", True), ("hello " * 5, True))
    whole = Reader(tokenizer, None, "reward.path").examples(samples)
    longest = [len(e.prompt_ids) + max(map(len, e.completion_ids)) for e in whole]
    fits = Reader(tokenizer, max(longest), "reward.path").examples(samples)
    assert [e.prompt_ids.tolist() for e in fits] == [e.prompt_ids.tolist() for e in whole]
    assert capsys.readouterr().out == ""
    reader = Reader(tokenizer, max(longest) - 3, "reward.path")
    for _ in range(2):
        read = reader.examples(samples)
        assert len(read[1].prompt_ids) + max(map(len, read[1].completion_ids)) <= max(longest) - 3
        for own, all_of_it in zip(read, whole, strict=True):  # the prompt loses its beginning, no reply its end
            assert [ids.tolist() for ids in own.completion_ids] == [ids.tolist() for ids in all_of_it.completion_ids]
    said = capsys.readouterr().out
    assert said.count("reward.path: 1 texts are longer than the") == 1


def test_a_template_that_refuses_a_prompt_is_found_before_anything_is_drawn(family: Family) -> None:
    turns: list[list[Message]] = [TURNS[0], [{"role": "system", "content": "hello"}, *TURNS[0]]]
    records = drawn(("fine.", True), turns=turns).records
    reader = Reader(family("gemma"), None, "gold_model")
    reader.check(records[:1], family("qwen"))
    rule = r"^gold_model must have a chat template that takes the prompts, got prompts.jsonl:2: .*System role not supp"
    with pytest.raises(ConfigError, match=rule):
        reader.check(records, family("qwen"))
    Reader(family("qwen"), None, "gold_model").check(records, family("gemma"))


def test_a_template_that_leaves_out_what_a_prompt_says_is_found_before_anything_is_drawn(family: Family) -> None:
    """As in the reward model's training, which refuses such rows; what only sets the policy's template may go."""
    system, tool = {"role": "system", "content": "say moo."}, {"type": "function", "function": {"name": "moo"}}
    records = drawn(("fine.", True), turns=[TURNS[0], [system, *TURNS[0]]]).records
    judge = family("zephyr")
    judge.chat_template = judge.chat_template.replace(
        "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
    )
    reader = Reader(judge, None, "gold_model")
    rule = r"^gold_model must have a chat template that takes the prompts, got prompts.jsonl:"
    reader.check([replace(records[0], template_kwargs={"enable_thinking": False})], family("qwen"))
    with pytest.raises(ConfigError, match=rule + r"2: the text of turn 1, whose role is 'system', is left out by the "):
        reader.check(records, family("qwen"))
    with pytest.raises(ConfigError, match=rule + "1: field `tools` is left out by "):
        reader.check([replace(records[0], tools=(tool,))], family("qwen"))
    with pytest.raises(ConfigError, match=rule + "1: field `chat_template_kwargs.documents` is left out by "):
        reader.check([replace(records[0], template_kwargs={"documents": [{"text": "moo"}]})], family("qwen"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reply_ends_where_its_template_closes_the_turn(family: Family, tiny_init: dict[str, Any], name: str) -> None:
    own = tokenizer_of(name, family)
    turn = ENDS[name].strip().partition("\n")[0]
    assert own.convert_ids_to_tokens(end_of_turn(own)) == turn
    hf = load_scalar_model(ModelConfig(init={**tiny_init, "vocab_size": len(own)}), own, WHOLE).hf
    hf.generation_config = type("Bare", (), {"eos_token_id": None})()  # as a base model's folder has it
    assert end_ids(hf, own) == list(dict.fromkeys([own.eos_token_id, own.convert_tokens_to_ids(turn)]))
    ids = np.array(own(f"fine.{turn}", add_special_tokens=False)["input_ids"], dtype=np.int32)
    assert reply_of(ids, own, before=0, by_token=True, by_string=[]).text == "fine."


def test_a_turn_that_ends_in_plain_text_has_no_end_token(family: Family) -> None:
    own = family("zephyr")
    own.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n###\n' }}{% endfor %}"
    assert end_of_turn(own) is None
    own.chat_template = "{{ raise_exception('not for dialogues') }}"
    assert end_of_turn(own) is None
