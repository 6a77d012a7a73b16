"""The verb `plan`."""

from alignment.cli.composed import FLAGS, read_words
from alignment.cli.parser import Parser
from alignment.user_error import fail

PAGE = f"""usage: alignment plan RECIPE [key=value ...] [flags]

Whether that run fits, and on how many GPUs: the memory of each process, by role and by what it is for, of the CPU and
of the disk, and what a step computes. Counted in seconds on tensors without numbers: of a model its config.json is
read, and no weights.

  alignment plan tiny_dpo                                   on this machine, as its memory is now
  alignment plan dpo model.path=FOLDER --for 8xA100-80GB    on others; of any card by its memory: --for 1x24GB
  alignment plan dpo_24gb model=llama-3-8b --for 1x24GB     of a preset's model, whose shape is shipped: without the hub
  alignment plan ppo --shape llama-3-8b --for 8x80GB        of a shape that is shipped, of llama-2-7b, -13b, -70b,
                                                            llama-3-8b, -70b, or of a preset

{FLAGS}  --for NxCARD         N GPUs of A100-80GB, A100-40GB, H100-80GB, H200-141GB, A10-24GB, 4090-24GB, or of 24GB
  --shape NAME         the model, and the reward model where the recipe leaves it open
  --mfu SHARE          of a card's best, at which a step computes: 0.4
"""


def main(arguments: list[str]) -> None:
    parser = Parser("plan")
    parser.add_argument("--for", dest="wanted")
    parser.add_argument("--shape")
    parser.add_argument("--mfu", type=float)
    words = read_words(parser, arguments)
    if words is None:
        return
    given = words.flags
    if given.multirun:
        fail("plan takes one run, got -m")
    if given.mfu is not None and not 0 < given.mfu <= 1:
        fail(f"--mfu must be in (0, 1], got {given.mfu:g}")

    from alignment.cli.plan import plan_recipe

    plan_recipe(words.recipe, words.overrides, words.folders, wanted=given.wanted, shape=given.shape, mfu=given.mfu)
