"""What replies take while they are drawn: keys and values, the prompts' pass, and what a token is drawn from."""

from alignment.config.generation import Gather, Generation, GenerationConfig
from alignment.config.online import OnlineConfig
from alignment.config.tasks import RejectionConfig
from alignment.distributed.precision import compute_dtype
from alignment.models.counted import Counted, Part, Phase
from alignment.plan.buffers import casts, made_whole
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
    found = {
        "keys and values": float(rows * length * actor.counted.num_cached * compute_dtype(config.distributed).itemsize),
        "the prompts' pass": float(passes.sum()) * prompts * config.data.max_prompt_length,
        "draws": float(rows * DRAW * actor.counted.num_pieces),
        **_weights(config, generation.gather, actor.counted, processes),
    }
    return {name: size for name, size in found.items() if size}


def while_gathering(config: Planned, actor: PlannedRole, processes: int) -> dict[str, float]:
    """The same of the moment before, when ZeRO 3 has made the policy whole to the bit; what products read in half
    precision is converted then, weight by weight, and nothing is drawn before."""
    if not isinstance(config, OnlineConfig | RejectionConfig) or config.distributed.zero != 3:
        return {}
    if config.generation.engine is Generation.vllm or config.generation.gather is not Gather.model:
        return {}
    weights = made_whole(actor.counted.shared, config.distributed, processes)
    return {"gathered weights": weights} if weights else {}


def _weights(config: Planned, gather: Gather, counted: Counted, processes: int) -> dict[str, float]:
    """Beside the policy's own, while replies are drawn."""
    copies = float(counted.passes[0, Phase.forward, Part.copies])
    copies += compute_dtype(config.distributed).itemsize * counted.num_fp8  # which draw as all others do
    if config.distributed.zero != 3:
        return {"weights in half precision": casts(copies, counted.layer, config.distributed)}
    if gather is Gather.layer:
        layer = made_whole(counted.layer, config.distributed, processes)
        return {
            "weights in half precision": casts(copies, counted.layer, config.distributed),
            "gathered weights": layer,
        }
    whole = made_whole(counted.shared, config.distributed, processes)
    if whole:  # of which those are converted that autocast would copy, to half their size
        return {"gathered weights": whole - copies}
    return {"weights in half precision": copies}


def rows_at_once(config: OnlineConfig | RejectionConfig, processes: int) -> int:
    """Replies that one process draws together."""
    batch: GenerationConfig = config.generation
    if isinstance(config, RejectionConfig):
        return batch.batch_size
    return min(batch.batch_size, -(-config.batch.size // processes) * config.num_samples)
