"""The Porter stemmer as nltk's PorterStemmer runs it by default, word for word, and several times faster.

Porter 1980, "An algorithm for suffix stripping", with nltk's extensions (each marked below). Considered:
nltk itself; but scores would depend on the installed version, and importing it takes 1.5 seconds.
"""

from __future__ import annotations

IRREGULAR = {  # nltk's
    "sky": "sky",
    "skies": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "news": "news",
    "innings": "inning",
    "inning": "inning",
    "outings": "outing",
    "outing": "outing",
    "cannings": "canning",
    "canning": "canning",
    "howe": "howe",
    "proceed": "proceed",
    "exceed": "exceed",
    "succeed": "succeed",
}
# Of several endings that fit, the first decides.
STEP_2 = {
    "ational": "ate",
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "izer": "ize",
    "bli": "ble",
    "alli": "al",
    "entli": "ent",
    "eli": "e",
    "ousli": "ous",
    "ization": "ize",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "iveness": "ive",
    "fulness": "ful",
    "ousness": "ous",
    "aliti": "al",
    "iviti": "ive",
    "biliti": "ble",
    "fulli": "ful",  # nltk's
}
STEP_3 = {
    "icate": "ic",
    "ative": "",
    "alize": "al",
    "iciti": "ic",
    "ical": "ic",
    "ful": "",
    "ness": "",
}
_ENDINGS_4 = "al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize"
STEP_4 = dict.fromkeys(_ENDINGS_4.split(), "")
FIT_2, FIT_3, FIT_4 = tuple(STEP_2), tuple(STEP_3), tuple(STEP_4)
KINDS = str.maketrans(
    {chr(code): "v" if chr(code) in "aeiou" else "c" for code in range(128)} | {"y": "y"}
)


def stem(word: str) -> str:
    """The stem of a lower-case ASCII word."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _step_1c(_step_1b(_step_1a(word)))
    word = _step_2(word)
    if word.endswith(FIT_3):
        word = _replace(word, STEP_3, 0)
    if word.endswith(FIT_4):
        word = _replace(word, STEP_4, 1)
    return _step_5(word)


def _kinds(word: str) -> str:
    """Of each letter, c for a consonant and v for a vowel; y is a vowel after a consonant."""
    kinds = word.translate(KINDS)
    while (at := kinds.find("y")) >= 0:
        kinds = kinds[:at] + ("v" if kinds[at - 1 : at] == "c" else "c") + kinds[at + 1 :]
    return kinds


def _measure(word: str) -> int:
    """Porter's m: how often a consonant follows a vowel."""
    return _kinds(word).count("vc")


def _ends_short(word: str) -> bool:
    """Porter's *o: ends consonant, vowel, consonant, the last not w, x or y."""
    kinds = _kinds(word)
    return kinds == "vc" or (kinds[-3:] == "cvc" and word[-1] not in "wxy")  # vc alone is nltk's


def _step_1a(word: str) -> str:
    if not word.endswith("s") or word.endswith("ss"):
        return word
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]  # dies is nltk's
    return word[:-2] if word.endswith("sses") else word[:-1]


def _step_1b(word: str) -> str:
    if word.endswith("ied"):  # nltk's
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) else word
    if word.endswith("ed"):
        root = word[:-2]
    elif word.endswith("ing"):
        root = word[:-3]
    else:
        return word
    return _restored(root) if "v" in _kinds(root) else word


def _restored(root: str) -> str:
    """The root before -ed or -ing, with the e that they replaced or without the letter that they doubled."""
    if root.endswith(("at", "bl", "iz")):
        return root + "e"
    if root[-1:] == root[-2:-1] and _kinds(root)[-1] == "c":
        return root if root[-1] in "lsz" else root[:-1]
    return root + "e" if _measure(root) == 1 and _ends_short(root) else root


def _step_1c(word: str) -> str:
    # That the letter before the y must be a consonant is nltk's.
    if word.endswith("y") and len(word) > 2 and _kinds(word[:-1])[-1] == "c":
        return word[:-1] + "i"
    return word


def _step_2(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]):  # nltk's
        return _step_2(word[:-2])
    if word.endswith("logi"):  # nltk's
        return word[:-1] if _measure(word[:-3]) else word
    return _replace(word, STEP_2, 0) if word.endswith(FIT_2) else word


def _replace(word: str, rules: dict[str, str], more_than: int) -> str:
    """Replace the ending if enough measure is left before it; one of the endings must fit."""
    ending = next(filter(word.endswith, rules))
    root = word[: -len(ending)]
    if _measure(root) <= more_than or (ending == "ion" and root[-1] not in "st"):
        return word
    return root + rules[ending]


def _step_5(word: str) -> str:
    if word.endswith("e"):
        root = word[:-1]
        measure = _measure(root)
        if measure > 1 or (measure == 1 and not _ends_short(root)):
            word = root
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
