"""`evaluate` with `quantized`: a model beside itself in fewer bits."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from alignment.evaluate.metrics import paired_difference, perplexity_difference, ratio_interval
from alignment.models.quantized import keep_packing
from alignment.runs.scores import read_scores

Command = Callable[..., Any]
RUN = ["run", "evaluate", "generation.max_new_tokens=4", "log.progress=false", "output_dir=out"]
ALL = "quantized=[int8,nf4,absmax8,zeropoint8,absmax4,zeropoint4]"
QUESTIONS = ["hello", "how are you?", "hello there, a system", "the user of the assistant", "fine?", "hello hello"]
PAIRS = [{"prompt": q, "chosen": "fine. " * (n + 1), "rejected": "hello " * n + "."} for n, q in enumerate(QUESTIONS)]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return "data.eval.path=pairs.jsonl"


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory, families: Path) -> Path:
    """`small` with larger weights, which rounding moves."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    model = AutoModelForCausalLM.from_pretrained(families / "small")
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                layer.weight.normal_(std=0.15)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(families / "small").save_pretrained(folder)
    return folder


def by_hand(folder: Path, kind: str) -> Any:
    """The model by transformers alone, with weights rounded here."""
    if kind in ("int8", "nf4"):
        asked: dict[str, Any] = {"load_in_8bit": True}
        if kind == "nf4":
            asked = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        packed = BitsAndBytesConfig(**asked, llm_int8_skip_modules=["lm_head"])
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=packed, dtype=torch.float32)
        keep_packing(model)
        return model
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and name != "lm_head" and kind != "full":
                layer.weight.copy_(rounded(layer.weight, kind))
    return model


def rounded(weight: Tensor, kind: str) -> Tensor:
    groups = weight if kind.endswith("8") else weight.view(-1, 64)
    if kind == "absmax8":
        scale = groups.abs().amax(1, keepdim=True) / 127
        return (groups / scale).round() * scale
    assert kind == "zeropoint4"
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low) / 15
    zero = (low / scale).round()
    return (((groups / scale).round() - zero).clamp(0, 15) + zero).mul(scale).view_as(weight)


@torch.no_grad()
def distributions(model: Any, folder: Path, prompt: str, reply: str) -> tuple[Tensor, Tensor]:
    """[T, V] log-probs where each token of the reply and its end is chosen, and these tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": prompt}]
    before = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": reply}], tokenize=False)
    end = whole.index(tokenizer.eos_token, len(before)) + len(tokenizer.eos_token)
    ids = tokenizer(whole[:end], add_special_tokens=False)["input_ids"]
    begin = len(tokenizer(before, add_special_tokens=False)["input_ids"])
    return model(torch.tensor([ids])).logits[0, begin - 1 : -1].double().log_softmax(-1), torch.tensor(ids[begin:])


def nll(found: tuple[Tensor, Tensor]) -> float:
    return -found[0].gather(1, found[1][:, None]).sum().item()


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out/summary.json").read_text())
    return found


@pytest.mark.parametrize("kind", ["absmax8", "zeropoint4", "nf4", "int8"])
def test_figures_are_those_of_a_plain_loop(
    kind: str, alignment: Command, wide: Path, rows: str, tmp_path: Path
) -> None:
    ended = alignment(*RUN, f"runs={{m: {wide}}}", rows, "num_samples=0", f"quantized=[{kind}]")
    assert (ended.code, ended.err) == (0, [])
    full, other = by_hand(wide, "full"), by_hand(wide, kind)
    near = {"rel": 2e-2 if kind == "int8" else 1e-3, "abs": 1e-6}  # inputs of int8 are rounded too, batch by batch
    chosen, rejected = (
        [[distributions(m, wide, row["prompt"], row[side]) for row in PAIRS] for m in (full, other)]
        for side in ("chosen", "rejected")
    )
    tokens = [len(ids) for _, ids in chosen[0]]
    losses = [[nll(each) for each in of_model] for of_model in chosen]
    kl = [(p.exp() * (p - q)).sum().item() for (p, _), (q, _) in zip(*chosen, strict=True)]
    same = [(p.argmax(1) == q.argmax(1)).sum().item() for (p, _), (q, _) in zip(*chosen, strict=True)]
    right = [[float(nll(a) < nll(b)) for a, b in zip(c, r, strict=True)] for c, r in zip(chosen, rejected, strict=True)]
    base, own = summary(tmp_path)["quantized"]["selves"]
    assert base.keys() == {"name", "num_bytes", "accuracy"} and (base["name"], own["name"]) == ("full", kind)
    assert own["kl"]["mean"] == pytest.approx(sum(kl) / sum(tokens), **near)
    assert own["kl"]["high"] == pytest.approx(ratio_interval(kl, tokens).high, **near)
    assert own["same"]["mean"] == pytest.approx(sum(same) / sum(tokens), abs=1e-9 if kind != "int8" else 0.05)
    gap = perplexity_difference(losses[1], losses[0], tokens)
    assert own["perplexity_difference"]["mean"] == pytest.approx(gap.mean, rel=0.1 if kind == "int8" else 1e-2)
    if kind != "int8":
        assert own["accuracy"]["mean"] == sum(right[1]) / 6
        assert own["accuracy_difference"]["low"] == paired_difference(right[1], right[0]).low
        assert own["changed"]["mean"] == sum(a != b for a, b in zip(*right, strict=True)) / 6
    linear = [n for n, layer in full.named_modules() if isinstance(layer, nn.Linear) and n != "lm_head"]
    if kind in ("absmax8", "zeropoint4"):
        weights = [(full.get_submodule(n).weight, other.get_submodule(n).weight) for n in linear]
        off = sum((a - b).square().sum().item() for a, b in weights)
        norm = sum(a.square().sum().item() for a, _ in weights)
        assert own["relative_error"] == pytest.approx(math.sqrt(off / norm), rel=1e-4)
        assert own["largest_error"] == pytest.approx(max((a - b).abs().max().item() for a, b in weights), rel=1e-4)


def test_eight_bits_cost_less_than_four_and_take_more(
    alignment: Command, wide: Path, rows: str, tmp_path: Path
) -> None:
    ended = alignment(*RUN, f"runs={{m: {wide}}}", rows, ALL)
    assert (ended.code, ended.err) == (0, [])
    found = summary(tmp_path)
    kinds = ALL.removeprefix("quantized=[").removesuffix("]").split(",")
    assert [each["name"] for each in found["methods"]] == ["m", *(f"m {kind}" for kind in kinds)]
    by_name = {each["name"]: each for each in found["quantized"]["selves"]}
    for eight, four in (("int8", "nf4"), ("absmax8", "absmax4"), ("zeropoint8", "zeropoint4")):
        one, other = by_name[eight], by_name[four]
        assert 0 < one["kl"]["mean"] < other["kl"]["mean"]
        assert 0 < one["relative_error"] < other["relative_error"]
        assert 0 < one["mean_squared_error"] < other["mean_squared_error"]
        assert by_name["full"]["num_bytes"] > one["num_bytes"]
        assert four == "nf4" or one["num_bytes"] > other["num_bytes"]  # whose tables are larger than such weights
        assert one["same"]["mean"] >= other["same"]["mean"]
    assert by_name["int8"]["relative_error"] == pytest.approx(by_name["absmax8"]["relative_error"], rel=1e-2)
    assert by_name["int8"]["num_bytes"] == by_name["absmax8"]["num_bytes"]
    scores = read_scores(tmp_path / "out/scores.jsonl")
    own = [row for row in scores if row["method"] == "m nf4"]
    assert [row["part"] for row in own] == ["replies"] * 6 + ["completions"] * 6 + ["pairs"] * 6
    kl, tokens = (sum(row[key] for row in own if row["part"] == "completions") for key in ("kl", "tokens"))
    assert kl / tokens == pytest.approx(by_name["nf4"]["kl"]["mean"])
    html = (tmp_path / "out/report.html").read_text()
    assert "m beside its quantised selves" in html and "||W - W&#x27;|| / ||W||" in html
    assert "preferences: of the 6 pairs of data.eval" in ended.out and "zeropoint4" in ended.out
    assert ended.out.count("WARNING") <= 1
    again = alignment(*RUN, f"runs={{m: {wide}}}", rows, "quantized=[nf4]", "output_dir=other")
    assert again.code == 0
    compared = alignment("compare", "out", "other")
    assert (compared.code, compared.err) == (0, []) and "m nf4: other less out" in compared.out
    assert alignment("status", "out").code == 0


def test_replies_of_a_self_win_or_lose_by_the_exact_score(alignment: Command, wide: Path, tmp_path: Path) -> None:
    """Prompts alone: there is neither KL a token nor a preference."""
    words = ["run", "tiny_evaluate", f"runs={{m: {wide}}}", "data.eval.limit=8", "quantized=[absmax4]"]
    ended = alignment(*words, "generation.max_new_tokens=8", "log.progress=false", "output_dir=out")
    assert (ended.code, ended.err) == (0, [])
    _, own = summary(tmp_path)["methods"]
    assert own["name"] == "m absmax4" and {"gold", "gold_difference", "win_rate", "kl"} <= own.keys()
    _, own = summary(tmp_path)["quantized"]["selves"]
    assert own.keys() == {"name", "num_bytes", "relative_error", "mean_squared_error", "largest_error"}
    assert "KL per token" not in ended.out


def test_a_reward_model_alone(alignment: Command, families: Path, rows: str, tmp_path: Path) -> None:
    ended = alignment(*RUN, f"reward={families / 'judge'}", "pairs.eval.path=pairs.jsonl", ALL)
    assert (ended.code, ended.err) == (0, [])
    found, scores = summary(tmp_path), read_scores(tmp_path / "out/scores.jsonl")
    full, *selves = found["quantized"]["selves"]
    assert found["quantized"]["model"] == "reward model" and len(selves) == 6
    assert full["accuracy"] == found["reward_model"]["accuracy"]
    right = {
        method: [row["correct"] for row in scores if row["method"] == method]
        for method in dict.fromkeys(row["method"] for row in scores)
    }
    for each in selves:
        own, base = right[f"reward model {each['name']}"], right["reward model"]
        assert each["accuracy"]["mean"] == sum(own) / 6
        assert each["changed"]["mean"] == sum(a != b for a, b in zip(own, base, strict=True)) / 6
        assert each["relative_error"] > 0 and "kl" not in each
    assert "accuracy: pairs whose chosen reply scores higher" in ended.out


@pytest.mark.parametrize(
    ("words", "told"),
    {
        "quantized=[nf4,nf4]": "quantized must name each self once, got ['nf4', 'nf4']",
        "quantized=[nf5]": "quantized",
        "quantized=[nf4] distributed=zero3": "distributed.zero must be null, 0, 1 or 2 with quantized",
        "quantized=[nf4] generation.engine=vllm": "generation.engine must be transformers with quantized",
    }.items(),
)
def test_what_does_not_go_together_is_one_line(
    words: str, told: str, alignment: Command, rows: str, tmp_path: Path
) -> None:
    ended = alignment(*RUN, "runs={m:.}", rows, *words.split())
    (line,) = ended.err
    assert ended.code == 2 and line.startswith(f"alignment: evaluate: {told}")
    assert not (tmp_path / "out").exists()


def test_a_name_of_a_self_is_no_runs(alignment: Command, wide: Path, rows: str, tmp_path: Path) -> None:
    ended = alignment(*RUN, f"runs={{m: {wide}, 'm nf4': {wide}}}", rows, "quantized=[nf4]", "baseline=m")
    assert ended.code == 2 and "runs must have other names than the baseline's quantized selves" in ended.err[0]
    assert not (tmp_path / "out").exists()


def test_packed_weights_and_adapters_are_told_before_anything_is_read(
    alignment: Command, wide: Path, rows: str, tmp_path: Path
) -> None:
    """Whose rounded selves are those of what base and adapter add up to."""
    packed = by_hand(wide, "nf4")
    packed.save_pretrained(tmp_path / "packed")
    AutoTokenizer.from_pretrained(wide).save_pretrained(tmp_path / "packed")
    ended = alignment(*RUN, "runs={m: packed}", rows, "quantized=[absmax8]")
    (line,) = ended.err
    told = "quantized must be [] for runs.m 'packed', whose weights are quantized already, by bitsandbytes"
    assert ended.code == 2 and told in line and not (tmp_path / "out").exists()
    model: Any = peft.get_peft_model(by_hand(wide, "full"), peft.LoraConfig(target_modules="all-linear", r=2))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(wide).save_pretrained(tmp_path / "adapter")
    ended = alignment(*RUN, "runs={m: adapter}", rows, "quantized=[absmax8,int8]", "num_samples=0")
    (line,) = ended.err
    assert ended.code == 2 and "quantized=int8 needs whole weights in runs.m" in line
    assert not (tmp_path / "out").exists()
    ended = alignment(*RUN, "runs={m: adapter}", rows, "quantized=[absmax8]", "num_samples=0")
    assert (ended.code, ended.err) == (0, [])
    merged = model.merge_and_unload()
    own = summary(tmp_path)["quantized"]["selves"][1]
    off = [w - rounded(w, "absmax8") for n, w in merged.named_parameters() if "proj" in n]
    norm = sum(w.square().sum().item() for n, w in merged.named_parameters() if "proj" in n)
    error = math.sqrt(sum(each.square().sum().item() for each in off) / norm)
    assert own["relative_error"] == pytest.approx(error, rel=1e-4)


def test_a_soft_prompt_is_merged_into_nothing(alignment: Command, wide: Path, rows: str, tmp_path: Path) -> None:
    """So that the way out is another; beside it the weights are rounded."""
    asked = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(by_hand(wide, "full"), asked).save_pretrained(tmp_path / "prompt")
    AutoTokenizer.from_pretrained(wide).save_pretrained(tmp_path / "prompt")
    words = [*RUN, "runs={m: prompt}", rows, "num_samples=0"]
    ended = alignment(*words, "quantized=[nf4]")
    (line,) = ended.err
    assert ended.code == 2 and "quantized=nf4 needs a model of weights alone in runs.m, got a soft prompt" in line
    ended = alignment(*words, "quantized=[absmax8]")
    assert (ended.code, ended.err) == (0, [])
    assert 0 < summary(tmp_path)["quantized"]["selves"][1]["relative_error"] < 0.02


def test_a_self_takes_the_layout_that_the_model_was_found_to_take(
    alignment: Command, families: Path, rows: str, tmp_path: Path
) -> None:
    """It is not asked anew, which int8's rounded inputs could answer otherwise."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {"num_key_value_heads": 2, "vocab_size": 2048, **sizes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("nemotron", **settings))
    model.save_pretrained(tmp_path / "nemotron")
    AutoTokenizer.from_pretrained(families / "small").save_pretrained(tmp_path / "nemotron")
    ended = alignment(*RUN, "runs={m: nemotron}", rows, "num_samples=0", "quantized=[absmax8,int8]")
    assert (ended.code, ended.err) == (0, [])
    assert ended.out.count("batch.layout: separate") == 1


def test_two_processes_measure_as_one(alignment: Command, wide: Path, rows: str, tmp_path: Path) -> None:
    words = [*RUN, f"runs={{m: {wide}}}", rows, "num_samples=0", "quantized=[nf4,absmax8]", "distributed.device=cpu"]
    assert alignment(*words).code == 0
    alone = summary(tmp_path)
    assert alignment(*words, "output_dir=two", "launch.processes=2", "distributed=zero2").code == 0
    both = json.loads((tmp_path / "two/summary.json").read_text())
    for mine, theirs in zip(alone["quantized"]["selves"], both["quantized"]["selves"], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"name"}:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-6), name


def test_check_tries_each_self(alignment: Command, wide: Path, families: Path, rows: str, tmp_path: Path) -> None:
    """Of a model that replies, of one that reads rows, and of a reward model."""
    of_rows = ["check", "evaluate", f"runs={{m: {wide}}}", rows, "quantized=[nf4,absmax8]"]
    for words in (["num_samples=0"], ["generation.max_new_tokens=4"]):
        ended = alignment(*of_rows, *words)
        for kind in ("nf4", "absmax8"):
            assert f"ok   m {kind}: in fewer bits" in ended.out
    judge = [f"reward={families / 'judge'}", "pairs.eval.path=pairs.jsonl"]
    ended = alignment("check", "evaluate", *judge, "quantized=[zeropoint4]")
    assert "ok   reward zeropoint4: in fewer bits" in ended.out
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_check_asks_no_replies_of_an_evaluation_that_draws_none(
    alignment: Command, wide: Path, families: Path, rows: str
) -> None:
    """Nor is it held to the positions that replies would take."""
    judge = [f"reward={families / 'judge'}", "pairs.eval.path=pairs.jsonl"]
    long = "generation.max_new_tokens=100000"
    ended = alignment("check", "evaluate", f"runs={{m: {wide}}}", rows, "num_samples=0", long, *judge)
    assert (ended.code, ended.err) == (0, [])
    assert ", 0 FAIL;" in ended.out and "a reply stops" not in ended.out
    assert "ok   m: lengths" in ended.out and "reward: prefers chosen" in ended.out
    assert "marked: what perplexity is of" in ended.out
