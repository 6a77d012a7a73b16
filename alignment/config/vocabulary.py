"""The words that a config may choose among."""

from enum import Enum


class Attention(str, Enum):
    sdpa = "sdpa"
    eager = "eager"


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
    float32 = "float32"
    bfloat16 = "bfloat16"


class Scheduler(str, Enum):
    local = "local"
    slurm = "slurm"


class Resume(str, Enum):
    auto = "auto"
    never = "never"


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


class Selection(str, Enum):
    best = "best"
    best_and_worst = "best_and_worst"


class Format(str, Enum):
    """How a row is laid out (alignment/data/layouts.py shows each)."""

    native = "native"
    """prompt with completion, or with chosen and rejected, or alone; the replies are text or messages."""
    hh = "hh"
    r"""chosen and rejected are whole dialogues in the "\n\nHuman: ...\n\nAssistant: ..." form of HH-RLHF."""
    alpaca = "alpaca"
    """instruction, input and output (or chosen and rejected)."""
    sharegpt = "sharegpt"
    """conversations of {from, value}, with chosen and rejected turns where they are pairs."""
    messages = "messages"
    """messages of {role, content}, the last of which is the reply."""
    world = "world"
    """The embedded world's own rows, native in layout."""


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


class Need(str, Enum):
    """What a task takes from a row."""

    prompts = "prompts"
    demonstrations = "demonstrations"
    pairs = "pairs"
