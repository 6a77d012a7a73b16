"""Models side by side on held-out prompts: gold score, learned reward, KL to the baseline; a table and a report."""

import json
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.parts import BatchConfig, ConfigError, ModelConfig
from alignment.config.tasks import EvaluateConfig
from alignment.config.vocabulary import Need
from alignment.data.batches import shared_out
from alignment.data.load import Loaded, load_split
from alignment.distributed.frozen import FrozenEngine
from alignment.distributed.sharded import placement_of
from alignment.distributed.world import is_main, pick_device, rank, size, sum_over_ranks
from alignment.evaluate.alarms import raised
from alignment.evaluate.results import Evaluation, MethodResult, RewardModelResult, TrainingRun
from alignment.evaluate.table import summary, terminal_table
from alignment.models.heads import LanguageModel
from alignment.models.layout import settle_layout
from alignment.models.load import load_language_model
from alignment.models.readout import token_logprobs
from alignment.models.tokenizer import load_tokenizer
from alignment.rollout.function import FunctionScorer, load_function
from alignment.rollout.samples import Samples, build_generator, sample
from alignment.rollout.score import RewardModelScorer, reward_model_scorer
from alignment.rollout.select import best_of
from alignment.tasks.prepare import model_folder, prepare_tokenizer, said
from alignment.terminal import console, say
from alignment.training.samples_log import SamplesLog


def run(config: EvaluateConfig, folder: Path) -> None:
    tokenizer = prepare_tokenizer(_model_config(config.runs[config.baseline]))
    prompts = said(load_split("eval", config.data, tokenizer, Need.prompts), "eval")
    if prompts is None or len(prompts.records) < 2:
        raise ConfigError(f"data.eval must give at least 2 prompts to reply to, got {prompts and len(prompts.records)}")
    scorer = None
    if config.reward is not None:
        scorer = reward_model_scorer(config.reward, tokenizer, config.batch, config.distributed, key="reward")
        if config.distributed.zero == 3:
            scorer.share_out()
    comparison = Comparison(config, tokenizer, prompts, scorer, SamplesLog(folder, done=0))
    evaluation = Evaluation(
        prompts=[record.prompt[-1]["content"] for record in prompts.records],
        methods=comparison.methods(),
        baseline=config.baseline,
        reward_model=None if scorer is None else _accuracy(config, scorer, tokenizer),
        runs=[
            run for name, path in {**config.runs, **config.curves}.items() for run in _training_run(name, Path(path))
        ],
        facts=_facts(config, len(prompts.records)),
    )
    console.print(terminal_table(evaluation))
    if is_main():
        from alignment.evaluate.report import write_report  # and matplotlib, which no other task needs

        (folder / "summary.json").write_text(json.dumps(summary(evaluation), indent=2))
        write_report(evaluation, folder / "report.html")
    for alarm in (alarm for drawn in evaluation.runs for alarm in raised(drawn)):
        say(f"ALARM {alarm.run}: {alarm.words()}")
    say(f"report: {folder / 'report.html'}")


@dataclass(slots=True)
class Player:
    """A model that replies, whole on every process or (ZeRO 3) shared out among them."""

    policy: LanguageModel
    engine: FrozenEngine
    batch: BatchConfig  # in a layout that it can read


class Comparison:
    """Each run's replies to the same prompts, drawn with the same seed; all processes together, each a share."""

    def __init__(
        self,
        config: EvaluateConfig,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Loaded,
        scorer: RewardModelScorer | None,
        shown: SamplesLog,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.scorer = scorer
        self.shown = shown
        gold = config.gold
        self.gold = None if gold is None else FunctionScorer(load_function(gold, "gold"), "gold", gold)
        self.baseline = self._load(config.runs[config.baseline])

    def methods(self) -> list[MethodResult]:
        results = []
        for name, path in self.config.runs.items():
            player = self.baseline if name == self.config.baseline else self._load(path)
            samples = self._reply(player, name, replies=1)
            kl = None
            if self.config.generation.top_k == 0 and self.config.generation.top_p == 1:  # else of another distribution
                kl = (self._logprobs(player, samples) - self._logprobs(self.baseline, samples)).tolist()
            results.append(self._result(name, samples, kl))
            if player is not self.baseline:
                player.engine.release()
        if self.config.best_of:
            assert self.scorer is not None
            samples = self._reply(self.baseline, f"best of {self.config.best_of}", replies=self.config.best_of)
            picked = best_of(samples, self.scorer.score(samples))
            results.append(self._result(f"best of {self.config.best_of}", picked, None))
        return results

    def _load(self, path: str) -> Player:
        settings, distributed = _model_config(path), self.config.distributed
        if load_tokenizer(settings).get_vocab() != self.tokenizer.get_vocab():
            raise ConfigError(f"runs must share the baseline's tokenizer, got another one in {path!r}")
        policy = load_language_model(settings, self.tokenizer, placement_of(distributed)).to(
            pick_device(distributed.device)
        )
        batch = replace(self.config.batch, layout=settle_layout(policy, self.config.batch.layout))
        return Player(policy, FrozenEngine(policy, config=distributed, sharded=distributed.zero == 3), batch)

    def _reply(self, player: Player, name: str, *, replies: int) -> Samples:
        config = self.config
        return sample(
            build_generator(player.policy, self.tokenizer, config.generation, config.distributed),
            player.engine,
            self.prompts.records,
            self.prompts.examples,
            replies=replies,
            seed=config.seed,
            describe=name,
        )

    @torch.no_grad()
    def _logprobs(self, player: Player, samples: Samples) -> torch.Tensor:
        """[G] float64, the summed log-prob (nats) of each prompt's one reply: the difference of two such sums is small
        beside them."""
        engine, rows = player.engine, range(len(samples.examples))
        mine, spare = shared_out(samples.examples, rows, player.batch, self.tokenizer.pad_token_id, rank(), size())
        table = torch.zeros(len(rows), device=engine.device, dtype=torch.float64)
        for index, batch in enumerate([*mine, *spare]):
            batch = batch.to(engine.device)
            with engine.precision():
                logprobs = token_logprobs(engine.model, batch, temperature=self.config.generation.temperature)
            if index < len(mine):
                table[batch.rows] = batch.sum_by_completion(logprobs.double())
        return sum_over_ranks(table).cpu()

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


def _accuracy(
    config: EvaluateConfig, scorer: RewardModelScorer, tokenizer: PreTrainedTokenizerBase
) -> RewardModelResult | None:
    """The reward model's scores of held-out pairs, in the order of the data."""
    pairs = said(load_split("eval", config.pairs, tokenizer, Need.pairs), "pairs")
    if pairs is None:
        return None
    table = scorer.score_examples(pairs.examples, describe="reward model")
    margins = [example.margin for example in pairs.examples]
    known = [margin for margin in margins if margin is not None]
    return RewardModelResult(table[:, 0].tolist(), table[:, 1].tolist(), known if known else None)


def _model_config(path: str) -> ModelConfig:
    """A run's folder holds its model in `model/`; a model's folder is one itself."""
    inside = model_folder(Path(path))
    return ModelConfig(path=str(inside if inside.is_dir() else path))


def _training_run(name: str, folder: Path) -> list[TrainingRun]:
    """The curves of a run's folder; nothing for a bare model."""
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        return []
    config = (folder / "config.yaml").read_text()
    task = config.partition("task: ")[2].partition("\n")[0]
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [TrainingRun(name, task, rows, config)]


def _facts(config: EvaluateConfig, num_prompts: int) -> dict[str, str]:
    packages = ("torch", "transformers", "trl", "peft")
    return {
        "date": date.today().isoformat(),
        "held-out prompts": str(num_prompts),
        "sampling": f"temperature {config.generation.temperature}, seed {config.seed}",
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
    }
