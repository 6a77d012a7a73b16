"""Write the pages of all keys and all metrics, `recipes/keys.md` and `recipes/metrics.md`, from the code."""

from pathlib import Path

from alignment.cli.reference_pages import keys_page, metrics_page

PAGES = {"keys.md": keys_page, "metrics.md": metrics_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (Path(__file__).parents[1] / "recipes" / name).write_text(page())
