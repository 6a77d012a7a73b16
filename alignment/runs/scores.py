"""What an evaluation found prompt by prompt: `scores.jsonl`, one JSON object a line, so that evaluations can be paired.

Each line has a `part`, a `method` (the run's name in that evaluation), an `id`, and numbers; a number that does not
exist has no key. Two evaluations measured the same where part and id agree: an id is made of the text alone.

    replies     id of the prompt           gold, reward, kl (nats), length (tokens), finished (bool)
    completions id of prompt and completion  nll (nats, summed over its tokens), tokens, bytes; of a quantised self kl
                (nats, summed, of each next token from the full model's) and same (tokens that both hold the likeliest)
    pairs       id of prompt, chosen, rejected  chosen, rejected (the reward model's scores, or a language model's
                log-probs), correct (0 or 1)
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignment.config.errors import UserError
from alignment.runs.written import whole_file

PARTS = ("replies", "completions", "pairs")


def text_id(*texts: object) -> str:
    """Of turns or texts, the same in every evaluation that has them, whatever file and tokenizer they came from."""
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:16]


def write_scores(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows with part, method and id in front; an id that a method has several times is numbered from its second on, by
    the order of the rows: `id#2`."""
    seen: Counter[tuple[str, str, str]] = Counter()
    with whole_file(path) as beside, beside.open("w") as file:
        for row in rows:
            key = row["part"], row["method"], row["id"]
            seen[key] += 1
            number = seen[key]
            whole = row if number == 1 else {**row, "id": f"{row['id']}#{number}"}
            file.write(json.dumps({name: value for name, value in whole.items() if value is not None}) + "\n")


def read_scores(path: Path) -> list[dict[str, Any]]:
    """The rows of a `scores.jsonl`.

    Raises:
        UserError: the file cannot be read, or a line is not what an evaluation writes; names the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number} is no JSON ({error}), got {line[:80]!r}") from error
        if not isinstance(row, dict) or not {"part", "method", "id"} <= row.keys():
            raise UserError(f"{path}:{number} must be a JSON object with part, method and id, got {line[:80]!r}")
        rows.append(row)
    return rows
