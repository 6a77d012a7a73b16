"""The verdicts on tasks that reply to prompts: PPO, rejection sampling, evaluation."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase

from alignment.check import judge, rows, text
from alignment.check.agreement import Reader, packed
from alignment.check.experience import first_step, improves, parts_agree
from alignment.check.plain import plain_model
from alignment.check.rates import learning_rate
from alignment.check.replies import brief, prompts_of, stops
from alignment.check.subject import FEW, few, first_rows, in_one_process
from alignment.check.verdict import Verdict
from alignment.config.generation import GenerationConfig
from alignment.config.parts import BatchConfig, DataConfig, DistributedConfig, ModelConfig
from alignment.config.tasks import EvaluateConfig, PPOConfig, RejectionConfig
from alignment.config.vocabulary import Grade, Need
from alignment.data.batches import Batches
from alignment.data.load import Loaded, load_split
from alignment.distributed.engine import Engine
from alignment.distributed.frozen import FrozenEngine
from alignment.distributed.precision import precision_of
from alignment.distributed.sharded import placement_of
from alignment.models.heads import LanguageModel
from alignment.models.layout import settle_layout
from alignment.models.load import load_frozen_language_model
from alignment.rollout.generate import end_ids
from alignment.rollout.reward import build_reward
from alignment.rollout.samples import Samples, build_generator, sample
from alignment.rollout.score import RewardModelScorer, reward_model_scorer
from alignment.runs.folder import model_folder
from alignment.tasks.ppo import set_up
from alignment.tasks.prepare import prepare_tokenizer, required_split, said


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

    def drawn(self, loaded: Loaded) -> Samples:
        """A reply to each of the shortest prompts."""
        records, examples = zip(*prompts_of(loaded), strict=True)
        generator = build_generator(self.model, self.tokenizer, brief(self.generation), self.distributed)
        return sample(generator, self.engine, list(records), list(examples), replies=1, seed=self.seed)


def on_ppo(config: PPOConfig) -> Iterator[Verdict]:
    """PPO's roles on one iteration of few prompts."""
    small = few(in_one_process(config), FEW)
    with TemporaryDirectory() as folder:
        stage = set_up(small, Path(folder))
        yield rows.read("train", stage.rollouts.prompts.train)
        if stage.rollouts.prompts.held_out is not None:
            yield rows.read("eval", stage.rollouts.prompts.held_out)
        yield learning_rate(config, stage.roles.actor.num_weights)
        policy = Policy(
            "",
            config.model,
            stage.players.policy,
            stage.roles.actor,
            stage.rollouts.prompts.tokenizer,
            stage.config.batch,
            config.generation,
            small.distributed,
            config.seed,
        )
        samples = yield from of_policy(policy, stage.rollouts.prompts.train)
        for scorer in stage.players.reward.models():
            yield from of_judge(scorer, samples, policy, config.data)
        yield first_step(stage, samples)
        yield parts_agree(stage, samples)
        yield improves(stage, samples)


def on_rejection(config: RejectionConfig) -> Iterator[Verdict]:
    """The policy and its judges on few prompts."""
    config = replace(in_one_process(config), data=first_rows(config.data))
    tokenizer = prepare_tokenizer(config.model)
    prompts = required_split("train", config.data, tokenizer, Need.prompts)
    yield rows.read("train", prompts)
    reward = build_reward(config.reward, config.batch, config.distributed)
    policy = frozen_policy("", config.model, tokenizer, config)
    samples = yield from of_policy(policy, prompts)
    for scorer in reward.models():
        yield from of_judge(scorer, samples, policy, config.data)


def on_evaluation(config: EvaluateConfig) -> Iterator[Verdict]:
    """Each run's model, and the judge, on few prompts."""
    config = replace(in_one_process(config), data=first_rows(config.data))
    scorer = None
    if config.reward is not None:
        scorer = reward_model_scorer(config.reward, config.batch, config.distributed, key="reward")
    for name, path in config.runs.items():
        inside = model_folder(Path(path))
        settings = ModelConfig(path=str(inside if inside.is_dir() else path))
        tokenizer = prepare_tokenizer(settings)
        prompts = said(load_split("eval", config.data, tokenizer, Need.prompts), "eval")
        assert prompts is not None
        policy = frozen_policy(f"{name}: ", settings, tokenizer, config)
        if name == config.baseline:
            yield rows.read("eval", prompts)
        samples = yield from of_policy(policy, prompts)
        if scorer is not None and name == config.baseline:
            yield from of_judge(scorer, samples, policy, config.pairs)
        assert isinstance(policy.engine, FrozenEngine)
        policy.engine.release()


def frozen_policy(
    name: str, settings: ModelConfig, tokenizer: PreTrainedTokenizerBase, config: RejectionConfig | EvaluateConfig
) -> Policy:
    model = load_frozen_language_model(settings, tokenizer, placement_of(config.distributed))
    engine = FrozenEngine(model, config=config.distributed, sharded=False)
    batch = replace(config.batch, layout=settle_layout(model, config.batch.layout))
    return Policy(name, settings, model, engine, tokenizer, batch, config.generation, config.distributed, config.seed)


def of_policy(policy: Policy, loaded: Loaded) -> Generator[Verdict, None, Samples]:
    """What can be said of a model that replies; returns its replies, which may lack an end."""
    asked = policy.generation.max_new_tokens
    samples = policy.drawn(loaded)
    drawn = Batches(samples.examples, policy.batch, policy.seed, policy.tokenizer.pad_token_id)
    reader = Reader(policy.model, policy.engine, precision_of(policy.distributed))
    random = policy.settings.path is None
    for verdict in (
        rows.lengths(loaded, policy.model.hf.config, asked),
        text.opening(loaded, policy.tokenizer),
        text.ends(loaded, policy.tokenizer, end_ids(policy.model.hf, policy.tokenizer)),
        stops(samples, policy.tokenizer, asked, otherwise=Grade.warn if random else Grade.fail),
        packed(reader, drawn, plain_model(policy.model, policy.settings)),
    ):
        yield replace(verdict, name=f"{policy.name}{verdict.name}")
    return samples


def of_judge(scorer: RewardModelScorer, samples: Samples, policy: Policy, data: DataConfig) -> Iterator[Verdict]:
    """What can be said of a reward model that scores replies; `data` may hold pairs."""
    key = scorer.reader.key
    yield judge.as_trained(scorer, judge.with_ends(samples, policy.tokenizer), key)
    pairs = judge.pairs_in(data, ("eval", "train"), scorer.reader.tokenizer)
    if pairs is not None:
        yield judge.prefers_chosen(scorer, pairs, key)
