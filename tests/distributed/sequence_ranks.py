"""What one process of the test of sequence parallelism does: steps of each method with the tokens of its rows shared.

python sequence_ranks.py OUT METHOD/STAGE/LAYOUT/N ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; `none` is
the plain engine, N how many processes share the tokens of a row. It is the same in all cases of one call.
"""

import gc
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import ranks
import torch
import torch.distributed as dist

from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.config.model import ModelConfig
from alignment.data.pack import pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed import collectives, sequence
from alignment.distributed.sharded import placement_of
from alignment.models.layout import require_parts
from alignment.models.load import load_language_model
from alignment.models.readout import token_logprobs
from alignment.models.tokenizer import load_tokenizer
from alignment.training.reward_normalization import reward_statistics
from alignment.training.step import evaluate_step, train_step

STEPS = 4
OTHERS: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gemma3_text": {**ranks.INIT, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "mixtral": {**ranks.INIT, "num_local_experts": 4, "router_aux_loss_coef": 0.1, "output_router_logits": True},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
}


def run(method: str, stage: str, layout: str, size: int) -> dict[str, Any]:
    config = ranks.config_of(stage, Path(sys.argv[1]).parent)
    if stage != "none":
        config = replace(config, sequence_parallel=size)
    engine, _ = ranks.build(method, config)
    batches = ranks.batches_of(method)
    packer = replace(
        batches.packer,
        config=replace(batches.packer.config, layout=Layout(layout)),
        rank=sequence.rows_rank(),
        num_ranks=sequence.rows_size(),
        counts=sequence.counts(),
    )
    batches = replace(batches, packer=packer)
    objective = ranks.objective_of(method, engine, batches)
    steps = [train_step(engine, objective, batches.step(index)).means() for index in range(STEPS)]
    seen: dict[str, Any] = {name: [step[name] for step in steps] for name in ("loss", "grad_norm")}
    seen["metrics"] = [{name: value for name, value in step.items() if "precision" not in name} for step in steps]
    evaluated = evaluate_step(engine, objective, batches.once())
    seen["eval"] = evaluated.counting_pairs().means()
    if method == "reward":
        statistics = reward_statistics(engine, batches, None)
        seen["statistics"] = [statistics.mean, statistics.std, statistics.count]
    return seen


def sent(method: str, size: int) -> int:
    """How many all-to-alls a forward makes, without gradients."""
    config = replace(ranks.config_of("0", Path(sys.argv[1]).parent), sequence_parallel=size)
    engine, _ = ranks.build(method, config)
    batches = ranks.batches_of(method)
    objective = ranks.objective_of(method, engine, batches)
    with patch.object(dist, "all_to_all_single", wraps=dist.all_to_all_single) as exchange:
        evaluate_step(engine, objective, batches.one_step_of(batches.examples[:1]).once())
    return exchange.call_count


def loaded(kind: str, size: int) -> Any:
    config = replace(ranks.config_of("0", Path(sys.argv[1]).parent), sequence_parallel=size)
    collectives.init(config)
    torch.manual_seed(0)
    settings = ModelConfig(init={**OTHERS[kind], "model_type": kind})
    return load_language_model(settings, load_tokenizer(settings), placement_of(config))


def refused(kind: str, layout: str, size: int) -> str:
    """What is said of an architecture that carries more along a row than its attention sees."""
    try:
        require_parts(loaded(kind, size), Layout(layout))
    except ConfigError as error:
        return str(error)
    return ""


def far(kind: str, size: int, loss: Callable[[Any], torch.Tensor]) -> list[float]:
    """How far a loss is from that of whole rows, and its gradient, of that gradient's size."""
    model, found = loaded(kind, size), []
    for context in (sequence.each_alone(), nullcontext()):
        with context:
            own = loss(model)
            own.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((own.item(), gradient))
        model.zero_grad()
    (whole, wanted), (shared, part) = found
    dist.all_reduce(part)
    return [abs(shared - whole), float((part - wanted).norm() / wanted.norm())]


def routed(kind: str, size: int) -> list[float]:
    """Of the loss of routers alone."""
    batch = ranks.batches_of("dpo").of(range(3))

    def loss(model: Any) -> torch.Tensor:
        token_logprobs(model, batch)
        return torch.as_tensor(model.router_loss)

    return far(kind, size, loss)


def unread(kind: str, size: int) -> list[float]:
    """Of a text of which the first process has the prompt alone, where nothing is read."""
    prompt, completion = np.arange(5, 45, dtype=np.int32), np.arange(45, 48, dtype=np.int32)
    example = Example(prompt, (completion,), None, Source("rows.jsonl", 1), (True,))
    batch = pack([example], [0], layout=Layout.shared, pad_id=0)
    return far(kind, size, lambda model: token_logprobs(model, batch).square().mean())


def main() -> None:
    found: dict[str, Any] = {}
    for name in sys.argv[2:]:
        method, stage, layout, size = name.split("/")
        match stage:
            case "sent":
                found[name] = sent(method, int(size))
            case "refused":
                found[name] = refused(method, layout, int(size))
            case "routed":
                found[name] = routed(method, int(size))
            case "unread":
                found[name] = unread(method, int(size))
            case _:
                found[name] = run(method, stage, layout, int(size))
        gc.collect()
    everywhere = collectives.gathered(found)
    assert all(each == everywhere[0] for each in everywhere)
    if collectives.is_main():
        Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
