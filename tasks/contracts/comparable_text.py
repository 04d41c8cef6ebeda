"""A document as it is compared with others: what a disguise changes is taken away.

Case, punctuation, invisible characters, accents, look-alike letters of other scripts and
the names of speakers do not count.
"""

from __future__ import annotations

import functools
import re
import unicodedata

# Chinese and Japanese are written without blanks: each character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
# "#Person1#: ", "Dr. Lee: " or "[10:32] Ann: " before a turn.
_SPEAKER = re.compile(
    r"^(?:\[?\d{1,2}:\d{2}(?::\d{2})?\]?\s*)?[^\n:\uff1a]{1,40}[:\uff1a]\s+", re.MULTILINE
)
# DialogSum's own names, also within a turn.
_TAG = re.compile(r"#\w+#")
# Lower-case letters of other scripts that look like Latin ones (from Unicode's confusables, UTS 39).
_LOOK_ALIKES = dict(
    zip(
        "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u04bb\u043a\u043c\u0442\u0432\u043d"
        "\u03bf\u03b1\u03bd\u03c1\u03c5\u03b9\u03ba\u03c4\u03c7\u0131\u0261",
        "aeopcyxijsdhkmtbhoavpuiktxig",
        strict=True,
    )
)


def comparable_words(text: str, speakers: bool = False) -> list[str]:
    """The words of a text as they are compared with another's; `speakers`: their names count too."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text).translate(_removed())
    text = text.casefold()
    if not text.isascii():
        text = text.translate(_translated())
    return _WORD.findall(text if speakers else _TAG.sub(" ", _SPEAKER.sub("", text)))


@functools.cache
def _removed() -> dict[int, None]:
    """Invisible characters, and the accents that NFKD takes off their letters."""
    accents = range(0x300, 0x370)
    invisible = [n for n in range(0x20000) if unicodedata.category(chr(n)) == "Cf"]
    return dict.fromkeys([*accents, *invisible, *range(0xE0000, 0xE0100), *range(0xFE00, 0xFE10)])


@functools.cache
def _translated() -> dict[int, str]:
    return {ord(letter): latin for letter, latin in _LOOK_ALIKES.items()}
