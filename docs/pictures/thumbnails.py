"""python docs/pictures/thumbnails.py: a small picture of each notebook, and the table in README.md.

Of each notebooks/NAME.ipynb the picture among its outputs that says most, as far as bytes tell (or
the one that CHOSEN counts), within 240 x 150 pixels on white: docs/pictures/NAME.png. Titles and
what they are about are those of notebooks/README.md.
"""

import base64
import io
import json
import re
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NOTEBOOKS = ROOT / "notebooks"
BEGIN, END = "<!-- notebooks:begin -->", "<!-- notebooks:end -->"
ROW = 4  # pictures beside each other
SIZE = (240, 150)
CHOSEN: dict[str, int] = {}  # notebook -> which of its pictures, from 0


def pictures(notebook: Path) -> list[bytes]:
    """The PNG files among the outputs, in order."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    found = [output.get("data", {}).get("image/png") for cell in cells
             for output in cell.get("outputs", ())]
    return [base64.b64decode("".join(data)) for data in found if data]


def thumbnail(data: bytes) -> Image.Image:
    """The picture within SIZE, in the middle of white."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.thumbnail(SIZE, Image.Resampling.LANCZOS)
    shown = Image.new("RGB", SIZE, "white")
    shown.paste(image, ((SIZE[0] - image.width) // 2, (SIZE[1] - image.height) // 2))
    return shown


def table() -> str:
    """The notebooks that are there, as HTML: Markdown has no pictures side by side."""
    listed = re.findall(r"^\| \[(.*?)\]\((\w+)\.ipynb\) \| (.*?) \|$",
                        (NOTEBOOKS / "README.md").read_text("utf-8"), re.MULTILINE)
    cells = [f'<td width="25%" valign="top"><a href="notebooks/{name}.ipynb">'
             f'<img src="docs/pictures/{name}.png" width="200" alt=""><br>{title}</a><br>{about}'
             "</td>"
             for title, name, about in listed if (NOTEBOOKS / f"{name}.ipynb").exists()]
    rows = ["\n".join(cells[i:i + ROW]) for i in range(0, len(cells), ROW)]
    return "<table>\n" + "\n".join(f"<tr>\n{row}\n</tr>" for row in rows) + "\n</table>"


def write_table() -> None:
    """Put the table between its marks in README.md."""
    path = ROOT / "README.md"
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", "utf-8")


def main() -> None:
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        found = pictures(notebook)
        most = max(range(len(found)), key=lambda i: len(found[i]))
        image = thumbnail(found[CHOSEN.get(notebook.stem, most)])
        image.quantize(128).save(HERE / f"{notebook.stem}.png", optimize=True)
    write_table()


if __name__ == "__main__":
    main()
