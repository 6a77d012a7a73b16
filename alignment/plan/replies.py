"""What replies take while they are drawn: keys and values, the prompts' pass, and what a token is drawn from."""

from alignment.config.generation import Gather, Generation, GenerationConfig
from alignment.config.online import OnlineConfig
from alignment.config.tasks import RejectionConfig
from alignment.distributed.precision import compute_dtype
from alignment.models.counted import Counted, Part, Phase
from alignment.plan.buffers import casts, share_elsewhere
from alignment.plan.roles import Planned, PlannedRole

DRAW = 28  # bytes of a row's token that may be drawn: logits, probabilities, their sums in float64, what is left


def while_drawing(config: Planned, actor: PlannedRole, reading: Counted, processes: int) -> dict[str, float]:
    """Bytes beside what is held, by what they are for; none where another program draws the replies.

    Args:
        reading: the actor without gradients.
    """
    if not isinstance(config, OnlineConfig | RejectionConfig) or config.generation.engine is Generation.vllm:
        return {}
    generation = config.generation
    rows = rows_at_once(config, processes)
    prompts = -(-rows // config.num_samples)
    length = config.data.max_prompt_length + generation.max_new_tokens
    passes = reading.passes[1, Phase.forward]
    copies = float(actor.counted.passes[0, Phase.forward, Part.copies])
    found = {
        "keys and values": float(rows * length * actor.counted.num_cached * compute_dtype(config.distributed).itemsize),
        "the prompts' pass": float(passes.sum()) * prompts * config.data.max_prompt_length,
        "draws": float(rows * DRAW * actor.counted.num_pieces),
        "weights in bfloat16": casts(copies, actor.counted.layer, config.distributed),
    }
    if config.distributed.zero == 3:
        is_whole = generation.gather is Gather.model
        weights = actor.counted.trained + actor.counted.frozen if is_whole else actor.counted.layer
        found["gathered weights"] = weights * share_elsewhere(config.distributed, processes)
    return {name: size for name, size in found.items() if size}


def rows_at_once(config: OnlineConfig | RejectionConfig, processes: int) -> int:
    """Replies that one process draws together."""
    batch: GenerationConfig = config.generation
    if isinstance(config, RejectionConfig):
        return batch.batch_size
    return min(batch.batch_size, -(-config.batch.size // processes) * config.num_samples)
