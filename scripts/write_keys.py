"""Write the page of all keys, `recipes/keys.md`, from the dataclasses that hold them."""

from pathlib import Path

from alignment.cli.keys import keys_page

if __name__ == "__main__":
    (Path(__file__).parents[1] / "recipes" / "keys.md").write_text(keys_page())
