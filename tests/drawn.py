"""What the pictures in a widget's snapshot say: SVG in `<img>`, taken out again."""

import base64
import re
from html import unescape

_IMAGE = re.compile(r'<img alt="([^"]*)" width="\d+" src="data:image/svg\+xml;base64,([^"]+)">')


def pictures(html: str) -> list[tuple[str, str]]:
    """The alternative text and the SVG of each picture."""
    assert html.count("<img") == len(_IMAGE.findall(html))
    return [(unescape(alt), base64.b64decode(data).decode()) for alt, data in _IMAGE.findall(html)]


def opened(html: str) -> str:
    """The snapshot with the SVG in the place of each picture."""
    return _IMAGE.sub(lambda found: base64.b64decode(found[2]).decode(), html)
