"""Models side by side on held-out prompts: gold score, learned reward, KL to the baseline; a table and a report."""

import json
from datetime import date
from importlib.metadata import version
from pathlib import Path

from alignment.config.data import ExampleKind
from alignment.config.errors import error_prefix
from alignment.config.hub import located
from alignment.config.model import ModelConfig
from alignment.config.tasks import EvaluateConfig
from alignment.data.load import Loaded, load_split
from alignment.distributed.collectives import is_main
from alignment.evaluate.alarms import raised
from alignment.evaluate.results import Evaluation, MethodResult, RewardModelResult, TrainingRun
from alignment.evaluate.table import summary, terminal_table
from alignment.generation.function import FunctionScorer, load_function
from alignment.generation.samples import Samples
from alignment.generation.score import RewardModelScorer, reward_model_scorer
from alignment.generation.select import best_of
from alignment.runs.folder import RunFolder
from alignment.runs.rows import read_rows
from alignment.runs.written import whole_file
from alignment.tasks.compared import ComparedPolicy, ComparedRun, compared_runs, load_policy
from alignment.terminal import console, say
from alignment.training.samples_log import SamplesLog
from alignment.training.setup import require_positions, say_split


def run(config: EvaluateConfig, folder: Path) -> None:
    runs = compared_runs(config)
    baseline = runs[config.baseline]
    scorer = scorer_of(config, baseline)
    if scorer is not None:
        scorer.shard()
    pairs = None if scorer is None else _pairs(config, scorer)
    comparison = Comparison(config, runs, scorer, SamplesLog(folder, done=0))
    evaluation = Evaluation(
        prompts=[record.prompt[-1]["content"] for record in baseline.prompts.records],
        methods=comparison.methods(),
        baseline=config.baseline,
        reward_model=None if scorer is None or pairs is None else _accuracy(scorer, pairs),
        runs=[
            run for name, path in {**config.runs, **config.curves}.items() for run in _training_run(name, located(path))
        ],
        facts=_facts(config, runs),
    )
    files = RunFolder(folder)
    console.print(terminal_table(evaluation))
    if is_main():
        from alignment.evaluate.report import write_report  # and matplotlib, which no other task needs

        with whole_file(files.summary) as path:
            path.write_text(json.dumps(summary(evaluation), indent=2))
        with whole_file(files.report) as path:
            write_report(evaluation, path)
    for alarm in (alarm for drawn in evaluation.runs for alarm in raised(drawn)):
        say(f"ALARM {alarm.run}: {alarm.words()}")


def scorer_of(config: EvaluateConfig, baseline: ComparedRun) -> RewardModelScorer | None:
    """The reward model of the learned score; None where there is none.

    Raises:
        ConfigError: it cannot be had, or its chat template refuses one of the prompts.
    """
    if config.reward is None:
        return None
    scorer = reward_model_scorer(config.reward, config.batch, config.distributed, key="reward")
    scorer.reader.check(baseline.prompts.records, baseline.tokenizer)
    return scorer


class Comparison:
    """Each run's replies to the same prompts, drawn with the same seed; all processes together, each a share."""

    def __init__(
        self, config: EvaluateConfig, runs: dict[str, ComparedRun], scorer: RewardModelScorer | None, shown: SamplesLog
    ) -> None:
        self.config = config
        self.runs = runs
        self.scorer = scorer
        self.shown = shown
        gold = config.gold
        self.gold = None if gold is None else FunctionScorer(load_function(gold, "gold"), "gold", gold)
        self.baseline = load_policy(config, config.baseline, runs[config.baseline])

    def methods(self) -> list[MethodResult]:
        results, config = [], self.config
        for name, entry in self.runs.items():
            policy = self.baseline if name == config.baseline else load_policy(config, name, entry)
            samples = policy.reply(config, name, replies=1)
            results.append(self._result(name, samples, self._kl(policy, samples)))
            if policy is not self.baseline:
                policy.engine.release()
        if config.num_samples > 1:
            assert self.scorer is not None
            name = f"best of {config.num_samples}"
            samples = self.baseline.reply(config, name, replies=config.num_samples)
            picked = best_of(samples, self.scorer.score(samples))
            results.append(self._result(name, picked, None))
        return results

    def _kl(self, policy: ComparedPolicy, samples: Samples) -> list[float] | None:
        """[G] nats, log p of each reply to the policy less that to the baseline, each behind the prompt as it is given
        it. None where there is no such number: the baseline has no such tokens, or they are of another distribution."""
        generation = self.config.generation
        if generation.top_k or generation.top_p < 1 or not policy.entry.shares_vocabulary(self.baseline.entry):
            return None
        own, base = (each.logprobs(samples, generation.temperature) for each in (policy, self.baseline))
        kl: list[float] = (own - base).tolist()
        return kl

    def _result(self, name: str, samples: Samples, kl: list[float] | None) -> MethodResult:
        gold = None if self.gold is None else self.gold.answers(samples)
        reward = None if self.scorer is None else self.scorer.score(samples)[:, 0].tolist()
        rows = samples.table(score=reward, gold=gold, kl=kl)[: self.config.log.samples]
        self.shown.write(1, "eval", [{"method": name, **row} for row in rows])
        return MethodResult(
            name=name,
            gold=gold,
            reward=reward,
            kl=kl,
            lengths=[len(reply.ids) for replies in samples.replies for reply in replies],
            replies=samples.texts(),
        )


def _pairs(config: EvaluateConfig, scorer: RewardModelScorer) -> Loaded | None:
    """Held-out pairs as the reward model reads them."""
    pairs = say_split(
        load_split("eval", config.pairs, scorer.reader.tokenizer, ExampleKind.pairs, part="pairs"), "pairs"
    )
    with error_prefix("reward"):
        require_positions(ModelConfig(path=config.reward), [pairs], config.pairs, part="pairs")
    return pairs


def _accuracy(scorer: RewardModelScorer, pairs: Loaded) -> RewardModelResult:
    """The reward model's scores of the pairs, in the order of the data."""
    table = scorer.score_examples(pairs.examples, describe="reward model")
    margins = [example.margin for example in pairs.examples]
    known = [margin for margin in margins if margin is not None]
    return RewardModelResult(table[:, 0].tolist(), table[:, 1].tolist(), known if known else None)


def _training_run(name: str, folder: Path) -> list[TrainingRun]:
    """The curves of a run's folder; nothing for a bare model."""
    files = RunFolder(folder)
    if not files.metrics.is_file():
        return []
    config = files.config.read_text()
    task = config.partition("task: ")[2].partition("\n")[0]
    estimator = config.partition("  estimator: ")[2].partition("\n")[0]
    method = task if estimator in ("", "gae") else f"{task}, {estimator}"
    return [TrainingRun(name, method, read_rows(files.metrics), config)]


def _facts(config: EvaluateConfig, runs: dict[str, ComparedRun]) -> dict[str, str]:
    packages = ("torch", "transformers", "trl", "peft")
    baseline = runs[config.baseline]
    others = [name for name, entry in runs.items() if not entry.shares_vocabulary(baseline)]
    words = f"of {', '.join(others)}: another vocabulary than {config.baseline}, so lengths are in other tokens"
    return {
        "date": date.today().isoformat(),
        "held-out prompts": str(len(baseline.prompts.records)),
        "sampling": f"temperature {config.generation.temperature}, seed {config.seed}",
        **({"tokens": f"{words} and there is no KL"} if others else {}),
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
    }
