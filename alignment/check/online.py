"""The verdicts on tasks that reply to prompts: online methods, rejection sampling, evaluation."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase

from alignment.check import reward_model, rows, template, text
from alignment.check.agreement import Reader, judged_by, packed
from alignment.check.experience import first_step, improves
from alignment.check.fewer_bits import of_judges, of_selves
from alignment.check.plain import plain_model
from alignment.check.rates import learning_rate
from alignment.check.replies import brief, prompts_of, stops
from alignment.check.subject import FEW, few, first_rows, in_one_process, shortest
from alignment.check.verdict import Grade, Verdict
from alignment.config.batch import BatchConfig
from alignment.config.data import DataConfig
from alignment.config.distributed import DistributedConfig
from alignment.config.evaluate import EvaluateConfig
from alignment.config.generation import GenerationConfig
from alignment.config.model import ModelConfig
from alignment.config.online import OnlineConfig
from alignment.config.tasks import RejectionConfig
from alignment.data.batches import Batches, Packer
from alignment.data.loaded import Loaded
from alignment.data.tokenize import Example
from alignment.distributed.engine import Engine
from alignment.distributed.frozen import FrozenEngine
from alignment.generation.generate import end_ids
from alignment.generation.samples import Samples, build_generator, sample
from alignment.generation.score import RewardModelScorer
from alignment.models.heads import LanguageModel
from alignment.rl.on_policy import OnPolicy
from alignment.tasks import rejection
from alignment.tasks.compared import ComparedPolicy, ComparedRun, compared_runs, load_policy, policy_of
from alignment.tasks.ppo import PPOTrainer
from alignment.tasks.reward_pairs import held_out_pairs, scorer_of
from alignment.tasks.run import task_module

SOME = 4  # of the replies are read by transformers, one at a time


@dataclass(slots=True)
class Policy:
    """A model that replies, and how the run has it do so."""

    name: str
    """Before the names of its verdicts; "" where there is one policy."""
    settings: ModelConfig
    model: LanguageModel
    engine: Engine | FrozenEngine
    tokenizer: PreTrainedTokenizerBase
    batch: BatchConfig  # in a layout that it can read
    generation: GenerationConfig  # the run's own
    distributed: DistributedConfig
    seed: int

    def drawn(self, loaded: Loaded, generation: GenerationConfig, replies: int = 1) -> Samples:
        """So many replies to each of the shortest prompts."""
        records, examples = zip(*prompts_of(loaded), strict=True)
        generator = build_generator(self.model, self.tokenizer, generation, self.distributed)
        return sample(generator, self.engine, list(records), list(examples), replies=replies, seed=self.seed)

    def reader(self) -> Reader:
        return Reader(self.model, self.engine, judged_by(self.model, self.distributed))

    def batches(self, examples: Sequence[Example]) -> Batches:
        """Of the first of them."""
        return Batches(examples[:SOME], Packer(self.batch, self.tokenizer.pad_token_id), self.seed)


def on_policy(config: OnlineConfig) -> Iterator[Verdict]:
    """The policy and its judges on few prompts; of PPO one iteration as well."""
    small = few(in_one_process(config), FEW)
    with TemporaryDirectory() as folder:
        trainer: OnPolicy = vars(task_module(config))["build_trainer"](small, Path(folder))
        rollouts = trainer.rollouts
        prompts = rollouts.prompts
        yield rows.read("train", prompts.train, config.data)
        if prompts.held_out is not None:
            yield rows.read("eval", prompts.held_out, config.data)
        yield learning_rate(config, rollouts.engine.num_weights)
        policy = Policy(
            "",
            config.model,
            rollouts.generator.model,
            rollouts.engine,
            prompts.tokenizer,
            rollouts.batches.packer.config,
            config.generation,
            small.distributed,
            config.seed,
        )
        samples = yield from of_policy(policy, prompts.train)
        for scorer in rollouts.scorer.models():
            yield from of_reward_model(scorer, samples, policy, config.data, "data.eval.path")
        if isinstance(trainer, PPOTrainer):
            learned = policy.drawn(prompts.train, trainer.config.generation, trainer.config.num_samples)
            yield from first_step(trainer, learned)
            yield improves(trainer, learned)


def on_rejection(config: RejectionConfig) -> Iterator[Verdict]:
    """The policy and its judges on few prompts."""
    config = replace(in_one_process(config), data=first_rows(config.data))
    tokenizer, prompts, reward = rejection.set_up(config)
    yield rows.read("train", prompts, config.data)
    compared = policy_of(ComparedRun(config.model, tokenizer, prompts), config.batch, config.distributed)
    policy = replying("", compared, config)
    samples = yield from of_policy(policy, prompts)
    for scorer in reward.models():
        yield from of_reward_model(scorer, samples, policy, config.data, "data.eval.path")


def on_evaluation(config: EvaluateConfig) -> Iterator[Verdict]:
    """Each run's model, and the judge, on few prompts; or the judge alone, on few pairs."""
    config = replace(in_one_process(config), data=first_rows(config.data), pairs=first_rows(config.pairs))
    runs = compared_runs(config) if config.runs else {}
    baseline = runs.get(config.baseline)
    if baseline is not None:
        yield rows.read("eval", baseline.prompts, config.data)
    scorer = scorer_of(config, baseline if config.num_samples else None)
    for name, entry in runs.items():
        compared = load_policy(config, name, entry)
        policy = replying(f"{name}: ", compared, config)
        if config.num_samples:
            samples = yield from of_policy(policy, entry.prompts)
            looked_at = samples.examples
        else:
            looked_at = shortest(entry.prompts.examples, min(SOME, len(entry.prompts.examples)))
            yield from of_reader(policy, entry.prompts, looked_at)
        if config.num_samples and scorer is not None and name == config.baseline:
            yield from of_reward_model(scorer, samples, policy, config.pairs, "pairs.eval.path")
        if name == config.baseline:
            yield from of_selves(config, compared, policy.reader(), policy.batches(looked_at))
        compared.engine.release()
    if scorer is not None and not (runs and config.num_samples):
        pairs = held_out_pairs(config, scorer)
        assert pairs is not None  # the config has seen to it
        yield rows.read("pairs", pairs, config.pairs)
        yield reward_model.prefers_chosen(scorer, None, pairs.examples, "pairs.eval.path")
        yield from of_judges(config, scorer, pairs)


def replying(name: str, compared: ComparedPolicy, config: RejectionConfig | EvaluateConfig) -> Policy:
    """A policy that is not trained."""
    entry = compared.entry
    return Policy(
        name,
        entry.settings,
        compared.policy,
        compared.engine,
        entry.tokenizer,
        compared.batch,
        config.generation,
        config.distributed,
        config.seed,
    )


def of_reader(policy: Policy, loaded: Loaded, some: Sequence[Example]) -> Iterator[Verdict]:
    """What can be said of a model that reads rows' completions and replies to nothing."""
    text.show(some, policy.tokenizer, "what perplexity is of")
    plain = plain_model(policy.model, policy.settings)
    for verdict in (
        rows.lengths(loaded, policy.model.hf.config),
        text.opening(loaded, policy.tokenizer),
        template.layout(loaded.records, policy.tokenizer, plain),
        packed(policy.reader(), policy.batches(some), plain),
    ):
        yield replace(verdict, name=f"{policy.name}{verdict.name}")


def of_policy(policy: Policy, loaded: Loaded) -> Generator[Verdict, None, Samples]:
    """What can be said of a model that replies; returns its replies, which may lack an end."""
    for verdict in _of_its_text(policy, loaded):
        yield replace(verdict, name=f"{policy.name}{verdict.name}")
    samples = policy.drawn(loaded, brief(policy.generation))
    for verdict in _of_its_replies(policy, samples):
        yield replace(verdict, name=f"{policy.name}{verdict.name}")
    return samples


def _of_its_text(policy: Policy, loaded: Loaded) -> Iterator[Verdict]:
    yield rows.lengths(loaded, policy.model.hf.config, policy.generation.max_new_tokens)
    yield text.opening(loaded, policy.tokenizer)
    yield text.ends(loaded, policy.tokenizer, end_ids(policy.model.hf, policy.tokenizer))


def _of_its_replies(policy: Policy, samples: Samples) -> Iterator[Verdict]:
    asked, is_random = policy.generation.max_new_tokens, policy.settings.path is None
    yield stops(samples, policy.tokenizer, asked, otherwise=Grade.warn if is_random else Grade.fail)
    plain = plain_model(policy.model, policy.settings)
    yield template.layout(samples.records, policy.tokenizer, plain)
    yield packed(policy.reader(), policy.batches(samples.examples), plain)


def of_reward_model(
    scorer: RewardModelScorer, samples: Samples, policy: Policy, data: DataConfig, where: str
) -> Iterator[Verdict]:
    """What can be said of a reward model that scores replies; `data` may hold pairs, for which `where` is the key."""
    yield reward_model.as_trained(
        scorer, reward_model.with_ends(samples.first(SOME), policy.tokenizer), scorer.reader.key
    )
    pairs = reward_model.pairs_in(data, ("eval", "train"), scorer.reader.tokenizer)
    yield reward_model.prefers_chosen(scorer, policy.model, pairs, where)
