"""The words that a config may choose among."""

from enum import Enum


class Attention(str, Enum):
    auto = "auto"
    """sdpa, and eager for an architecture that sdpa does not serve, which is said. The default, on CPU and GPU."""
    sdpa = "sdpa"
    """torch's fused attention, prompt by prompt."""
    eager = "eager"
    """The architecture's own, prompt by prompt: for what sdpa lacks, such as Gemma 2's soft cap."""
    flex_attention = "flex_attention"
    """One compiled kernel over the whole row, with a block mask; for a GPU."""


class Layout(str, Enum):
    """How a prompt and its completions are laid out."""

    auto = "auto"
    """shared where the model reads a batch alike both ways, else separate, which is said."""
    shared = "shared"
    """The prompt once, its completions as branches behind it, several prompts in a row."""
    separate = "separate"
    """Each completion behind a copy of its prompt, in a row of its own."""


class Schedule(str, Enum):
    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(str, Enum):
    """What forward and backward compute in; weights that train, and their optimizer, are float32 in any."""

    auto = "auto"
    """bfloat16 on a GPU that has it, else float32; which it is, a run says as it starts."""
    float32 = "float32"
    """On a GPU with TF32 products."""
    bfloat16 = "bfloat16"
    """Under autocast."""


class Offload(str, Enum):
    none = "none"
    cpu = "cpu"
    nvme = "nvme"


class Gather(str, Enum):
    model = "model"
    layer = "layer"


class Scheduler(str, Enum):
    local = "local"
    slurm = "slurm"


class Resume(str, Enum):
    auto = "auto"
    never = "never"


class AdvantageEstimator(str, Enum):
    """How much better than expected a reply or its token was. gae expects what a critic says; the others have none."""

    gae = "gae"
    grpo = "grpo"
    dr_grpo = "dr_grpo"
    rloo = "rloo"
    reinforce_pp = "reinforce_pp"


class PairSelection(str, Enum):
    """Which of a prompt's replies make pairs."""

    best_and_worst = "best_and_worst"
    all = "all"


class Mode(str, Enum):
    """Which values of a metric are the better ones."""

    min = "min"
    max = "max"


class OnNonFinite(str, Enum):
    """What to do about a step whose loss or gradient is nan or infinite; the weights never see it."""

    stop = "stop"
    skip = "skip"


class Tracker(str, Enum):
    """What accelerate.tracking can write to; each needs its own package."""

    aim = "aim"
    clearml = "clearml"
    comet_ml = "comet_ml"
    dvclive = "dvclive"
    mlflow = "mlflow"
    swanlab = "swanlab"
    tensorboard = "tensorboard"
    trackio = "trackio"
    wandb = "wandb"


class Generation(str, Enum):
    """What makes replies."""

    transformers = "transformers"
    """In this process."""
    vllm = "vllm"
    """A server elsewhere that this process pushes its weights to."""


class Selection(str, Enum):
    best = "best"
    best_and_worst = "best_and_worst"


class Combine(str, Enum):
    """How the scores of several models become one."""

    sum = "sum"
    """The sum of weight * score."""
    llama2 = "llama2"
    """The safety model where the prompt is tagged safety or its score is low, else the helpfulness model."""


class KLControl(str, Enum):
    fixed = "fixed"
    adaptive = "adaptive"


class KLPlace(str, Enum):
    """Where the KL to the reference is held down."""

    reward = "reward"
    """Taken off each token's reward, and so carried through values and advantages."""
    loss = "loss"
    """Added to the actor's loss, and differentiated."""


class Format(str, Enum):
    """How a row is laid out (alignment/data/row_parsers.py shows each)."""

    native = "native"
    """prompt with completion, or with chosen and rejected, or alone; the replies are text or messages. Beside a prompt
    may stand its tags, in every format: {"prompt": ..., "tags": ["safety"]}."""
    hh = "hh"
    r"""chosen and rejected are whole dialogues in the "\n\nHuman: ...\n\nAssistant: ..." form of HH-RLHF."""
    alpaca = "alpaca"
    """instruction, input and output (or chosen and rejected)."""
    sharegpt = "sharegpt"
    """conversations of {from, value}, with chosen and rejected turns where they are pairs."""
    messages = "messages"
    """messages of {role, content}, the last of which is the reply."""
    text = "text"
    """text, whole, without turns or template, as in pre-training; for sft and ptx.data."""
    world = "world"
    """The embedded world's own rows, native in layout."""


class Learn(str, Enum):
    """Which of the assistant's turns of a demonstration carry loss."""

    all = "all"
    last = "last"


class Template(str, Enum):
    """How a dialogue becomes one text."""

    chat = "chat"
    """By the tokenizer's chat template."""
    none = "none"
    """Not at all: prompts and replies are texts that hold whatever tells them apart, control tokens too."""


class MarginScale(str, Enum):
    """Where the margin of a pair comes from."""

    none = "none"
    """Nowhere: the pairs carry no margin."""
    small = "small"
    """The row's rating: 1, 2/3, 1/3, 0 (Llama 2, arXiv:2307.09288, table 27)."""
    large = "large"
    """The row's rating: 3, 2, 1, 0 (same table)."""
    custom = "custom"
    """The row's rating, through the user's own map."""
    score = "score"
    """chosen_score - rejected_score."""
    given = "given"
    """The row's own margin, as it is."""


class BadRow(str, Enum):
    """What to do with a row that breaks a rule."""

    error = "error"
    skip = "skip"


class ExampleKind(str, Enum):
    """What a task takes from a row."""

    prompts = "prompts"
    demonstrations = "demonstrations"
    pairs = "pairs"
    labeled = "labeled"
    """Single replies that are desirable or not."""
    scored = "scored"
    """Single replies with a score."""
    steps = "steps"
    """Single replies in steps, each right or wrong."""


class Share(str, Enum):
    """Which weights PPO's roles have in common."""

    none = "none"
    """Four models (three where the actor is an adapter, whose base is the reference)."""
    lora = "lora"
    """One backbone: its base is the reference; actor, critic and reward are adapters, with heads of their own."""


class Grade(str, Enum):
    """How a check of a run comes out, the gravest last."""

    ok = "ok"
    warn = "WARN"
    fail = "FAIL"
