"""What our keys are called elsewhere, in Hugging Face's and TRL's arguments, or in short: answered with the key that is
meant, where the task has it."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from alignment.user_error import nearest

STEP = ("batch.size",)
ROWS = ("data.train.path",)
HELD_OUT = ("data.eval.path",)
MODEL = ("model.path",)
LENGTH = ("generation.max_new_tokens", "data.max_length")
SOFT_PROMPT = ("model.soft_prompt.tokens",)
SPELLINGS = {  # last part of a key, or all of it -> keys, of which the first that the task has is meant
    "lr": ("train.learning_rate",),
    "learning_rate": ("train.learning_rate",),
    "min_lr": ("train.min_learning_rate",),
    "lr_scheduler": ("train.schedule",),
    "lr_scheduler_type": ("train.schedule",),
    "optim": ("train.optimizer",),
    "embedding_lr_scale": ("train.embedding_lr_ratio",),
    "num_epochs": ("train.epochs",),
    "num_train_epochs": ("train.epochs",),
    "steps": ("train.max_steps",),
    "num_steps": ("train.max_steps",),
    "num_warmup_steps": ("train.warmup_steps",),
    "grad_clip": ("train.max_grad_norm",),
    "gradient_clip_val": ("train.max_grad_norm",),
    "eval_steps": ("train.eval_every",),
    "eval_strategy": ("train.eval_every",),
    "evaluation_strategy": ("train.eval_every",),
    "load_best_model_at_end": ("train.best.metric",),
    "metric_for_best_model": ("train.best.metric",),
    "early_stopping_patience": ("train.best.patience",),
    "batch_size": STEP,
    "train_batch_size": STEP,
    "micro_batch_size": ("batch.max_tokens",),
    "save_steps": ("checkpoint.every",),
    "save_total_limit": ("checkpoint.keep",),
    "resume_from_checkpoint": ("checkpoint.resume",),
    "logging_steps": ("log.every",),
    "report_to": ("log.trackers",),
    "wandb": ("log.trackers",),
    "tensorboard": ("log.trackers",),
    "wandb_project": ("log.project",),
    "out": ("output_dir",),
    "output": ("output_dir",),
    "output_path": ("output_dir",),
    "save_dir": ("output_dir",),
    "model_name": MODEL,
    "model_path": MODEL,
    "model_name_or_path": MODEL,
    "base_model": MODEL,
    "model.name": MODEL,
    "tokenizer_name": ("model.tokenizer",),
    "tokenizer_path": ("model.tokenizer",),
    "tokenizer_name_or_path": ("model.tokenizer",),
    "attn_implementation": ("model.attention",),
    "use_flash_attention_2": ("model.attention",),
    "use_peft": ("model.lora.rank",),
    "lora": ("model.lora.rank",),
    "lora_r": ("model.lora.rank",),
    "lora_rank": ("model.lora.rank",),
    "model.lora.r": ("model.lora.rank",),
    "lora_alpha": ("model.lora.alpha",),
    "use_rslora": ("model.lora.rslora",),
    "use_dora": ("model.lora.dora",),
    "init_lora_weights": ("model.lora.init",),
    "loraplus_lr_ratio": ("model.lora.plus",),
    "lora_dropout": ("model.lora.dropout",),
    "target_modules": ("model.lora.targets",),
    "prompt_tuning": SOFT_PROMPT,
    "num_virtual_tokens": SOFT_PROMPT,
    "prompt_tuning_init_text": ("model.soft_prompt.init_text",),
    "encoder_reparameterization_type": ("model.soft_prompt.encoder",),
    "encoder_hidden_size": ("model.soft_prompt.hidden_size",),
    "dataset": ROWS,
    "dataset_name": ROWS,
    "dataset_path": ROWS,
    "train_dataset": ROWS,
    "train_file": ROWS,
    "train_path": ROWS,
    "data_path": ROWS,
    "data.path": ROWS,
    "data.file": ROWS,
    "data.train.file": ROWS,
    "dataset_mixer": ("data.train.mix",),
    "eval_dataset": HELD_OUT,
    "eval_file": HELD_OUT,
    "eval_path": HELD_OUT,
    "validation_file": HELD_OUT,
    "data.test": HELD_OUT,
    "data.validation": HELD_OUT,
    "test_size": ("data.eval.fraction",),
    "eval_fraction": ("data.eval.fraction",),
    "validation_split": ("data.eval.fraction",),
    "max_train_samples": ("data.train.limit",),
    "max_seq_length": ("data.max_length",),
    "max_seq_len": ("data.max_length",),
    "cutoff_len": ("data.max_length",),
    "system_prompt": ("data.system",),
    "loss_type": ("loss.variant",),
    "loss.type": ("loss.variant",),
    "beta": ("loss.beta", "kl.weight"),
    "temperature": ("generation.temperature",),
    "max_completion_length": LENGTH,
    "response_length": LENGTH,
    "generation.max_length": ("generation.max_new_tokens",),
    "num_generations": ("num_samples",),
    "num_return_sequences": ("num_samples",),
    "kl_coef": ("kl.weight",),
    "init_kl_coef": ("kl.weight",),
    "kl.coef": ("kl.weight",),
    "cliprange": ("loss.policy.clip",),
    "clip_range": ("loss.policy.clip",),
    "epsilon": ("loss.policy.clip",),
    "epsilon_high": ("loss.policy.clip_high",),
    "cliprange_value": ("loss.value.clip",),
    "num_ppo_epochs": ("ppo.epochs",),
    "num_mini_batches": ("ppo.mini_batches",),
    "reward_model": ("reward.path",),
    "reward_model_path": ("reward.path",),
    "reward.model": ("reward.path",),
    "reward_funcs": ("reward.function",),
    "ref_model": ("reference.path",),
    "ref_model_path": ("reference.path",),
    "reference_model": ("reference.path",),
    "reference.model": ("reference.path",),
    "precompute_ref_log_probs": ("reference.cache",),
    "use_vllm": ("generation.engine",),
    "bf16": ("distributed.precision",),
    "fp16": ("distributed.precision",),
    "dtype": ("distributed.precision",),
    "torch_dtype": ("distributed.precision",),
    "deepspeed": ("distributed.deepspeed_config",),
    "zero_stage": ("distributed.zero",),
    "gpus": ("launch.processes",),
    "num_gpus": ("launch.processes",),
    "num_processes": ("launch.processes",),
    "nproc_per_node": ("launch.processes",),
}
VALUES = {  # likewise, of keys that are one of several
    "gpu": "cuda",
    "bf16": "bfloat16",
    "fp32": "float32",
    "fp16": "float16",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
    "hinge_loss": "hinge",
    "adam": "adamw",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_8bit",
    "paged_adamw_32bit": "paged_adamw_8bit",
    "lion_32bit": "lion",
    "True": "auto",  # of checkpoint.resume
    "False": "never",
}
FLAGS = {  # what is given with dashes, as other commands take it -> key
    "data": "data.train.path",
    "model": "model.path",
    "epochs": "train.epochs",
    "max_steps": "train.max_steps",
}
QUANTIZED = "model.quantization=nf4 packs the base of adapters in 4 bits as it is read, model.quantization=int8 in 8"
ROWS_OF_A_STEP = "batch.size=N is of a whole step, over all processes; batch.max_tokens=N is what one pass takes of it"
ADAPTERS = "model.lora.rank=N trains few weights, which are merged into the others"
ENCODED = "P-tuning is model.soft_prompt.tokens=N model.soft_prompt.encoder=mlp"
PREFIXES = "keys and values that a layer has of no token have no place among those of a packed row's own tokens; "
PREFIXES += f"model.soft_prompt.tokens=N learns embeddings before each text, and {ADAPTERS}"
WAYS = {  # what has no key of its own here
    "per_device_train_batch_size": ROWS_OF_A_STEP,
    "per_device_eval_batch_size": ROWS_OF_A_STEP,
    "gradient_accumulation_steps": ROWS_OF_A_STEP,
    "packing": "rows are packed as they are, without padding: batch.max_tokens=N is how much goes into one pass",
    "push_to_hub": "a model is uploaded by `alignment push RUN REPO`",
    "load_in_4bit": QUANTIZED,
    "load_in_8bit": QUANTIZED,
    "quantize": QUANTIZED,
    "quantization_config": QUANTIZED,
    "p_tuning": ENCODED,
    "prefix_tuning": PREFIXES,
    "p_tuning_v2": PREFIXES,
    "assistant_only_loss": "turns of the assistant alone carry loss; data.learn=last: the last alone",
    "completion_only_loss": "prompts carry no loss, as it is",
}


def meant(key: str, root: type, beside: list[str]) -> str:
    """` (did you mean 'train.learning_rate'?)`, of a key that the task of the config `root` has not; "" where nothing
    is near.

    Args:
        beside: the names that there are where the key was looked for.
    """
    group, _, last = key.rpartition(".")
    last = last.replace("-", "_")
    known = list(keys_of(root))
    wanted = SPELLINGS.get(key) or SPELLINGS.get(last) or ()
    found = next((each for each in wanted if each in known and each != key), None)
    if found is not None:
        return f" (did you mean {found!r}?)"
    if last in WAYS:
        return f" ({WAYS[last]})"
    near = nearest(last, beside, f"{group}." if group and "[" not in group else "")
    elsewhere = next((each for each in known if each.rpartition(".")[2] == last), None)
    return near if elsewhere is None or (group and near) else f" (did you mean {elsewhere!r}?)"


def as_override(words: list[str]) -> str:
    """`--lr 1e-5` or `--lr=1e-5`, the words of a flag that there is not, as key=value."""
    name, equals, value = words[0].lstrip("-").partition("=")
    name = name.replace("-", "_")
    key = FLAGS.get(name) or SPELLINGS.get(name, (name,))[0]
    given = value if equals else next((word for word in words[1:2] if not word.startswith("-")), "VALUE")
    return f"{key}={given}"


def keys_of(root: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config, those of its groups behind its own."""
    groups = _groups(root)
    yield from (f"{prefix}{field.name}" for field in fields(root) if field.name not in groups)
    for name, kind in groups.items():
        yield from keys_of(kind, f"{prefix}{name}.")


def groups_of(root: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Every group of keys of a config, by its dotted name, and its class."""
    for name, kind in _groups(root).items():
        yield f"{prefix}{name}", kind
        yield from groups_of(kind, f"{prefix}{name}.")


def _groups(root: type) -> dict[str, type]:
    hints = get_type_hints(root)
    return {field.name: hints[field.name] for field in fields(root) if is_dataclass(hints[field.name])}
