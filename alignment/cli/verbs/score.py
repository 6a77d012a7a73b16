"""The verb `score`."""

from pathlib import Path

from alignment.cli.parser import Parser, is_setting
from alignment.user_error import fail

PAGE = """usage: alignment score MODEL FILE [--out FILE] [key=value ...]

What a reward model gives the replies of a file, row by row: JSON lines in the order of the file, each row's own fields
kept. A pair gets chosen_score and rejected_score, and the share of pairs with the chosen one above is told at the end;
a prompt with a completion gets score. Scores are the model's own, not normalised (what PPO makes of them is
reward.normalize's to say). MODEL is a reward model's folder, the folder of a run that trained one, or a name on the
hub; texts are laid out by its own tokenizer and chat template.

  alignment score runs/reward pairs.jsonl > scored.jsonl
  alignment score runs/reward replies.jsonl --out scored.jsonl batch.max_tokens=16384

  --out FILE   write the rows there, and not to the standard output; what is said goes to the standard error
  key=value    how rows are read and batched: pairs.format=hh pairs.max_length=4096 pairs.on_bad_row=skip (such rows
               are left out) pairs.eval.limit=100 batch.max_tokens=16384 distributed.precision=bfloat16
"""


def main(arguments: list[str]) -> None:
    parser = Parser("score")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--out", type=Path)
    given = parser.parse_intermixed_args(arguments)

    words = [word for word in given.words if not is_setting(word)]
    if len(words) != 2:
        fail("score needs a reward model and a file of rows: alignment score MODEL FILE [--out FILE]")
    if given.out is not None and given.out.is_dir():
        fail(f"score: --out must be a file, got the folder {str(given.out)!r}")
    if given.out is not None and not given.out.parent.is_dir():
        fail(f"score: --out must be in a folder that is there, got {str(given.out)!r}")

    from alignment.cli.evaluation import as_typed, evaluation_config, set_to

    named = [set_to("reward", words[0]), set_to("pairs.eval.path", words[1])]
    config = evaluation_config("score", [*named, *as_typed([word for word in given.words if is_setting(word)])])

    from alignment.cli.looking import score_file

    score_file(config, given.out)
