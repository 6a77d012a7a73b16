"""The verb `data`, of one part: `data inspect`."""

from alignment.cli.parser import Parser, is_setting
from alignment.user_error import fail, nearest

PAGE = """usage: alignment data inspect FILE [--eval FILE] [key=value ...]

What is in a file of rows, as a run would read it: layout, columns and which are not read, lengths against the limits,
ratings and labels, rows and prompts that come twice, prompts that train and eval share, rows that break a rule, and
three rows laid out, the tokens that carry loss marked. Nothing is written.

  alignment data inspect pairs.jsonl                                characters, and the layout of a plain template
  alignment data inspect pairs.jsonl model.path=FOLDER              tokens, in that model's tokenizer and template
  alignment data inspect train.jsonl --eval test.jsonl              prompts that both have
  alignment data inspect rows.csv data.columns.chosen=better data.max_length=2048
  alignment data inspect train.jsonl data.eval.fraction=0.1         what would be held out of it

  FILE             whatever data.train.path takes: a file, a folder, a pattern, a name on the hub
  --eval FILE      held-out rows, as data.eval.path takes them
  key=value        data=PRESET, data.KEY, model.path, model.tokenizer, as a recipe has them
"""


def main(arguments: list[str]) -> None:
    if not arguments:
        fail("data needs its one part and a file: alignment data inspect FILE")
    part, *rest = arguments
    if part != "inspect":
        fail(f"data: no such verb {part!r}{nearest(part, ['inspect'])}; `alignment data --help` shows what there is")
    parser = Parser("data inspect")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--eval")
    given = parser.parse_intermixed_args(rest)

    files = [word for word in given.words if not is_setting(word)]
    own = [word for word in given.words if is_setting(word)]
    named = any(word.startswith(("data.train.path=", "data.train.mix=")) for word in own) or "data=toy" in own
    if len(files) > 1 or (not files and not named):
        fail("data inspect needs one file of rows: alignment data inspect FILE")

    from alignment.cli.evaluation import as_typed, set_to
    from alignment.cli.looking import inspect_rows

    overrides = [set_to("data.train.path", file) for file in files]
    overrides += [] if given.eval is None else [set_to("data.eval.path", given.eval)]
    inspect_rows([*overrides, *as_typed(own)])
