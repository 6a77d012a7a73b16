"""A model: where its weights come from, and what of it is trained."""

import math
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from alignment.config.base import Config
from alignment.config.chat_template import NAMES, TEMPLATE
from alignment.config.errors import ConfigError, require
from alignment.config.fp8 import Fp8
from alignment.config.mappings import require_patterns
from alignment.config.marks import ADAPTER, MODEL, TOKENIZER
from alignment.config.rope import RopeConfig
from alignment.config.soft_prompt import KEY, SoftPromptConfig
from alignment.user_error import nearest


class Attention(str, Enum):
    auto = "auto"
    """The default. On a GPU in half precision one call a layer for all texts of a batch, flex_attention in float32, for
    heads above 256 and where an architecture has a cap or sinks; else sdpa, or eager, which is said, where sdpa does
    not serve."""
    sdpa = "sdpa"
    """torch's fused attention, prompt by prompt."""
    eager = "eager"
    """The architecture's own, prompt by prompt: for what sdpa lacks, such as Gemma 2's soft cap."""
    flex_attention = "flex_attention"
    """One compiled kernel over the whole row, with a block mask; for a GPU."""


class LoraInit(str, Enum):
    """How a new adapter begins. It changes nothing: B is 0, or what it adds is taken out of the weights beneath; only
    loftq's gives back what packing took."""

    default = "default"
    """As a linear layer: uniform."""
    gaussian = "gaussian"
    """Normal, of standard deviation 1 / rank."""
    pissa = "pissa"
    """PiSSA (arXiv:2404.02948): the largest singular values of each weight, and their vectors."""
    olora = "olora"
    """OLoRA (arXiv:2406.01775): the first columns and rows of each weight's QR decomposition."""
    loftq = "loftq"
    """LoftQ (arXiv:2310.08659): the nearest of its rank to what packing takes from each weight. With nf4."""
    eva = "eva"
    """EVA (arXiv:2410.07170): what each layer reads most of in the replies of the run's own training rows, or in its
    prompts where it draws the replies. Not under ZeRO 3."""

    @property
    def changes_base(self) -> bool:
        """Whether the weights beneath are no longer the model's. The adapter is saved for them as they were."""
        return self in (LoraInit.pissa, LoraInit.olora)

    @property
    def adds_at_first(self) -> bool:
        """Whether B A is something before the first step, so that the reference needs a copy of it."""
        return self.changes_base or self is LoraInit.loftq


EVERYTHING = "all-linear"
ALPHA, TARGETS = 8, [EVERYTHING]


@dataclass(slots=True)
class LoraConfig(Config):
    rank: int = 0
    """0 trains all weights; above 0 the weights are frozen and adapters of this rank are trained (arXiv:2106.09685)."""
    alpha: int = ALPHA
    """The adapters' outputs are scaled by alpha / sqrt(rank), without `rslora` by alpha / rank."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Layer -> a rank of its own, in place of `rank`: names, or their ends, as peft has them, which may be patterns:
    q_proj, layers.0.mlp.*; of several that fit a layer the first counts."""
    alpha_pattern: dict[str, int] = field(default_factory=dict)
    """Likewise, in place of `alpha`."""
    rslora: bool = True
    """So that high ranks learn as fast as low ones (arXiv:2312.03732). False: by alpha / rank, as peft and TRL."""
    dora: bool = False
    """Train the length of each of a weight's rows apart from its direction, which the adapter turns (arXiv:2402.09353);
    slower. Not under ZeRO 3."""
    init: LoraInit = LoraInit.default
    """How a new adapter begins."""
    merge_every: int = 0
    """Optimizer steps after which the adapter is merged into the weights and a new one begins, of which the optimizer
    knows nothing: ReLoRA (arXiv:2307.05695). The base is held in float32, a whole model is left, and a method that
    learns from its own replies keeps its reference apart. PPO's critic, on a base of its own, does the same after its
    own steps. 0: never."""
    restart_warmup_steps: int | None = None
    """Steps in which the learning rate rises again from 0 after each merge. Null: those of the run's warm-up, but no
    more than half of merge_every."""
    dropout: float = 0.0
    """Share of an adapter's inputs that are dropped while it trains."""
    merge: bool = True
    """Whether what is left is the whole model, the adapter merged into it and beside it; false: the adapter alone."""
    plus: float = 1.0
    """LoRA+ (arXiv:2402.12354): the learning rate of the adapters' B, as a multiple of A's; theirs is 16."""
    targets: list[str] = field(default_factory=lambda: list(TARGETS))
    """Names of the modules that get an adapter, as peft has them; all-linear: every linear layer but the head."""
    target_parameters: list[str] = field(default_factory=list)
    """Names, or their ends, of a mixture's weights that hold all experts of a layer, such as experts.gate_up_proj and
    experts.down_proj: each expert gets an adapter of this rank. As peft has them; not under ZeRO 3."""
    modules_to_save: list[str] = field(default_factory=list)
    """Names, or their ends, of modules that are trained whole beside the adapters, such as embed_tokens and lm_head; a
    head that is tied to the embeddings trains with them. They are saved with the adapter."""

    def __post_init__(self) -> None:
        require(self.rank >= 0, "model.lora.rank must be >= 0", self.rank)
        require(self.alpha > 0, "model.lora.alpha must be > 0", self.alpha)
        for key, pattern in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            require_patterns(f"model.lora.{key}", pattern)
        require(0 <= self.dropout < 1, "model.lora.dropout must be in [0, 1)", self.dropout)
        require(0 < self.plus < math.inf, "model.lora.plus must be > 0 and finite", self.plus)
        rule = f"model.lora.dora must be false with model.lora.init={self.init.value}, saved as two adapters in one"
        require(not (self.dora and self.init.changes_base), rule, self.dora)
        rule = "model.lora.dora must be false with model.lora.init=loftq, which knows no lengths"
        require(not (self.dora and self.init is LoraInit.loftq), rule, self.dora)
        self._check_merges()
        named = [*self.targets, *self.target_parameters]
        require(bool(named), "model.lora.targets must name at least one module", self.targets)

    def _check_merges(self) -> None:
        every, rises = self.merge_every, self.restart_warmup_steps
        require(every >= 0, "model.lora.merge_every must be >= 0", every)
        rule = "model.lora.restart_warmup_steps goes with model.lora.merge_every > 0"
        require(every > 0 or rises is None, rule, rises)
        rule = f"model.lora.restart_warmup_steps must be in [0, model.lora.merge_every), which is {every}"
        require(rises is None or 0 <= rises < every, rule, rises)
        rule = "model.lora.{} with model.lora.merge_every, each of whose adapters begins as the first"
        is_plain = every == 0 or self.init in (LoraInit.default, LoraInit.gaussian)
        require(is_plain, rule.format("init must be default or gaussian"), self.init)
        require(every == 0 or not self.dora, rule.format("dora must be false"), self.dora)

    def given(self) -> dict[str, Any]:
        """The keys beside `rank` that are not as they are by default, with their values."""
        unset, names = LoraConfig(), [each.name for each in fields(self) if each.name != "rank"]
        values = ((name, getattr(self, name), getattr(unset, name)) for name in names)
        return {name: value for name, value, default in values if value != default}


class Quantization(str, Enum):
    """How the weights of linear layers are packed, all but heads."""

    none = "none"
    """Not at all: they are held in what they compute in."""
    nf4 = "nf4"
    """QLoRA's (arXiv:2305.14314): 4 bits, NormalFloat by blocks of 64, whose scales take 8; 4.13 bits a weight."""
    int8 = "int8"
    """LLM.int8() (arXiv:2208.07339): 8 bits, scaled by row, and products of 8 bits, but where inputs reach 6."""


@dataclass(slots=True)
class ModelConfig(Config):
    path: str | None = field(default=None, metadata=MODEL)
    """A folder in Hugging Face form, a run's folder, which stands for its model, or a name on the hub: org/name,
    org/name@revision. Null: a random model built from `init`."""
    adapter: str | None = field(default=None, metadata=ADAPTER)
    """A LoRA adapter that is trained on, on `path`, or where that is null on the base that it names: the folder of one,
    or of a run that left one, or a name on the hub. Its rank, scale and modules are its own: a recipe's for
    a new one are left unread beside it, and typed ones must be the same. Where a method has a reference, that is the
    model with the adapter as it was when the run began."""
    init: dict[str, Any] = field(default_factory=dict)
    """`model_type` and the fields of its transformers config, of a model that is built anew. Beside a `path` that of a
    preset is left unread, and one that is typed is refused."""
    tokenizer: str | None = field(default=None, metadata=TOKENIZER)
    """A tokenizer's folder, or a name on the hub. Null: the one in `path`; where that is null too, the small one in the
    package."""
    chat_template: str | None = field(default=None, metadata=TEMPLATE)
    """How turns are laid out, in place of the tokenizer's own chat template: a file in Jinja's language, or one of
    chatml, llama3, zephyr, gemma, mistral and plain. It is saved with the model. Null: the tokenizer's own."""
    trust_remote_code: bool = False
    """Run the code that comes with the model or its tokenizer, for architectures that transformers has not. It may do
    whatever you may: only from whom you trust."""
    resize_embeddings: bool = False
    """Where the tokenizer has more tokens than the model embeds, add rows for them, drawn about the others' mean."""
    attention: Attention = Attention.auto
    """How attention is computed."""
    quantization: Quantization = Quantization.none
    """Pack the linear layers of a base in whole weights, as each is read; adapters (`lora.rank`) train on it. A critic,
    and another reference, are packed likewise; a reward model is read as its folder has it."""
    fp8: Fp8 = Fp8.none
    """Have linear layers round their inputs, weights and gradients to 8 bits for each product (torchao; extra: fp8):
    those of a model all of whose weights train, and of its reference, heads excepted. For a GPU of compute capability
    8.9 or higher."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, in place of keeping them: much less memory, about a third more
    time."""
    activation_offloading: bool = False
    """Keep what the layers save for the backward pass in the memory of the CPU: with gradient_checkpointing the inputs
    of each layer. Needs distributed.device=cuda."""
    router_loss: float | None = None
    """Weight of a mixture of experts' load-balancing loss (arXiv:2101.03961, eq. 4). Null: the model's own
    `router_aux_loss_coef`, where its config sets `output_router_logits`."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    soft_prompt: SoftPromptConfig = field(default_factory=SoftPromptConfig)

    def __post_init__(self) -> None:
        rule = "model.path must name a folder, or a model on the hub, or model.init a model_type to build"
        require(self.path is not None or self.adapter is not None or "model_type" in self.init, rule, self.path)
        self._check_lora()
        self._check_soft_prompt()
        given, names = self.chat_template, NAMES
        if given is not None and given not in names and not {".", "/"} & set(given):
            rule = f"model.chat_template must be a file or one of {', '.join(names)}"
            raise ConfigError(f"{rule}, got {given!r}{nearest(given, names)}")
        require(0 <= (self.router_loss or 0) < math.inf, "model.router_loss must be >= 0 and finite", self.router_loss)
        rule = "model.quantization goes with model.path: a model of model.init is drawn, not read"
        require(not self.is_packed or (self.path or self.adapter) is not None, rule, self.quantization.value)

    def _check_lora(self) -> None:
        rule = f"model.quantization must be none with model.lora.init={self.lora.init.value}, which changes the weights"
        require(not (self.is_packed and self.lora.init.changes_base), rule, self.quantization.value)
        rule = "model.quantization must be nf4 with model.lora.init=loftq, which gives back what packing takes"
        is_packed_so = self.quantization is Quantization.nf4
        way = " (model.lora.init=pissa is for whole weights)" if not self.is_packed else ""
        require(is_packed_so or self.lora.init is not LoraInit.loftq, rule + way, self.quantization.value)
        for key, value in self.lora.given().items():
            rule = f"model.lora.{key} goes with model.lora.rank > 0"
            require(self.lora.rank > 0 or self.adapter is not None, rule, value)
        rule = "model.lora.merge_every must be 0 with model.quantization, for nothing is merged into packed weights"
        require(self.lora.merge_every == 0 or not self.is_packed, rule, self.lora.merge_every)
        rule = "model.lora.init must be left out beside model.adapter, which has begun already"
        require(self.adapter is None or self.lora.init is LoraInit.default, rule, self.lora.init)

    def _check_soft_prompt(self) -> None:
        rule = f"model.soft_prompt goes with {KEY} > 0"
        require(self.has_soft_prompt or self.soft_prompt == SoftPromptConfig(), rule, self.soft_prompt.tokens)
        rule = f"{KEY} must be 0 with model.lora.rank > 0: one of the two trains"
        require(not self.has_soft_prompt or self.lora.rank == 0, rule, self.soft_prompt.tokens)
        rule = f"model.resize_embeddings must be false with {KEY}, for what is left is of the base as its folder has it"
        require(not self.has_soft_prompt or not self.resize_embeddings, rule, True)

    @property
    def keeps_base(self) -> bool:
        """Whether the weights stay as they are beneath an adapter, and are held in what they compute in."""
        return self.has_adapter and self.lora.merge_every == 0

    @property
    def is_packed(self) -> bool:
        return self.quantization is not Quantization.none

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter trains in place of all weights."""
        return self.lora.rank > 0 or self.adapter is not None or self.has_soft_prompt

    @property
    def has_soft_prompt(self) -> bool:
        """Whether embeddings before each text train, and are left alone."""
        return self.soft_prompt.tokens > 0
