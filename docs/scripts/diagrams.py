"""Draw the diagrams of docs/how-it-works.md.

    python docs/scripts/diagrams.py
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

IMAGES = Path(__file__).parents[1] / "images"
COLOURS = ("#2f6fae", "#d1603d", "#3a8a4d", "#8a63b0", "#b08a2e", "#3a8a95")
PADDING, INK, PALE = "#eceff2", "#24292f", "#57606a"
# Tokens of each text of the batch.
LENGTHS = (3, 3, 5, 5, 9, 12)
CELL = 22


class Drawing:
    """An SVG picture on a white ground."""

    def __init__(self, width: int, height: int, title: str) -> None:
        """Begin an empty picture.

        Args:
            width: in pixels.
            height: in pixels.
            title: what a screen reader says.
        """
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
            f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, fill: str, radius: int = 2) -> None:
        """Draw a filled rectangle."""
        self.parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}"/>')

    def text(self, x: float, y: float, words: str, size: int = 13, fill: str = INK, **style: str) -> None:
        """Write a line, its baseline beginning at (x, y) unless `anchor` says otherwise."""
        more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
        self.parts.append(f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}"{more}>{escape(words)}</text>')

    def line(self, points: str, end: bool = False) -> None:
        """Draw a line through points, with an arrowhead at its end on request."""
        self.parts.append(f'<polyline points="{points}" fill="none" stroke="{PALE}" stroke-width="1.5"/>')
        if end:
            x, y = map(float, points.split()[-1].split(","))
            self.parts.append(f'<path d="M{x},{y} l-7,-4 v8 z" fill="{PALE}"/>')

    def save(self, name: str) -> None:
        """Write the picture."""
        (IMAGES / name).write_text("\n".join([*self.parts, "</svg>\n"]), encoding="utf-8")


def packed_batch() -> None:
    """A batch with padding above, and the same batch without it below."""
    real, longest = sum(LENGTHS), max(LENGTHS)
    width = 2 * 20 + real * CELL
    picture = Drawing(width, 356, "A padded batch, and the same texts packed side by side")
    padded = longest * len(LENGTHS)
    picture.text(20, 32, "Padded: every text as long as the longest", 15, font_weight="600")
    for row, length in enumerate(LENGTHS):
        for column in range(longest):
            fill = COLOURS[row] if column < length else PADDING
            picture.box(20 + column * CELL, 46 + row * CELL, CELL - 2, CELL - 2, fill)
    x = 40 + longest * CELL
    picture.text(x, 98, f"{padded} tokens are computed,")
    picture.text(x, 118, f"{real} of them are text.")
    top = 46 + len(LENGTHS) * CELL + 44
    picture.text(20, top, "Packed: the tokens side by side, equal lengths together", 15, font_weight="600")
    place = 0
    for row, length in enumerate(LENGTHS):
        for _ in range(length):
            picture.box(20 + place * CELL, top + 14, CELL - 2, CELL - 2, COLOURS[row])
            place += 1
    place = 0
    for length, group in groupby(LENGTHS):
        count = len(list(group))
        left, right = 20 + place * CELL, 18 + (place + count * length) * CELL
        picture.line(f"{left},{top + 44} {left},{top + 51} {right},{top + 51} {right},{top + 44}")
        texts = "1 text" if count == 1 else f"{count} texts"
        picture.text((left + right) / 2, top + 68, f"{texts} of {length}", 12, PALE, text_anchor="middle")
        place += count * length
    picture.text(20, top + 94, f"Linear layers: one matrix product over all {real} tokens.", 13)
    picture.text(20, top + 114, "Attention: one pass for each length. No token is padding.", 13)
    picture.save("packed_batch.svg")


def pipeline() -> None:
    """The way of a text, from a database to its vector."""
    picture = Drawing(860, 190, "From a text to its vector")
    steps = (
        ("tokenizer", "prompt, ids, limit"),
        ("packing", "no padding"),
        ("encoder", "MLX: CPU or GPU"),
        ("pooling", "cls, mean, last"),
        ("cut, normalize", "dimension, length 1"),
        ("vectors", "float32 NumPy"),
    )
    for row, host in enumerate(("Chroma", "LanceDB", "your code")):
        picture.box(20, 22 + row * 52, 92, 40, "#eceff2", 6)
        picture.text(66, 47 + row * 52, host, text_anchor="middle")
        picture.line(f"112,{42 + row * 52} 128,{42 + row * 52} 128,94 144,94", end=row == 1)
    picture.box(144, 68, 104, 52, COLOURS[0], 6)
    picture.text(196, 91, "service", 13, "#fff", text_anchor="middle", font_weight="600")
    picture.text(196, 108, "one queue", 11, "#fff", text_anchor="middle")
    picture.line("248,94 258,94 258,56 268,56", end=True)
    picture.line("749,82 749,97 258,97 258,138 268,138", end=True)
    for column, (name, note) in enumerate(steps):
        x = 268 + column % 3 * 198
        y = 30 if column < 3 else 112
        picture.box(x, y, 170, 52, "#dbe7f3", 6)
        picture.text(x + 85, y + 23, name, text_anchor="middle", font_weight="600")
        picture.text(x + 85, y + 40, note, 11, PALE, text_anchor="middle")
        if column % 3 != 2:
            picture.line(f"{x + 170},{y + 26} {x + 198},{y + 26}", end=True)
    picture.save("pipeline.svg")


if __name__ == "__main__":
    packed_batch()
    pipeline()
