# SPDX-License-Identifier: GPL-2.0-or-later
"""The encodings of text that a message's body may have.

Publishers name them. Python has many more that are no encodings of text, or take the square of the
body's length: punycode, idna, unicode_escape.
"""

from __future__ import annotations

import re
from encodings import normalize_encoding
from encodings.aliases import aliases

# By normalized name. What is not here is not looked up: Python would remember every name.
_TEXT = re.compile(r"ascii|latin_1|utf_8(_sig)?|utf_(16|32)(_be|_le)?|iso8859_\d+|cp125\d")
_NAMES = {**{codec: codec for codec in (*aliases.values(), "utf_8_sig")}, **aliases}
_CODECS = {name: codec for name, codec in _NAMES.items() if _TEXT.fullmatch(codec)}


def codec_of(encoding: object) -> str:
    """Return Python's name of *encoding*, which is UTF-8, or one that is decoded as quickly.

    Raises:
        LookupError: It is none of those.
    """
    if encoding == "utf-8":
        return "utf-8"
    name = normalize_encoding(encoding).lower() if isinstance(encoding, str) else ""
    if name not in _CODECS:
        raise LookupError(
            f"its content_encoding is {encoding!r}, which is none of UTF-8, UTF-16, UTF-32, ASCII, "
            "Latin-1 and their relatives"
        )
    return _CODECS[name]
