"""Words about names, and forms of them: titles, months, peoples, short forms, openers of sentences."""

from __future__ import annotations

import functools

_TITLES = """
mr mrs ms miss dr doctor prof professor sir madam ma'am mister herr frau monsieur madame señor señora señorita
signor signora pan pani
"""
TITLES = frozenset(_TITLES.split())
_MONTHS = "january february march april may june july august september october november december"
MONTHS = tuple(_MONTHS.split())
# Names that are one, a group up to each semicolon: countries and peoples, days and months, short forms.
_SAME = """
france french; spain spanish spaniard spaniards; wales welsh; netherlands holland dutch; denmark danish dane;
greece greek greeks; poland polish; turkey turkish; ireland irish; scotland scottish scots scotch;
switzerland swiss; sweden swedish; finland finnish; britain british uk; england english uk; germany german;
america american americans us usa u.s states; uk u.k britain british kingdom; christmas xmas;
january jan; february feb; march mar; april apr; june jun; july jul; august aug; september sept sep;
october oct; november nov; december dec; monday mon; tuesday tue tues; wednesday wed; thursday thu thur thurs;
friday fri; saturday sat; sunday sun; television tv tvs; internet net; thailand thai; china chinese;
mike michael; bill william will; bob robert rob; dick richard; jim james jimmy; liz elizabeth; tony anthony;
fy fys fiscal; peggy margaret; jack john; kate catherine katherine; steve stephen steven; brazil brazilian;
norway norwegian;
"""
_STATES = """
alabama al; alaska ak; arizona az; arkansas ar; california ca; colorado co; connecticut ct; delaware de;
florida fl; georgia ga; hawaii hi; idaho id; illinois il; indiana in; iowa ia; kansas ks; kentucky ky;
louisiana la; maine me; maryland md; massachusetts ma; michigan mi; minnesota mn; mississippi ms;
missouri mo; montana mt; nebraska ne; nevada nv; ohio oh; oklahoma ok; oregon or; pennsylvania pa;
tennessee tn; texas tx; utah ut; vermont vt; virginia va; washington wa; wisconsin wi; wyoming wy;
ontario on; quebec qc; alberta ab; manitoba mb
"""
# In capitals alone: IN and OR are words too. Those of two words, as NY, are initials.
STATES = dict(
    zip(_STATES.replace(";", "").split()[::2], _STATES.replace(";", "").split()[1::2], strict=True)
)
STATE_NAMES = {short: name for name, short in STATES.items()}
_SMALL = "a an and at by for from in of on or the to with"
SMALL_WORDS = frozenset(_SMALL.split())
_DEMONYMS = "ians ian eans ean ans an ese ish ers er ia ic is i a y e n o land s"
_SUFFIXES = "ations ation ments ment ings ing ions ion ies ied ers er ed es ly s e y"
# English words that begin sentences, and seldom stand elsewhere.
_OPENERS = """
furthermore however moreover meanwhile finally although though despite besides therefore thus hence
nevertheless nonetheless additionally consequently otherwise instead afterwards eventually unfortunately
initially similarly likewise regarding concerning considering whereas unless because since while when
after before during until also then there here they them their these those this that she he his her its
it we you your our my if as at by for from in into of on or but and so to with without under over not no
all both each every some many most several another other what which who whose why how where
"""
OPENERS = frozenset(_OPENERS.split())
_GERMAN = "der die das und ist nicht ein eine den dem mit für auf von zu sie er"
GERMAN_SHARE = 0.12  # of a text's words; English has under 0.01


def is_german(text: str) -> bool:
    """Whether so many words are German articles and the like that every noun has a capital."""
    german, words = _GERMAN.split(), text.lower().split()
    return sum(word in german for word in words) > GERMAN_SHARE * len(words)


@functools.lru_cache(maxsize=1 << 16)
def name_forms(word: str) -> frozenset[str]:
    """Stems of a name: plural, people of a country, irregular ones."""
    forms = {word, *same_names().get(word, ())}
    forms |= {
        word[: -len(end)]
        for end in _DEMONYMS.split()
        if word.endswith(end) and len(word) - len(end) > 3
    }
    if word.endswith(("s", "a", "y", "e")) and len(word) > 3:
        forms.add(word[:-1])
    if word.endswith("ies") and len(word) > 4:
        forms.add(f"{word[:-3]}y")
    return frozenset(forms)


@functools.cache
def same_names() -> dict[str, tuple[str, ...]]:
    """Of a name, the marks of the groups that it is in."""
    groups: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(_SAME.split(";")):
        for word in line.split():
            groups[word] = (*groups.get(word, ()), f"={number}")
    return groups


@functools.lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """A word without an English ending, roughly: to see whether it stands elsewhere in another form."""
    for end in _SUFFIXES.split():
        if word.endswith(end) and len(word) - len(end) >= 3:
            short = word[: -len(end)]
            return short[:-1] if len(short) > 3 and short[-1] == short[-2] else short
    return word
