"""The metrics of a run's rows: what each is, in what unit, and which of them say how the run does.

A name of an evaluation is that of training behind `eval/`, and with several held-out sets behind `eval/NAME/`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

EVAL = "eval/"
ACCURACY = "rewards/accuracy"
PAIRS, STDERR = "rewards/pairs", "stderr/"  # what the interval of an evaluation is made from


@dataclass(frozen=True, slots=True)
class Metric:
    """What one number says."""

    meaning: str
    unit: str = ""

    def words(self) -> str:
        return f"{self.meaning}{f' ({self.unit})' if self.unit else ''}"


NATS, NATS_REPLY, NATS_TOKEN, SHARE, SECONDS = "nats", "nats per reply", "nats per token", "share", "s"

METRICS = {
    "step": Metric("optimizer steps taken; of PPO and its kin, iterations"),
    "epoch": Metric("passes over the training rows so far; of a mix, rows drawn over the rows that there are"),
    "lr": Metric("learning rate of the step"),
    "loss": Metric("what is minimised, mean over what the method counts: tokens, pairs, replies"),
    "perplexity": Metric("exp of the row's mean negative log-probability of a token"),
    "grad_norm": Metric("norm of the gradient, before it is clipped"),
    "router_loss": Metric("load-balancing loss of a mixture of experts, as it is added"),
    "router/load_max": Metric(
        "tokens of the expert of a mixture that gets the most, as a multiple of an even share; mean over layers"
    ),
    "router/load_min": Metric("the same of the expert that gets the fewest: 0 of one that gets none"),
    "router/entropy": Metric("entropy of the routers' probabilities, mean over tokens and layers", "nats"),
    "precision/loss_scale": Metric("what the loss is multiplied by in float16, so that small gradients are no zeros"),
    "precision/skipped": Metric("optimizer steps left out for an overflow in float16, which halved the scale", SHARE),
    "skipped_steps": Metric("steps left out so far, for their loss or gradient was no finite number"),
    # Pairs and single replies
    ACCURACY: Metric(
        "how often the chosen reply has the higher reward; a tie is a miss (reward_process: a step's label is told)",
        SHARE,
    ),
    "rewards/margin": Metric("reward of the chosen reply less that of the rejected one"),
    "rewards/chosen": Metric("reward of the chosen (KTO: desirable) replies; of DPO and its kin the implicit one"),
    "rewards/rejected": Metric("reward of the rejected (KTO: undesirable) replies"),
    PAIRS: Metric("pairs (reward_process: steps) of which the accuracy of an evaluation is"),
    "rewards/mean": Metric("predicted score"),
    "rewards/error": Metric("distance of the predicted score from the data's"),
    "rewards/right": Metric("reward at the ends of steps that are right"),
    "rewards/wrong": Metric("reward at the ends of steps that are wrong"),
    "scores/mean": Metric("score that the data give"),
    "logps/chosen": Metric(
        "log-probability of the chosen reply: summed (DPO, CPO), mean of its tokens (ORPO, SimPO)", NATS
    ),
    "logps/rejected": Metric("log-probability of the rejected reply, as logps/chosen", NATS),
    "logps/token": Metric("log-probability of a token that is learned", NATS),
    "mean_token_accuracy": Metric("how often the likeliest token is the data's", SHARE),
    "nll": Metric("negative log-likelihood of the chosen reply, the term beside the preference", NATS),
    "log_odds": Metric("log of the odds ratio of chosen and rejected reply"),
    "odds_ratio_loss": Metric("ORPO's loss without its likelihood"),
    # Replies that are drawn
    "reward": Metric("learned reward of a reply, before clipping, whitening and penalties"),
    "gold": Metric("exact score of a reply, which nothing learns from"),
    "kl": Metric("KL of the policy to its reference; of KTO the z of its loss", NATS_REPLY),
    "kl/sqrt": Metric("square root of kl, where that is above 0"),
    "kl/weight": Metric("weight of the KL (beta) in this step"),
    "kl/loss": Metric("KL that kl.place=loss adds, before its weight", NATS_TOKEN),
    "length": Metric("length of a reply", "tokens"),
    "length/reward_correlation": Metric("Pearson's correlation of length and reward over the replies of the row"),
    "finished": Metric("replies with an end, not cut at generation.max_new_tokens", SHARE),
    "distinct_1": Metric("distinct tokens among all tokens of the replies", SHARE),
    "distinct_2": Metric("distinct bigrams among all bigrams of the replies", SHARE),
    "distinct_3": Metric("distinct trigrams among all trigrams of the replies", SHARE),
    "generation/mismatch": Metric("distance of the log-probs of an engine that draws from the trainer's", NATS_TOKEN),
    "generation/mismatch_max": Metric("its largest of an iteration", NATS),
    "generation/mismatch_kl": Metric("KL of the engine that draws to the trainer's model", NATS_TOKEN),
    "generation/live_fraction": Metric("tokens of replies among those computed to make them", SHARE),
    "pairs": Metric("pairs made of the replies to a prompt"),
    "groups/alike": Metric("prompts whose replies all score alike, which teach nothing", SHARE),
    "groups/redrawn": Metric("prompts replied to anew because their replies scored alike", SHARE),
    # PPO and its kin
    "objective/scores": Metric("score that is learned from: after clipping, whitening and penalties"),
    "objective/entropy": Metric("-log-probability of a reply as it was drawn", NATS_REPLY),
    "objective/non_score_reward": Metric("what the KL gives a reply as reward"),
    "objective/rlhf_reward": Metric("score and KL term together"),
    "entropy": Metric("entropy of the policy", NATS_TOKEN),
    "policy/approx_kl": Metric("KL of the policy from the one that drew the replies (k3)", NATS_TOKEN),
    "policy/clip_fraction": Metric("ratios that the loss clips", SHARE),
    "policy/ratio": Metric("probability of a token by that when it was drawn"),
    "policy/steps": Metric("the actor's optimizer steps in an iteration"),
    "value/loss": Metric("the critic's loss"),
    "value/mean": Metric("value that the critic gives a token"),
    "value/error": Metric("squared error of the values, before clipping"),
    "value/drift": Metric("distance of the values from those when the replies were drawn"),
    "value/clip_fraction": Metric("values that the loss clips", SHARE),
    "value/grad_norm": Metric("norm of the critic's gradient, before it is clipped"),
    "value/router_loss": Metric("the critic's load-balancing loss of a mixture of experts"),
    "ptx/loss": Metric("negative log-likelihood of the texts of ptx.data"),
    "ptx/logps/token": Metric("log-probability of a token of the texts of ptx.data", NATS),
    # Rejection
    "rows": Metric("rows that were selected"),
    "reward/best": Metric("reward of the best reply to each prompt"),
    "reward/worst": Metric("reward of the worst reply to each prompt"),
    # Time and memory
    "time/step_s": Metric("time since the row before", SECONDS),
    "time/data_s": Metric("of time/step_s: reading and packing rows", SECONDS),
    "time/generate_s": Metric("of time/step_s: drawing replies", SECONDS),
    "time/score_s": Metric("of time/step_s: scoring replies", SECONDS),
    "time/experience_s": Metric("of time/step_s: log-probabilities, values and advantages of replies", SECONDS),
    "time/learn_s": Metric("of time/step_s: forward, backward and optimizer", SECONDS),
    "time/eval_s": Metric("of time/step_s: evaluations", SECONDS),
    "time/save_s": Metric("of time/step_s: writing checkpoints", SECONDS),
    "time/tokens_per_s": Metric(
        "tokens learned from, all processes together, by time/step_s less time/eval_s and time/save_s",
        "tokens per second",
    ),
    "time/mfu": Metric("of the GPU's peak arithmetic that is used (MFU)", SHARE),
    "time/memory_gb": Metric("memory of the process with the most", "GB"),
}
FAMILIES = {  # by what the name begins with
    "ranges/": Metric(
        "of this layer's gradients (in float16 times the loss scale) or weights: not 0 and below the smallest normal "
        "number (underflow), not finite or beyond the largest (overflow) of the dtype that products compute in",
        SHARE,
    ),
    "alarm/": Metric("steps at which this alarm was raised", SHARE),
    "time/memory_gb/rank_": Metric("memory of this process", "GB"),
    "reward/temperature_": Metric("reward of the replies drawn at this temperature"),
    "best/temperature_": Metric("prompts whose best reply was drawn at this temperature", SHARE),
    "reward/": Metric("reward by this one of reward.models"),
    "value/": Metric("the metric of this name, of the critic in the place of the actor"),
    "ptx/": Metric("the same, of the texts of ptx.data"),
    STDERR: Metric("standard error of the mean of the metric of this name"),
}
HEADLINES = (  # of a step and of an evaluation, in the order in which they are shown
    "loss",
    "rewards/accuracy",
    "reward",
    "gold",
    "kl",
    "rewards/margin",
    "rewards/error",
    "perplexity",
    "mean_token_accuracy",
    "length",
)
SHORT = ("loss", "rewards/accuracy", "reward", "gold", "kl")  # of a step, where there is one line for it


def metric(name: str) -> Metric | None:
    """Of a name as a row has it; None where nothing is known of it, as of a metric of a method from outside."""
    plain = name
    if name.startswith(EVAL):
        plain = held_out(name)[1]
    if plain in METRICS:
        return METRICS[plain]
    return next((family for start, family in FAMILIES.items() if plain.startswith(start)), None)


def held_out(name: str) -> tuple[str, str]:
    """(the held-out set, the metric) of a name behind `eval/`; the set is empty where there is one without a name."""
    rest = name.removeprefix(EVAL)
    if rest in METRICS or any(rest.startswith(start) for start in FAMILIES) or "/" not in rest:
        return "", rest
    first, _, plain = rest.partition("/")
    return (first, plain) if plain in METRICS or any(plain.startswith(start) for start in FAMILIES) else ("", rest)


def headlines(names: Iterable[str]) -> list[str]:
    """Those of the names that say how a run does, in the order of HEADLINES; of evaluations set by set."""
    order = {name: number for number, name in enumerate(HEADLINES)}
    known = [(*(held_out(name) if name.startswith(EVAL) else ("", name)), name) for name in names]
    return [
        name for _, plain, name in sorted(known, key=lambda each: (each[0], order.get(each[1], 0))) if plain in order
    ]
