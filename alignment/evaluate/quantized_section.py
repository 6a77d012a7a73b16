"""The report's part on a model beside its quantised selves."""

from html import escape

from alignment.evaluate import page
from alignment.evaluate.columns import mark
from alignment.evaluate.metrics import Interval
from alignment.evaluate.quantized import quantized_columns, quantized_notes, rows_of, title_of
from alignment.evaluate.results import QuantizedResults


def quantized_section(results: QuantizedResults) -> str:
    """HTML."""
    columns = quantized_columns(results)
    texts = [column.texts() for column in columns]
    body = []
    for index, row in enumerate(rows_of(results)):
        cells = [page.cell(row.name)]
        for column, text in zip(columns, texts, strict=True):
            value = column.cells[index]
            cells.append(page.cell(*text[index], html=mark_html(value) if column.is_difference else ""))
        body.append(cells)
    headings = [page.heading_cell("Held as")] + [page.heading_cell(column.title, column.unit) for column in columns]
    what = "In brackets: 95% confidence interval, of shares of pairs Wilson's, else a percentile bootstrap over rows."
    notes = [page.note(line) for line in (*quantized_notes(results), what)]
    return page.section(title_of(results), page.table(headings, body), *notes)


def mark_html(difference: Interval | float | None) -> str:
    """Whether the interval of a difference excludes 0; nothing of what has none."""
    if not isinstance(difference, Interval):
        return ""
    kind = "" if not difference.excludes_zero else " up" if difference.low > 0 else " down"
    return f'<span class="mark{kind}">{escape(mark(difference))}</span>'
