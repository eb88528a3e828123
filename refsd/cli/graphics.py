"""Pictures as the bytes that terminals take: kitty's and iTerm2's protocols, sixel, half blocks.

Each function gives the text that shows an image in so many columns and rows, from the cursor on.

    kitty     sw.kovidgoyal.net/kitty/graphics-protocol
    iTerm2    iterm2.com/documentation-images.html
    sixel     DEC, VT330/340 Programmer Reference Manual, volume 2, chapter 14
"""

import base64
import os
from itertools import groupby
from typing import Any

from refsd.cli.png import encode_png

ESC = "\x1b"
END = f"{ESC}\\"  # of a string of the terminal's
CELL = (10, 20)  # pixels of a character, wide and high, where the terminal does not say
PALETTE = 64


def kitty(image: Any, columns: int, rows: int, cell: Any = None) -> str:
    """A PNG in pieces of 4096 characters; one image a process, which replaces the last one."""
    data = base64.b64encode(encode_png(image, {})).decode()
    pieces = [data[i:i + 4096] for i in range(0, len(data), 4096)]
    first = f"a=T,f=100,q=2,C=1,i={os.getpid()},c={columns},r={rows},"
    return "".join(f"{ESC}_G{'' if i else first}m={int(i + 1 < len(pieces))};{piece}{END}"
                   for i, piece in enumerate(pieces))


def iterm2(image: Any, columns: int, rows: int, cell: Any = None) -> str:
    """A PNG as an inline file."""
    data = encode_png(image, {})
    return (f"{ESC}]1337;File=inline=1;size={len(data)};width={columns};height={rows};"
            f"preserveAspectRatio=0:{base64.b64encode(data).decode()}\a")


def sixel(image: Any, columns: int, rows: int, cell: Any = None) -> str:
    """Bands of six rows; in each every colour's pixels, as columns of six bits, run by run."""
    import numpy as np

    wide, high = cell or CELL
    size = (columns * wide, max(6, rows * high // 6 * 6))  # no more than the rows that are there
    shown = image.resize(size).quantize(PALETTE)
    colours = np.reshape(shown.getpalette()[:3 * PALETTE], (-1, 3))
    pixels = np.asarray(shown)
    found = [f'{ESC}P0;1;0q"1;1;{size[0]};{size[1]}']
    found += [f"#{i};2;{r * 100 // 255};{g * 100 // 255};{b * 100 // 255}"
              for i, (r, g, b) in enumerate(colours.tolist())]
    bits = 1 << np.arange(6)[:, None]
    for band in pixels.reshape(-1, 6, size[0]):
        for colour in np.unique(band).tolist():
            columns_of_six = ((band == colour) * bits).sum(0) + 63
            found.append(f"#{colour}{_runs(columns_of_six.tolist())}$")
        found.append("-")
    return "".join(found) + END


def blocks(image: Any, columns: int, rows: int, cell: Any = None, *, true: bool = True) -> str:
    """Upper half blocks: two pixels a character, one its colour and one its background."""
    import numpy as np

    pixels = np.asarray(image.resize((columns, 2 * rows))).astype(int)
    lines = []
    for top, bottom in zip(pixels[::2].tolist(), pixels[1::2].tolist()):
        cells = (f"{ESC}[38;{_colour(a, true)};48;{_colour(b, true)}m\u2580"
                 for a, b in zip(top, bottom))
        lines.append("".join(cells) + f"{ESC}[0m")
    return "\r\n".join(lines)


def _colour(rgb: list[int], true: bool) -> str:
    """24 bits, or the nearest of the 6 x 6 x 6 colours that xterm has from 16 on."""
    if true:
        return "2;" + ";".join(map(str, rgb))
    r, g, b = (0 if n < 48 else max(1, (n - 35) // 40) for n in rgb)  # 0, 95, 135, 175, 215, 255
    return f"5;{16 + 36 * r + 6 * g + b}"


def _runs(codes: list[int]) -> str:
    """chr of each code; a run of more than three is counted."""
    runs = ((chr(code), len(list(run))) for code, run in groupby(codes))
    return "".join(f"!{count}{c}" if count > 3 else c * count for c, count in runs)
