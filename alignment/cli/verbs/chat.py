"""The verb `chat`."""

from alignment.cli.parser import Parser, is_setting
from alignment.user_error import fail

PAGE = """usage: alignment chat MODEL [--system TEXT] [--temperature T] [--max-new-tokens N] [--seed N] [key=value ...]

Talk to a model in the terminal, turn by turn, in its own chat template. MODEL is a run's folder, a model's or an
adapter's folder, or a name on the hub. A line is a turn, and its reply is shown as it is written; of a pipe each line
is one, and the replies alone are printed, each when it is whole:

  alignment chat runs/dpo
  printf 'What is a cow?\\nAnd a calf?\\n' | alignment chat runs/dpo --seed 1

  /reset                begin anew: the model forgets what was said, the system turn stays
  //word                says /word to the model, for a line that begins with a slash is a command
  /exit                 end, as Ctrl-C and Ctrl-D do

  --system TEXT         the turn that the dialogue begins with
  --temperature T       of the draws; 0.7. generation.top_k=1 takes the likeliest token each time
  --max-new-tokens N    the longest reply, in tokens; 512
  --seed N              of the draws; 0. The same words with the same seed get the same replies
  key=value             more of how replies are drawn: generation.top_p=0.9 distributed.precision=bfloat16
"""


def main(arguments: list[str]) -> None:
    parser = Parser("chat")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--system")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_intermixed_args(arguments)

    models = [word for word in given.words if not is_setting(word)]
    if len(models) != 1:
        fail("chat needs one model: alignment chat MODEL")

    from alignment.cli.evaluation import as_typed, evaluation_config, set_to

    settings = [
        set_to("runs", {"model": models[0]}),
        "data=toy",  # a config of the recipe has rows; a chat reads none
        set_to("generation.temperature", given.temperature),
        set_to("generation.max_new_tokens", given.max_new_tokens),
        set_to("seed", given.seed),
    ]
    config = evaluation_config("chat", [*settings, *as_typed([word for word in given.words if is_setting(word)])])

    from alignment.cli.looking import chat_with

    chat_with(config, given.system)
