"""The longest rows that a run's limits admit, and a step of them in one pass."""

from alignment.config.data import DataConfig, ExampleKind, has_rows
from alignment.config.errors import require
from alignment.config.evaluate import EvaluateConfig
from alignment.config.online import OnlineConfig, OnlineDPOConfig, PairSelection, PPOConfig
from alignment.config.optimizer import OptimizerName
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import RejectionConfig
from alignment.models.counted import Rows


def rows_of(config: TrainingConfig | RejectionConfig | EvaluateConfig) -> list[Rows]:
    """The longest that the limits admit, of each kind of rows that the run reads."""
    if isinstance(config, EvaluateConfig):
        found = [_of_rows(config.pairs, 2)] if config.reward is not None and has_rows(config.pairs, "eval") else []
        if config.runs and config.num_samples:
            found.append(Rows(config.data.max_prompt_length, config.generation.max_new_tokens, config.num_samples))
        if config.runs and config.perplexity is not False:
            found.append(_of_rows(config.data, 1))
        return found
    if isinstance(config, RejectionConfig | OnlineConfig):
        found = [Rows(config.data.max_prompt_length, config.generation.max_new_tokens, config.num_samples)]
        if isinstance(config, PPOConfig) and config.ptx.weight > 0:
            found.append(_of_rows(config.ptx.data, 1))
        return found
    return [_of_rows(config.data, 2 if config.example_kind is ExampleKind.pairs else 1)]


def _of_rows(data: DataConfig, count: int) -> Rows:
    """With the shortest prompt, for what completions share is laid out once."""
    return Rows(1, data.max_length - 1, count)


def whole_step(config: RunConfig) -> int | None:
    """Tokens of a step of the longest rows, however they are laid out, of a run whose optimizer takes each step in one
    pass; None of others, which take as many passes as there are."""
    if not isinstance(config, TrainingConfig) or config.train.optimizer is not OptimizerName.lomo:
        return None
    number, rows = config.batch.size, rows_of(config)[0]
    completions = rows.count
    if isinstance(config, OnlineDPOConfig):  # of the pairs that are learned from
        completions = 2 if config.pairs is PairSelection.best_and_worst else rows.count * (rows.count - 1)
    if isinstance(config, PPOConfig):
        number = -(-number // config.ppo.mini_batches)
    return number * completions * rows.longest


def require_one_pass(config: RunConfig) -> None:
    """Raises:
    ConfigError: the optimizer takes each step in one pass, which `batch.max_tokens` cannot promise.
    """
    if isinstance(config, TrainingConfig) and (number := whole_step(config)) is not None:
        rule = f"batch.max_tokens must be null or at least {number}, a step of the longest rows, with "
        rule += f"train.optimizer={config.train.optimizer.value}, which takes each step in one pass (a lower "
        rule += "batch.size or data.max_length has fewer tokens)"
        given = config.batch.max_tokens
        require(given is None or given >= number, rule, given)
