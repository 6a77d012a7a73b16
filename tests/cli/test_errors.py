"""A mistake is one line on stderr with key, rule, value and nearest name, exit code 2, and nothing is started."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from alignment.cli.spellings import SPELLINGS as OTHERS
from alignment.cli.spellings import keys_of
from alignment.config.tasks import TASKS

MINE = "# mine\ndefaults:\n  - task: sft\n  - model: tiny\n  - data: toy\n  - _self_\n"

MARGIN = (
    r"data.margin.scale must be 'none' for a task that learns of no pairs with margins "
    r"\(data=native reads the same rows without their ratings\), got '(small|given)'"
)

COMMANDS = {
    "no command": ("", "usage: alignment VERB"),
    "verb": ("rn tiny_dpo", r"no such verb 'rn' \(did you mean 'run'\?\)"),
    "no recipe": ("run", "run needs a recipe"),
    "override for a recipe": ("run loss.beta=1", "run needs a recipe"),
    "recipe": ("run tiny_rewad", r"no recipe 'tiny_rewad' \(did you mean 'tiny_reward'\?\)"),
    "recipe's file": ("run own/mine.yaml", "no recipe file 'own/mine.yaml'"),
    "folder": ("run tiny_dpo --config-dir nowhere", "--config-dir must be a folder, got 'nowhere'"),
    "flag": ("run tiny_dpo --foo", "unrecognized arguments: --foo"),
    "flag's value": ("run tiny_dpo --cfg jobb", "invalid choice: 'jobb'"),
    "two flags": ("run tiny_dpo --cfg job -m", "not allowed with"),
    "resolve alone": ("run tiny_dpo --resolve", "--resolve goes with --cfg"),
    "flag of recipes": ("recipes --foo", "unrecognized arguments: --foo"),
    "top key": ("run tiny_dpo sead=1", r"tiny_dpo: no such key 'sead' \(did you mean 'seed'\?\)"),
    "nested key": ("run tiny_dpo loss.betaa=1", r"no such key 'loss.betaa' \(did you mean 'loss.beta'\?\)"),
    "deep key": ("run tiny_dpo model.lora.rnk=1", r"no such key 'model.lora.rnk' \(did you mean 'model.lora.rank'\?\)"),
    "prompt tuning": (
        "run tiny_dpo model.prompt_tuning.tokens=20",
        r"no such key 'model.prompt_tuning' \(did you mean 'model.soft_prompt.tokens'\?\)",
    ),
    "prefix tuning": (
        "run tiny_dpo model.prefix_tuning.tokens=20",
        r"no such key 'model.prefix_tuning' \(keys and values that a layer has of no token .*soft_prompt.tokens=N",
    ),
    "p-tuning": ("run tiny_dpo model.p_tuning=true", r"no such key 'model.p_tuning' \(P-tuning is model.soft_prompt"),
    "far key": ("run tiny_dpo loss.gamma=1", "no such key 'loss.gamma'; valid here: beta, label_smoothing, variant"),
    "+key": ("run tiny_dpo +loss.gamma=1", "no such key 'loss.gamma'; valid here: beta, label_smoothing, variant"),
    "+top key": ("run tiny_dpo +sead=1", r"no such key 'sead' \(did you mean 'seed'\?\)"),
    "++key": ("run tiny_dpo ++train.max_step=1", r"no such key 'train.max_step' \(did you mean 'train.max_steps'\?\)"),
    "renamed": ("run tiny_ppo ppo.replies=2", "tiny_ppo: no such key 'ppo.replies': it is num_samples now"),
    "renamed of rejection": ("run tiny_rejection samples=4", "no such key 'samples': it is num_samples now"),
    "renamed of evaluate": ("run tiny_evaluate +best_of=4", "no such key 'best_of': it is num_samples now"),
    "renamed into a group": (
        "run tiny_grpo missing_eos_penalty=1",
        "no such key 'missing_eos_penalty': it is reward.missing_eos_penalty now",
    ),
    "never of this task": ("run tiny_dpo samples=4", r"no such key 'samples' \(did you mean 'log.samples'\?\)$"),
    "renamed preset": ("run tiny_dpo data=world", r"data must be one of .*toy, .*, got 'world' \(it is toy now\)"),
    "renamed value": ("run tiny_dpo data.format=world", r"one of auto, native, .*, toy, got 'world' \(it is toy now\)"),
    "renamed function": (
        "run tiny_ppo gold=alignment.world.gold",
        "tiny_ppo: gold: alignment.world.gold is alignment.toy.gold now",
    ),
    "margin of scored replies": ("run tiny_reward_regression data=toy_graded", MARGIN),
    "margin of steps": ("run tiny_reward_process data=toy_graded", MARGIN),
    "margin of demonstrations": ("run tiny_sft data=toy_graded", MARGIN),
    "margin of labels": ("run tiny_kto data=toy_graded", MARGIN),
    "margin of prompts": ("run tiny_ppo data=toy_graded", MARGIN),
    "layers of rejection, which keep nothing": (
        "run tiny_rejection model.activation_offloading=true",
        "model.activation_offloading must be false for rejection, which trains nothing, got True",
    ),
    "margin of rejection's prompts": ("run tiny_rejection data.margin.scale=given", MARGIN),
    "margin of ptx": ("run tiny_ppo ptx.weight=1 ptx.data.format=toy ptx.data.margin.scale=given", "ptx." + MARGIN),
    "~key": ("run tiny_dpo ~loss.beta", "loss.beta can be set, not removed"),
    "~unknown key": ("run tiny_dpo ~loss.betaa", "no such key to remove: 'loss.betaa'"),
    "another task's key": ("run tiny_sft kl.weight=1", "no such key 'kl'"),
    "whole number": ("run tiny_dpo train.max_steps=abc", "train.max_steps must be a whole number, got 'abc'"),
    "fraction": ("run tiny_dpo train.max_steps=1.5", "train.max_steps must be a whole number, got '1.5'"),
    "number": ("run tiny_dpo loss.beta=big", "loss.beta must be a number, got 'big'"),
    "bool": ("run tiny_dpo log.progress=maybe", "log.progress must be true or false, got 'maybe'"),
    "new entry": (
        "run tiny_ppo -m reward.models.a.weight=1,2",
        r"reward\.models\.a is new here and must be given whole, in braces: reward\.models\.a=\{",
    ),
    "key of an entry": (
        "run tiny_ppo reward.function=null reward.models={a:{pth:x}}",
        r"no such key 'reward.models.a.pth' \(did you mean 'reward.models.a.path'\?\)",
    ),
    "file of an entry": (
        "run tiny_ppo reward.function=null reward.models={a:{path:gone}}",
        "reward.models.a.path: no such file or folder, got 'gone'",
    ),
    "list": ("run tiny_dpo train.betas=0.9", "train.betas must be a list, got 0.9"),
    "group": ("run tiny_dpo loss=1", "loss holds keys of its own, got 1"),
    "null": ("run tiny_dpo seed=null", "seed must have a value, got null"),
    "enum": ("run tiny_dpo loss.variant=sigmod", r"one of sigmoid, sigmoid_norm, .*, got 'sigmod' \(did you mean 's"),
    "nested enum": ("run tiny_dpo distributed.precision=fp8", "one of auto, float32, bfloat16, float16, got 'fp8'"),
    "tracker": (
        "run tiny_dpo log.trackers=[tensorbord]",
        r"log.trackers\[0\] must be .* \(did you mean 'tensorboard'\?\)",
    ),
    "missing file": (
        "run tiny_dpo data=native data.train.path=rows.jsonl",
        "data.train.path: no such file or folder, got 'rows.jsonl'",
    ),
    "missing model": (
        "run tiny_dpo model=pretrained model.path=gone",
        "model.path: no such file or folder, got 'gone'",
    ),
    "missing run": (
        "run tiny_evaluate runs={a:gone} baseline=a",
        "tiny_evaluate: runs.a: no such file or folder, got 'gone'",
    ),
    "no path": ("run tiny_dpo model=pretrained", "model.path must name a folder, .*got null"),
    "no data": ("run tiny_dpo data=native", "data.train.path is required, got null"),
    "required": ("run tiny_evaluate", r"tiny_evaluate: runs=\{name: FOLDER\} must name what replies, or .*, got \{\}$"),
    "no mapping": (
        "run tiny_reward_regression data.scores=[helpfulness]",
        r"data\.scores must hold keys and values, \{name: value\}, got a list",
    ),
    "list for a weight": (
        "run tiny_reward_regression data.scores={helpful:[1]}",
        r"data\.scores must map to finite weights other than 0, got \{'helpful': \[1\]\}",
    ),
    "text for a mapping": (
        "run tiny_reward_regression data.scores=helpfulness",
        r"data\.scores must hold keys and values, \{name: value\}, got 'helpfulness' \(str\)",
    ),
    "another method's name": ("run tiny_dpo loss.variant=kto_pair", r"got 'kto_pair'$"),
    "model preset": ("run tiny_dpo model=tinyy", r"model must be one of .*, got 'tinyy' \(did you mean 'tiny'\?\)"),
    "data preset": ("run tiny_dpo data=hh_rlfh", r"data must be one of .*, got 'hh_rlfh' \(did you mean 'hh_rlhf'\?\)"),
    "null preset": ("run tiny_dpo model=null", "model must be given the name of a preset"),
    "number for a preset": ("run tiny_dpo seed=1 model=4", "model must be given the name of a preset, got int"),
    "list for a name": (
        "run tiny_dpo distributed.precision=[bfloat16]",
        r"distributed\.precision must be one of auto, float32, bfloat16, float16, got \['bfloat16'\]$",
    ),
    "a list within a list": (
        "run tiny_dpo log.trackers=[[wandb]]",
        r"log\.trackers must be names, of .*wandb.*, got \[\['wandb'\]\]$",
    ),
    "a self within a list": (
        "run tiny_evaluate runs={m:x} baseline=m quantized=[[nf4]]",
        r"quantized must be names, of .*, got \[\['nf4'\]\]$",
    ),
    "no clipping": ("run tiny_dpo train.max_grad_norm=0", r"must be > 0 \(inf: no clipping\), got 0\.0"),
    "group typo": ("run tiny_dpo modell=tiny", r"no such key 'modell' \(did you mean 'model'\?\)"),
    "no value": ("run tiny_dpo loss.beta", "cannot read the override 'loss.beta': it must be key=value"),
    "open bracket": ("run tiny_dpo loss.beta=[1", r"cannot read the override 'loss.beta=\[1'"),
    "interpolation": ("run tiny_dpo seed=${sead}", "seed: Interpolation key 'sead' not found"),
    "sweep without -m": ("run tiny_dpo loss.beta=0.1,0.2", "'loss.beta=0.1,0.2' is a sweep: it needs -m"),
    "sweep's 2nd job": ("run tiny_dpo -m loss.beta=0.1,-1", "loss.beta must be > 0 and finite, got -1.0"),
    "sweep's 3rd job": ("run tiny_dpo -m seed=1,2 loss.variant=ipo,ippo", r"got 'ippo' \(did you mean 'ipo'\?\)"),
    "sweep's file": (
        "run tiny_dpo -m model=tiny,pretrained model.path=a",
        "model.path: no such file or folder, got 'a'",
    ),
    "flex_attention": (
        "run tiny_dpo model.attention=flex_attention",
        "model.attention=flex_attention needs distributed.device=cuda, got 'auto'",
    ),
    "what layers keep, beside no GPU": (
        "run tiny_dpo model.activation_offloading=true",
        "model.activation_offloading=true needs distributed.device=cuda: .* no other memory, got 'auto'",
    ),
    "what layers keep, under ZeRO 3": (
        "run tiny_dpo model.activation_offloading=true distributed.device=cuda distributed=zero3",
        "distributed.zero must be null, 0, 1 or 2 with model.activation_offloading=true, .*, got 3",
    ),
    "layers of a whole model": (
        "run tiny_ppo generation.gather=layer distributed=zero2",
        "generation.gather=layer needs distributed.zero=3, got 2",
    ),
    "sweep of no list": ("run tiny_dpo -m loss.beta=interval(0,1)", "does not support sweep type"),
    "--cfg": ("run tiny_dpo --cfg job loss.betaa=1", r"no such key 'loss.betaa' \(did you mean 'loss.beta'\?\)"),
    "cluster for run": ("run tiny_dpo cluster=slurm", "cluster must be local for `alignment run` .*, got 'slurm'"),
    "cluster in a sweep": ("run tiny_dpo -m cluster=local,slurm", "cluster must be local for `alignment run`"),
    "submit without a recipe": ("submit cluster=slurm", "submit needs a recipe"),
    "submit without a cluster": ("submit tiny_dpo", "cluster must be slurm for .*: add cluster=slurm, got 'local'"),
    "submit's key": (
        "submit tiny_dpo cluster=slurm loss.betaa=1",
        r"no such key 'loss.betaa' \(did you mean 'loss.beta'\?\)",
    ),
    "submit's value": ("submit tiny_dpo cluster=slurm loss.beta=-1", "loss.beta must be > 0 and finite, got -1.0"),
    "submit's file": (
        "submit tiny_dpo cluster=slurm model=pretrained model.path=gone",
        "model.path: no such file or folder, got 'gone'",
    ),
    "submit's cluster": ("submit tiny_dpo cluster=slrm", r"cluster must be one of local, slurm, got 'slrm' \(did"),
    "submit's sweep without -m": ("submit tiny_dpo cluster=slurm loss.beta=0.1,0.2", "is a sweep: it needs -m"),
    "sweep of clusters": (
        "submit tiny_dpo -m cluster=slurm cluster.nodes=1,2 distributed=zero1",
        "cluster must be the same in all jobs of a sweep",
    ),
    "sweep of folders": (
        "submit tiny_dpo -m cluster=slurm output_dir=a,b",
        "output_dir must be the same in all jobs of a sweep, which have subfolders, got 'b'",
    ),
    "sweep of pipelines": ("submit tiny_pipeline -m cluster=slurm seed=1,2", "a sweep or a pipeline, got a sweep of"),
    "dry run of run": ("run tiny_dpo --dry-run", "unrecognized arguments: --dry-run"),
    "status": ("status", "status needs a run's folder: alignment status RUN, its output_dir"),
    "logs": ("logs --rank 1", "logs needs a run's folder: alignment logs RUN, its output_dir"),
    "status of nothing": ("status gone", "no such folder 'gone'"),
    "status of an empty folder": ("status .", r"RUN must hold a run, a sweep or a pipeline, got '\.'"),
    "--help": ("run tiny_dpo --help model=tinyy", r"model must be one of .* \(did you mean 'tiny'\?\)"),
}

SPELLINGS = {  # what is known elsewhere or by habit: what is said of it
    "tiny_dpo lr=1e-5": "no such key 'lr' (did you mean 'train.learning_rate'?)",
    "tiny_dpo train.lr=1e-5": "no such key 'train.lr' (did you mean 'train.learning_rate'?)",
    "tiny_dpo learning_rate=1e-5": "(did you mean 'train.learning_rate'?)",
    "tiny_dpo num_train_epochs=1": "(did you mean 'train.epochs'?)",
    "tiny_dpo max_steps=1": "(did you mean 'train.max_steps'?)",
    "tiny_dpo train.steps=1": "(did you mean 'train.max_steps'?)",
    "tiny_dpo precompute_ref_log_probs=true": "(did you mean 'reference.cache'?)",
    "tiny_grpo use_vllm=true": "(did you mean 'generation.engine'?)",
    "tiny_dpo train.scheduler=cosine": "(did you mean 'train.schedule'?)",
    "tiny_dpo batch_size=8": "(did you mean 'batch.size'?)",
    "tiny_dpo train.per_device_train_batch_size=8": "(batch.size=N is of a whole step, over all processes; batch.max",
    "tiny_dpo optim=adamw": "no such key 'optim' (did you mean 'train.optimizer'?)",
    "tiny_dpo optimizer=lion": "(did you mean 'train.optimizer'?)",
    "tiny_dpo train.optimizer=adamw_bnb_8bit": "(did you mean 'adamw_8bit'?)",
    "tiny_dpo train.optimizer=paged_adamw_32bit": "(did you mean 'paged_adamw_8bit'?)",
    "tiny_dpo beta=0.1": "(did you mean 'loss.beta'?)",
    "tiny_grpo beta=0.1": "(did you mean 'kl.weight'?)",
    "tiny_grpo num_generations=4": "(did you mean 'num_samples'?)",
    "tiny_grpo max_completion_length=4": "(did you mean 'generation.max_new_tokens'?)",
    "tiny_ppo reward_model=FOLDER": "(did you mean 'reward.path'?)",
    "tiny_dpo gradient-checkpointing=true": "(did you mean 'model.gradient_checkpointing'?)",
    "tiny_dpo train.seed=1": "(did you mean 'seed'?)",
    "tiny_dpo model.lora.r=8": "(did you mean 'model.lora.rank'?)",
    "dpo data.path=FILE": "(did you mean 'data.train.path'?)",
    "dpo data.test.path=FILE": "no such key 'data.test' (did you mean 'data.eval.path'?)",
    "dpo data=FOLDER/a.jsonl": "; a folder, a file or a name on the hub is data.train.path=FOLDER/a.jsonl",
    "dpo model=Qwen/Qwen2.5-0.5B": "got 'Qwen/Qwen2.5-0.5B'; a folder, a file or a name on the hub is model.path=",
    "dpo data.train=a.jsonl": "data.train holds keys of its own, got 'a.jsonl'; did you mean data.train.path=a.jsonl?",
    "dpo data.train.mix={a:b.jsonl}": "mix.a holds keys of its own, got 'b.jsonl'; they are path, limit, join, ",
    "tiny_dpo loss=ipo": "loss holds keys of its own, got 'ipo'; they are beta, label_smoothing, variant",
    "tiny_dpo log.trackers=tensorboard": "got 'tensorboard'; one alone is written log.trackers=[tensorboard]",
    "tiny_dpo distributed.device=gpu": "one of auto, cpu, cuda, got 'gpu' (did you mean 'cuda'?)",
    "tiny_dpo train.schedule=constant_with_warmup": "(did you mean 'constant'?)",
    "tiny_dpo --learning_rate 1e-5": "(keys have no dashes before them, train.learning_rate=1e-5); `alignment run",
    "tiny_dpo --loss.beta=0.2": "(keys have no dashes before them, loss.beta=0.2);",
    "tiny_dpo -lr 1e-5": "(keys have no dashes before them, train.learning_rate=1e-5);",
    "tiny_dpo loss.beta = 0.2": "the override 'loss.beta': it must be key=value, without blanks",
    "tiny_dpo \u2014loss.beta=0.2": "it must be key=value, without blanks or dashes before it and about the =",
    "dpo own.yaml": "cannot read the override 'own.yaml': it must be key=value, as data.train.path=own.yaml",
    "DPO": "no recipe 'DPO' (did you mean 'dpo'?)",
    "a_run": "no recipe 'a_run': that is a run's folder: `alignment run a_run/config.yaml` goes on with it; "
    "model.path=a_run and `alignment chat a_run` take its model",
    "tiny_dpo model=pretrained model.path=https://huggingface.co/org/one": "(a page of the hub: its name is org/one)",
    "tiny_dpo model=pretrained model.path=gpt2": "no such file or folder, got 'gpt2' (on the hub it is org/name, or hf://gpt2)",
    "tiny_dpo model=pretrained model.path=a_rum": "no such file or folder, got 'a_rum' (did you mean 'a_run'?)",
    "tiny_dpo model=pretrained model.path=own.yaml": "model.path must be a model's folder, got the file 'own.yaml'",
    "tiny_dpo model=pretrained model.path=some.gguf": "got the file 'some.gguf'; a GGUF file has weights",
    "tiny_dpo model.path=away": "model.path: a link to 'gone/model', which is not there, got 'away'",
    "dpo model.path=model data.train.path=away": "data.train.path: a link to 'gone/model', which is not there, got",
    "dpo model.path=model data.train.path=p*.jsonl": "must be a file or a folder, which are read more than once (not a",
    "tiny_dpo reference.path=a_run": "reference.path must be the folder of a model, got 'a_run', that of a run that",
    "tiny_dpo model.adapter=": "model.adapter must name a file or a folder, got '' (null leaves it out, and . is the",
    "tiny_dpo model=pretrained model.path=": "model.path must name a file or a folder, got ''",
    "tiny_dpo reference.path=empty": "reference.path: no config.json in 'empty', which a model's folder holds",
    "tiny_dpo output_dir=own.yaml": "output_dir must be a folder that can be made and written, got 'own.yaml', where",
    "tiny_dpo output_dir=own.yaml/inside": "own.yaml' is a file",
}

VERBS = {  # another verb than run
    "tiny_dpo": "no such verb 'tiny_dpo' (did you mean `alignment run tiny_dpo`?)",
    "inspect own.yaml": "no such verb 'inspect' (did you mean 'data inspect'?)",
    "evaluate a_run": "evaluate needs prompts for its models: --data FILE",
    "evaluate a_run own.yaml": "MODEL must be a folder, got the file 'own.yaml'; rows are named by --data FILE",
    "evaluate empty --data own.yaml": "MODEL must be the folder of a run or of a model, got 'empty'",
    "chat empty": "MODEL must be the folder of a run or of a model, got 'empty'",
    "score own.yaml a_run": "MODEL must be a model's folder, got the file 'own.yaml'",
    "score a_run own.yaml --out empty": "score: --out must be a file, got the folder 'empty'",
    "push model org/name/more": "push: REPO must be name or org/name, of letters, digits",
    "push model https://huggingface.co/org/name": "push: REPO must be name or org/name, of letters, digits",
}

RULES = {  # dataclass: a command that breaks a rule of it
    "RunConfig": ("tiny_dpo seed=-1", "seed must be >= 0, got -1"),
    "TrainingConfig": (
        "tiny_dpo data.train.limit=null",
        "data.train.limit is required for data.format=toy, got null",
    ),
    "DistributedConfig": ("tiny_dpo distributed.zero=4", "distributed.zero must be null, 0, 1, 2 or 3, got 4"),
    "LaunchConfig": ("tiny_dpo launch.processes=0", "launch.processes must be > 0, got 0"),
    "ModelConfig": ("tiny_dpo model.init=null", "model.init must have a value, got null"),
    "LoraConfig": ("tiny_dpo model.lora.dropout=1", r"model.lora.dropout must be in \[0, 1\), got 1.0"),
    "SoftPromptConfig": ("tiny_dpo model.soft_prompt.tokens=-1", "model.soft_prompt.tokens must be >= 0, got -1"),
    "DataConfig": (
        "tiny_dpo data.max_prompt_length=128",
        "data.max_prompt_length must be below data.max_length=128, .*, got 128: set data.max_prompt_length=64 beside",
    ),
    "SourceConfig": ("tiny_dpo data.eval.limit=0", "data.eval.limit must be > 0, got 0"),
    "MixedSource": (
        "tiny_dpo data=native data.train.mix.a={path:x,weight:-1}",
        "data.train.mix.a.weight must be > 0 and finite .*, got -1.0",
    ),
    "TrainSource": ("tiny_dpo data.train.temperature=0", "data.train.temperature must be >= 0.1 .*, got 0.0"),
    "EvalSource": (
        "tiny_dpo data.eval.fraction=1 data.eval.limit=null",
        r"data.eval.fraction must be in \(0, 1\), a share of the training prompts, got 1.0",
    ),
    "MarginConfig": (
        "tiny_reward data.margin.scale=custom",
        "data.margin.scale=custom needs a margin for each rating, as .*, got {}",
    ),
    "BatchConfig": ("tiny_dpo batch.size=0", "batch.size must be > 0, got 0"),
    "TrainConfig": (
        "tiny_dpo train.max_steps=null",
        "exactly one of train.max_steps and train.epochs must be set .*, got",
    ),
    "CheckpointConfig": ("tiny_dpo checkpoint.keep=0", "checkpoint.keep must be > 0, got 0"),
    "ResumeConfig": ("tiny_dpo resume.accept=[kl,kl]", "resume.accept must hold keys of the config, each once, got .*"),
    "LogConfig": ("tiny_dpo log.every=0", "log.every must be > 0, got 0"),
    "ClusterConfig": ("tiny_dpo cluster=slurm cluster.nodes=0", "cluster.nodes must be > 0, got 0"),
    "GenerationConfig": ("tiny_ppo generation.top_p=1.1", r"generation.top_p must be in \(0, 1\], got 1.1"),
    "RopeConfig": (
        "tiny_dpo model.rope.rope_type=yarn model.rope.factor=0.5",
        r"model.rope.factor must be > 1 and finite, got 0.5",
    ),
    "VLLMConfig": ("tiny_ppo generation.vllm.port=0", r"generation.vllm.port must be in \[1, 65535\], got 0"),
    "RewardConfig": ("tiny_reward data=toy loss.margin_scale=2", "loss.margin_scale .* which is none, got 2.0"),
    "DPOConfig": (
        "tiny_dpo data=toy_graded loss.variant=ipo",
        "data.margin.scale must be none for loss.variant=ipo, whose loss has no margin, got .small.",
    ),
    "ORPOConfig": ("tiny_orpo data=toy_graded", "data.margin.scale must be none for orpo, .*, got .small."),
    "SimPOConfig": ("tiny_simpo data=toy_graded", "data.margin.scale must be none for simpo, .*, got .small."),
    "CPOConfig": ("tiny_cpo data=toy_graded", "data.margin.scale must be none for cpo, .*, got .small."),
    "ScorerConfig": (
        "tiny_ppo reward.path=.",
        "exactly one of reward.path, reward.function and reward.models must be set, got",
    ),
    "RewardShapingConfig": ("tiny_ppo reward.clip=0", "reward.clip must be > 0, or null for no clipping, got 0.0"),
    "PtxConfig": ("tiny_ppo ptx.weight=1", "ptx.data.train goes with a ptx.weight above 0, got 1.0"),
    "CriticConfig": ("tiny_ppo critic.learning_rate=0", "critic.learning_rate must be > 0 and finite, got 0.0"),
    "KLConfig": ("tiny_ppo kl.weight=-0.1", "kl.weight must be >= 0 and finite, got -0.1"),
    "AdvantageConfig": ("tiny_ppo advantage.lam=1.5", r"advantage.lam must be in \[0, 1\], got 1.5"),
    "PPOUpdateConfig": ("tiny_ppo ppo.epochs=0", "ppo.epochs must be > 0, got 0"),
    "AlarmConfig": ("tiny_ppo alarm.window=4", "alarm.window must be >= 5, got 4"),
    "PPOConfig": ("tiny_ppo ppo.mini_batches=65", r"ppo.mini_batches must be <= batch.size \(64\); set both, got 65"),
    "OnlineConfig": (
        "tiny_online_dpo reward.missing_eos_penalty=-1",
        "reward.missing_eos_penalty must be >= 0, got -1.0",
    ),
    "OnlineDPOConfig": ("tiny_online_dpo num_samples=1", "num_samples must be > 1: a pair is of two replies, got 1"),
    "BestConfig": ("tiny_sft train.best.metric=loss", "train.best.metric must be one of an evaluation, .*, got 'loss'"),
    "KTOLoss": ("tiny_kto loss.desirable_weight=-1", "desirable_weight must be > 0 and finite, got -1.0"),
    "RejectionConfig": ("tiny_rejection num_samples=1", "num_samples must be > 1, got 1"),
    "EvaluateConfig": ("tiny_evaluate runs={a:.} baseline=b", r"baseline must be one of \['a'\], got 'b'"),
    "PipelineConfig": ("tiny_pipeline stages=[]", r"stages must name at least one stage, got \[\]"),
    "DPOLoss": ("tiny_dpo loss.label_smoothing=0.7", r"loss.label_smoothing must be in \[0, 0.5\), got 0.7"),
    "ReferenceConfig": (
        "tiny_dpo reference.cache=false reference.folder=here",
        "reference.folder needs reference.cache=true, got 'here'",
    ),
    "ORPOLoss": ("tiny_orpo loss.weight=-1", "loss.weight must be .*, got -1.0"),
    "SimPOLoss": ("tiny_simpo loss.gamma=-1", "loss.gamma must be >= 0 and finite, got -1.0"),
    "CPOLoss": ("tiny_cpo loss.cpo_alpha=-1", "loss.cpo_alpha must be >= 0 and finite, got -1.0"),
    "MarginRankingLoss": ("tiny_reward loss.center=-1", "loss.center must be .*, got -1.0"),
    "PolicyLoss": ("tiny_ppo loss.policy.clip=-1", r"loss.policy.clip must be in \(0, 1\), got -1.0"),
    "ValueLoss": ("tiny_ppo loss.value.clip=-1", "loss.value.clip must be .*, got -1.0"),
}

RECIPES = {  # a recipe of the user's
    "key": (MINE + "losss: {}\n", r"mine: no such key 'losss' \(did you mean 'loss'\?\)"),
    "nested key": (
        MINE + "train: {max_step: 3}\n",
        r"mine: no such key 'train.max_step' \(did you mean 'train.max_steps'\?\)",
    ),
    "dotted key": (MINE + "train.max_steps: 3\n", "no such key 'train.max_steps'"),
    "target": (MINE + "train: {_target_: os.getcwd}\n", "no such key 'train._target_'"),
    "type": (MINE + "train: {max_steps: ten}\n", "train.max_steps must be a whole number, got 'ten'"),
    "no task": ("seed: 1\n", "mine: a recipe's defaults must name its task, one of sft, reward, .*, got none"),
    "empty": ("", "mine: a recipe's defaults must name its task"),
    "list": ("- task: sft\n", "mine: a recipe must hold keys and values, got a list"),
    "task": ("defaults:\n  - task: sftt\n", r"task must be one of .*, got 'sftt' \(did you mean 'sft'\?\)"),
    "preset": ("defaults:\n  - task: sft\n  - model: tinyy\n", r"model must be one of .* \(did you mean 'tiny'\?\)"),
    "group": ("defaults:\n  - task: sft\n  - modell: tiny\n", "no group 'modell'"),
    "no defaults": ("defaults: 3\n", "defaults must be a list"),
    "bracket": (MINE + "train: {max_steps: 3\nseed: 1\n", r"own/mine.yaml:8: not YAML: expected ',' or '}'"),
    "tab": (MINE + "train:\n\tmax_steps: 3\n", r"own/mine.yaml:8: not YAML: found character '\\t'"),
    "twice": (MINE + "seed: 1\nseed: 2\n", "own/mine.yaml:8: not YAML: found duplicate key seed"),
    "value for a group": (
        MINE + "model: {lora: 4}\n",
        "mine: model.lora holds keys of its own, got 4; they are rank, ",
    ),
    "list for a group": (MINE + "model: {lora: [4]}\n", "mine: model.lora must hold keys and values, got a list$"),
    "path for a group": (
        MINE + "data: {train: a.jsonl}\n",
        r"mine: data.train holds keys of its own, got a.jsonl; did you mean data.train.path=a.jsonl\?",
    ),
    "no step": (MINE, r"exactly one of train.max_steps and train.epochs must be set \(.*=null\), got \(null, null\)"),
    "no _self_": ("defaults:\n  - task: sft\nseed: -1\n", "model.path must name a folder"),
}

CLUSTER = {  # overrides of cluster=slurm
    "nodes alone": ("cluster=local cluster.nodes=2", "cluster.nodes needs cluster=slurm, got 2"),
    "list alone": ("cluster=local cluster.modules=[cuda]", r"cluster.modules needs cluster=slurm, got \['cuda'\]"),
    "tasks": ("cluster.tasks_per_node=0", "cluster.tasks_per_node must be > 0, got 0"),
    "gpus": ("cluster.gpus_per_node=-1", "cluster.gpus_per_node must be >= 0, got -1"),
    "time": ("cluster.time=43200", r"cluster.time must be .*MM:SS \(in YAML in quotes\), got '43200'"),
    "memory": ("cluster.mem=64GB", "cluster.mem must be a number with K, M, G or T behind it, got '64GB'"),
    "signal": ("cluster.signal_before_end=-1", r"cluster.signal_before_end must be in \[0, 65535\], got -1"),
    "two lines": ("cluster.partition='a\n#SBATCH --qos=b'", "cluster.partition must be one line without double quotes"),
    "nothing": ("cluster.partition=''", "cluster.partition must be one line without double quotes, got ''"),
    "containers": (
        "cluster.container=a.sqsh cluster.prefix=b",
        r"one of cluster.container and cluster.prefix may be set, got \('a.sqsh', 'b'\)",
    ),
    "mounts": ("cluster.container_mounts=[a:b]", r"container_mounts needs cluster.container, got \['a:b'\]"),
    "variable": ("cluster.environment={a-b: 1}", "cluster.environment must have the names of variables, got 'a-b'"),
    "rank": ("cluster.environment.RANK=1", "cluster.environment must not set RANK, .*: the script does, got 'RANK'"),
    "option": ("cluster.extra=[exclusive]", "cluster.extra must hold options as --name or --name=value.*'exclusive'"),
    "option with a key": ("cluster.extra=['--nodes=4']", "must not hold what has a key of its own, got '--nodes=4'"),
    "option of the script": ("cluster.extra=['--array=1-4']", "must not hold what the script sets, got '--array=1-4'"),
    "key": ("cluster.node=2", r"no such key 'cluster.node' \(did you mean 'cluster.nodes'\?\)"),
}

SFT = "{name: a, recipe: tiny_sft}"
STAGES = {  # of a user's pipeline
    "later": (
        "{name: a, recipe: tiny_dpo, set: {model.path: '@b/model'}}, {name: b, recipe: tiny_sft}",
        r"stage a: model.path must refer to an earlier stage or one of inputs \(there is none\), got '@b/model'",
    ),
    "itself": (
        SFT + ", {name: b, recipe: tiny_dpo, set: {model.path: '@b/model'}}",
        r"stage b: model.path must refer to an earlier stage or one of inputs \(a\), got '@b/model'",
    ),
    "key": (
        SFT + ", {name: b, recipe: tiny_dpo, set: {loss.betaa: 1}}",
        r"stage b: no such key 'loss.betaa' \(did you mean 'loss.beta'\?\)",
    ),
    "value": (
        SFT + ", {name: b, recipe: tiny_dpo, set: {loss.beta: -1}}",
        "stage b: loss.beta must be > 0 and finite, got -1.0",
    ),
    "recipe": (
        SFT + ", {name: b, recipe: tiny_rewad}",
        r"stage b: no recipe 'tiny_rewad' \(did you mean 'tiny_reward'\?\)",
    ),
    "file": (
        SFT + ", {name: b, recipe: tiny_sft, set: {data: native, data.train.path: gone}}",
        "stage b: data.train.path: no such file or folder, got 'gone'",
    ),
    "names": (
        SFT + ", {name: a, recipe: tiny_dpo}",
        r"stages must have different names, got \['a', 'a'\]",
    ),
    "no recipe": ("{name: a}", "recipe is required, got nothing"),
    "stage's key": ("{name: a, recipe: tiny_sft, sett: {}}", r"no such key 'sett' \(did you mean 'set'\?\)"),
    "cluster": (
        "{name: a, recipe: tiny_sft, set: {cluster: slurm}}",
        "stage a: cluster must be local for `alignment run` .*, got 'slurm'",
    ),
    "pipeline": (
        "{name: a, recipe: tiny_pipeline}",
        "stage a: recipe must not be a pipeline itself, got 'tiny_pipeline'",
    ),
}


def refused(command: Callable[..., Any], words: list[str], pattern: str, folder: Path) -> None:
    """The command says one line that matches, ends with 2 and leaves the folder as it was."""
    before = set(folder.rglob("*"))
    ended = command(*words)
    assert ended.code == 2
    assert ended.out == ""
    assert re.search(pattern, "\n".join(ended.err)), ended.err
    if words:
        assert len(ended.err) == 1 and ended.err[0].startswith("alignment: "), ended.err
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize("case", COMMANDS)
def test_command(case: str, alignment: Callable[..., Any], tmp_path: Path) -> None:
    words, pattern = COMMANDS[case]
    refused(alignment, words.split(), pattern, tmp_path)


def laid_out(folder: Path) -> None:
    """Files that are taken for others."""
    (folder / "own.yaml").write_text("{}")
    (folder / "some.gguf").write_bytes(b"GGUF")
    for name in ("a_run", "empty", "model"):
        (folder / name).mkdir()
    (folder / "a_run" / "config.yaml").write_text("{}")
    (folder / "away").symlink_to("gone/model")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(b"")


@pytest.mark.parametrize("words", SPELLINGS)
def test_what_is_known_by_another_name_is_answered_with_ours(
    words: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    laid_out(tmp_path)
    refused(alignment, ["run", *words.split()], re.escape(SPELLINGS[words]), tmp_path)


@pytest.mark.parametrize("words", VERBS)
def test_verb(words: str, alignment: Callable[..., Any], tmp_path: Path) -> None:
    laid_out(tmp_path)
    refused(alignment, words.split(), re.escape(VERBS[words]), tmp_path)


def test_the_keys_that_other_spellings_lead_to_are_there() -> None:
    known = {key for root in TASKS.values() for key in keys_of(root)}
    assert {key for keys in OTHERS.values() for key in keys} <= known


@pytest.mark.parametrize("case", RULES)
def test_value_out_of_range(case: str, alignment: Callable[..., Any], tmp_path: Path) -> None:
    words, pattern = RULES[case]
    refused(alignment, ["run", *words.split()], pattern, tmp_path)


@pytest.mark.parametrize("case", CLUSTER)
def test_cluster(case: str, alignment: Callable[..., Any], tmp_path: Path) -> None:
    words, pattern = CLUSTER[case]
    chosen = [] if words.startswith("cluster=") else ["cluster=slurm"]
    refused(alignment, ["submit", "tiny_dpo", *chosen, *re.split(" (?=cluster)", words)], pattern, tmp_path)


@pytest.mark.parametrize(("task", "what"), {"dpo": "a run of dpo", "evaluate": "an evaluation", "": "a run"}.items())
@pytest.mark.parametrize(
    "words",
    ["tiny_dpo model.path=out", "tiny_dpo reference.path=out", "tiny_ppo reward.function=null reward.path=out"],
)
def test_a_run_without_a_model_in_the_place_of_one(
    words: str, task: str, what: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text(f"defaults:\n  - task: {task}\n" if task else "seed: 1\n")
    key = words.split()[-1].partition("=")[0]
    pattern = rf"{key} must be the folder of a model, got 'out', that of {what}[ ,]"
    refused(alignment, ["run", *words.split()], pattern, tmp_path)


def dataclasses_of(root: type) -> Iterator[type]:
    """The dataclass, those it inherits from, and those of its fields."""
    yield from (base for base in root.__mro__ if is_dataclass(base))
    for hint in get_type_hints(root).values():
        for part in (hint, *get_args(hint)):
            if is_dataclass(part):
                yield from dataclasses_of(part)


def test_every_dataclass_with_rules_is_in_the_table() -> None:
    found = {part for root in TASKS.values() for part in dataclasses_of(root)}
    assert {part.__name__ for part in found if "__post_init__" in vars(part)} == set(RULES)


@pytest.mark.parametrize("case", RECIPES)
def test_recipe_of_the_user(
    case: str, alignment: Callable[..., Any], own: Callable[[str, str], str], tmp_path: Path
) -> None:
    text, pattern = RECIPES[case]
    refused(alignment, ["run", own("mine", text)], pattern, tmp_path)


@pytest.mark.parametrize("case", STAGES)
def test_pipeline_is_checked_before_its_first_stage(
    case: str, alignment: Callable[..., Any], own: Callable[[str, str], str], tmp_path: Path
) -> None:
    stages, pattern = STAGES[case]
    text = f"# mine\ndefaults:\n  - task: pipeline\n  - _self_\nstages: [{stages}]\n"
    refused(alignment, ["run", own("mine", text)], pattern, tmp_path)
