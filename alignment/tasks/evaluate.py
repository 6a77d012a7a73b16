"""Models side by side on held-out rows: their replies (gold score, learned reward, KL to the baseline), what they give
the rows' completions; and a reward model on pairs. A table and a report of what there is."""

import json
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignment.config.evaluate import EvaluateConfig, name_of_self
from alignment.config.hub import located
from alignment.data.loaded import Loaded
from alignment.distributed.collectives import is_main
from alignment.evaluate.alarms import raised
from alignment.evaluate.results import CompletionsResult, Evaluation, MethodResult, QuantizedResults, TrainingRun
from alignment.evaluate.table import notes, summary, terminal_tables
from alignment.generation.function import FunctionScorer, load_function
from alignment.generation.samples import Samples
from alignment.generation.score import RewardModelScorer
from alignment.generation.select import best_of
from alignment.runs.folder import RunFolder
from alignment.runs.rows import read_rows
from alignment.runs.scores import text_id, write_scores
from alignment.runs.settings import settings_of
from alignment.runs.written import whole_file
from alignment.tasks.compared import ComparedPolicy, ComparedRun, compared_runs, load_policy
from alignment.tasks.known_rows import warn_of_known_rows
from alignment.tasks.perplexity import completion_rows, completions, perplexity_of
from alignment.tasks.quantized_selves import (
    Beside,
    add_divergence,
    load_self,
    pairs_of_rows,
    preference_rows,
    quantized_judges,
)
from alignment.tasks.reward_pairs import held_out_pairs, judged, pair_rows, scorer_of
from alignment.terminal import console, say
from alignment.training.samples_log import SamplesLog


def run(config: EvaluateConfig, folder: Path) -> None:
    warn_of_known_rows(config)
    runs = compared_runs(config) if config.runs else {}
    replying = runs.get(config.baseline) if config.num_samples else None
    scorer = scorer_of(config, replying)
    if scorer is not None:
        scorer.shard()
    pairs = None if scorer is None else held_out_pairs(config, scorer)
    comparison = Comparison(config, runs, scorer, SamplesLog(folder, done=0)) if runs else None
    methods = [] if comparison is None else comparison.methods()
    judgement = None if scorer is None or pairs is None else judged(config, scorer, pairs)
    judged_rows = [] if judgement is None or pairs is None else list(pair_rows(pairs, judgement))
    quantized = None if comparison is None else comparison.quantized
    if config.quantized and not runs and scorer is not None and pairs is not None and judgement is not None:
        quantized = quantized_judges(config, scorer, pairs, judgement)
        own = quantized.selves[1:]
        judged_rows += (row for each in own for row in preference_rows(f"reward model {each.name}", pairs, each))
    evaluation = Evaluation(
        prompts=[] if replying is None else [record.prompt[-1]["content"] for record in replying.prompts.records],
        methods=methods,
        baseline=config.baseline,
        reward_model=judgement,
        runs=[
            run for name, path in {**config.runs, **config.curves}.items() for run in _training_run(name, located(path))
        ],
        facts=_facts(config, runs, pairs),
        quantized=quantized,
    )
    files = RunFolder(folder)
    for table in terminal_tables(evaluation):
        console.print(table)
    for line in notes(evaluation):
        say(line)
    if is_main():
        from alignment.evaluate.report import write_report  # and matplotlib, which no other task needs

        rows = [] if comparison is None else comparison.rows
        write_scores(files.scores, [*rows, *judged_rows])
        with whole_file(files.summary) as path:
            path.write_text(json.dumps(summary(evaluation), indent=2))
        with whole_file(files.report) as path:
            write_report(evaluation, path)
    for alarm in (alarm for drawn in evaluation.runs for alarm in raised(drawn)):
        say(f"ALARM {alarm.run}: {alarm.words()}")


class Comparison:
    """Each run's replies to the same prompts, drawn with the same seed, and what it gives the same completions; all
    processes together, each a share."""

    def __init__(
        self, config: EvaluateConfig, runs: dict[str, ComparedRun], scorer: RewardModelScorer | None, shown: SamplesLog
    ) -> None:
        self.config = config
        self.runs = runs
        self.scorer = scorer
        self.shown = shown
        self.completions = completions(config, runs)
        self.rows: list[dict[str, Any]] = []  # of scores.jsonl
        self.quantized: QuantizedResults | None = None
        gold = config.gold
        self.gold = None if gold is None else FunctionScorer(load_function(gold, "gold"), "gold", gold)
        self.baseline = load_policy(config, config.baseline, runs[config.baseline])

    def methods(self) -> list[MethodResult]:
        results, config = [], self.config
        for name, entry in self.runs.items():
            policy = self.baseline if name == config.baseline else load_policy(config, name, entry)
            results.append(self._measured(name, policy, self.completions.get(name)))
            if policy is not self.baseline:
                policy.engine.release()
        if config.quantized:
            given = next(result.completions for result in results if result.name == config.baseline)
            results += self._quantized(given)
        if config.num_samples > 1:
            assert self.scorer is not None
            name = f"best of {config.num_samples}"
            samples = self.baseline.reply(config, name, replies=config.num_samples)
            picked = best_of(samples, self.scorer.score(samples))
            results.append(self._result(name, picked, None))
        return results

    def _measured(self, name: str, policy: ComparedPolicy, completions: Loaded | None) -> MethodResult:
        result = MethodResult(name, None, None, None, [], [])
        if self.config.num_samples:
            samples = policy.reply(self.config, name, replies=1)
            result = self._result(name, samples, self._kl(policy, samples))
        if completions is not None:
            result.completions = perplexity_of(policy, name, completions)
            self.rows += completion_rows(name, completions, result.completions)
        return result

    def _quantized(self, given: CompletionsResult | None) -> Iterator[MethodResult]:
        """The baseline's selves in fewer bits, one at a time. `given`: what it gives the completions itself."""
        config, base = self.config, self.config.baseline
        completions, entry = self.completions.get(base), self.runs[base]
        pairs = pairs_of_rows(config, entry)
        beside = Beside(self.baseline, completions, given, pairs)
        self.rows += preference_rows(base, pairs, beside.selves[0])
        for kind in config.quantized:
            name, policy = name_of_self(base, kind), load_self(config, self.baseline, kind)
            result = self._measured(name, policy, completions)
            found = beside.add(kind, policy, result.completions)
            add_divergence(self.rows, name, found)
            self.rows += preference_rows(name, pairs, found)
            policy.engine.release()
            yield result
        self.quantized = QuantizedResults(base, is_reward_model=False, selves=beside.selves)

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
        replies = [reply for row in samples.replies for reply in row]
        result = MethodResult(
            name=name,
            gold=gold,
            reward=reward,
            kl=kl,
            lengths=[len(reply.ids) for reply in replies],
            replies=samples.texts(),
            finished=[reply.finished for reply in replies],
        )
        self.rows += _reply_rows(samples, result)
        return result


def _training_run(name: str, folder: Path) -> list[TrainingRun]:
    """The curves of a run's folder; nothing for a bare model.

    Raises:
        UserError: the run's config or its log is damaged.
    """
    files = RunFolder(folder)
    if not files.metrics.is_file():
        return []
    config = files.config.read_text() if settings_of(folder) else ""
    task = config.partition("task: ")[2].partition("\n")[0]
    estimator = config.partition("  estimator: ")[2].partition("\n")[0]
    method = task if estimator in ("", "gae") else f"{task}, {estimator}"
    return [TrainingRun(name, method, read_rows(files.metrics), config)]


def _reply_rows(samples: Samples, result: MethodResult) -> Iterator[dict[str, Any]]:
    """Of `scores.jsonl`: one reply to each prompt."""
    names = {"gold": "gold", "reward": "reward", "kl": "kl", "lengths": "length", "finished": "finished"}
    columns = {names[field]: values for field, values in result.per_prompt().items() if values and field in names}
    for place, prompt in enumerate(samples.prompts):
        found = {name: values[place] for name, values in columns.items()}
        yield {"part": "replies", "method": result.name, "id": text_id(prompt), **found}


def _facts(config: EvaluateConfig, runs: dict[str, ComparedRun], pairs: Loaded | None) -> dict[str, str]:
    packages = ("torch", "transformers", "trl", "peft")
    facts = {"date": date.today().isoformat()}
    if runs and config.num_samples:
        facts["held-out prompts"] = str(len(runs[config.baseline].prompts.records))
        facts["sampling"] = f"temperature {config.generation.temperature}, seed {config.seed}"
    others = [name for name, entry in runs.items() if not entry.shares_vocabulary(runs[config.baseline])]
    if others:
        words = f"of {', '.join(others)}: another vocabulary than {config.baseline}, so lengths are in other tokens"
        facts["tokens"] = f"{words} and there is no KL"
    if pairs is not None:
        facts["held-out pairs"] = str(len(pairs.records))
    facts["versions"] = ", ".join(f"{name} {version(name)}" for name in packages)
    return facts
