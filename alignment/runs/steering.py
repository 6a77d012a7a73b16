"""What of a run's settings may be others when it goes on: the table of all keys.

A key is in the group of the longest of these names that is the key or its beginning. What none of them names, as a key
of a user's own task, is fixed.
"""

from enum import Enum


class Group(str, Enum):
    free = "free"
    """Changed without a word: the weights come out the same."""
    accepted = "accepted"
    """Asked for by `resume.accept`: the weights come out otherwise, and it is the same run, steered."""
    length = "length"
    """A run may be made longer."""
    fixed = "fixed"
    """It would be another run."""


FREE = (
    # Where a run is and how it is started, watched and saved.
    *("output_dir", "log", "checkpoint", "resume", "launch", "cluster"),
    # Which bases of adapters are read, which count by what they hold.
    "commits",
    # How the same work is divided up; memory and speed.
    *("batch.max_tokens", "model.gradient_checkpointing", "model.activation_offloading", "generation.batch_size"),
    "generation.gather",
    *(
        "generation.compile",
        "generation.vllm",
        "distributed.zero",
        "distributed.sequence_parallel",
        "distributed.offload_optimizer",
        "distributed.offload_param",
    ),
    *("distributed.nvme_path", "distributed.deepspeed_config", "distributed.timeout_minutes"),
    # Where the log-probs of the reference are kept, not whose they are.
    *("reference.cache", "reference.folder"),
    # What is only looked at: an evaluation and an alarm change no weight (but see WITH_BEST).
    *("train.eval_every", "train.eval_on_start", "alarm"),
)
ACCEPTED = (
    # How far and in which direction a step goes.
    *("train.learning_rate", "train.learning_rate_rule"),
    *("train.min_learning_rate", "train.schedule", "train.decay_ratio", "train.warmup_steps"),
    *("train.warmup_ratio", "train.weight_decay", "train.betas", "train.eps", "train.momentum"),
    *("train.max_grad_norm", "train.on_nonfinite", "critic.learning_rate"),
    # Which weights become the model, and when the run ends for want of better ones.
    "train.best",
    # The numbers of a loss; which function they are of is fixed below.
    "loss",
    # How far the policy may go from the reference, and what an iteration learns of its replies.
    *("kl", "advantage", "ppo.max_kl", "ppo.importance_clip", "ptx.weight", "pairs"),
    # How replies are drawn, and what is made of their scores; who scores them is fixed.
    *("generation", "reward.clip", "reward.whiten", "reward.missing_eos_penalty", "reward.length_penalty"),
    *("reward.length_free", "reward.safety_threshold"),
    # What is measured and never learned from: rows go on to be compared, but with others than before.
    *("data.eval", "gold", "gold_model"),
    # What changes the last bits of each number: devices, kernels, layout, another version of the package.
    *("distributed.device", "distributed.precision", "distributed.initial_loss_scale"),
    *("distributed.loss_scale_window", "distributed.deterministic", "batch.layout", "version"),
    "model.fp8",
)
FIXED = (
    # What is trained, from where on, and on what: a checkpoint's weights are of this model, its steps count these rows.
    *("seed", "task", "model", "data", "batch.size", "reference.path", "num_samples"),
    "data.eval.fraction",  # the rows that are left to learn from
    # What a checkpoint has states of, and by which groups of weights.
    *("train.optimizer", "train.head_lr_ratio", "train.embedding_lr_ratio"),
    # What scores. Its scores before and after could not be compared.
    "reward",
    # Which function is minimised.
    *("loss.variant", "loss.nll", "loss.policy.ratio", "loss.policy.normalization", "advantage.estimator"),
    # What a checkpoint has parts for, and how many inner steps a step has, by which schedules count.
    *("roles", "critic", "ppo", "ptx"),
    # Of runs that do not train, and therefore do not go on.
    *("runs", "baseline", "curves", "perplexity", "quantized", "temperatures", "select", "stages", "only", "inputs"),
    "trust_remote_code",
)
LENGTH = ("train.max_steps", "train.epochs")
WITH_BEST = {  # where evaluations choose the model: by train.best.metric, or by the held-out reward with kl.limit
    "train.eval_every": Group.accepted,
    "data.eval": Group.fixed,  # the best so far is by the rows that there were
}
GROUPS = {Group.free: FREE, Group.accepted: ACCEPTED, Group.fixed: FIXED, Group.length: LENGTH}
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


def group_of(key: str, *, has_best: bool = False) -> Group:
    """`has_best`: whether evaluations choose the model."""
    name = named_in_table(key)
    if name is None:
        return Group.fixed
    return WITH_BEST.get(name, _GROUP_OF[name]) if has_best else _GROUP_OF[name]


def named_in_table(key: str) -> str | None:
    """By which name a key is in the table; None: it is not there."""
    parts = key.split(".")
    beginnings = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in beginnings if name in _GROUP_OF), None)


def is_noted(key: str) -> bool:
    """Whether the mark of a run has the key, which it has where a change may matter."""
    return named_in_table(key) in WITH_BEST or group_of(key) is not Group.free


def covers(name: str, key: str) -> bool:
    """Whether `name` is the key or its beginning: train.best is that of train.best.metric."""
    return f"{key}.".startswith(f"{name}.")
