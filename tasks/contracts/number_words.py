"""Words that say numbers: the whole dictionary of numbers_in_text.py."""

from __future__ import annotations

import functools

UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
)
UNITS += " sixteen seventeen eighteen nineteen"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ORDINALS = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
)
ORDINALS += " thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth"
PARTS = "thirds fourths fifths sixths sevenths eighths ninths tenths"
ORDINAL_TENS = "twentieth thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth"
SCALES = {
    "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "k": 10**3, "m": 10**6, "mn": 10**6, "bn": 10**9, "b": 10**9, "tn": 10**12,
    "dozens": 12, "lakh": 10**5, "crore": 10**7, "dozen": 12, "grand": 10**3, "millions": 10**6,
    "billions": 10**9, "tausend": 10**3, "mille": 10**3, "mil": 10**3, "mila": 10**3,
    "millionen": 10**6, "milliarden": 10**9, "millones": 10**6, "milioni": 10**6,
    "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8, "만": 10**4, "억": 10**8,
}  # fmt: skip
LETTERS = frozenset({"k", "m", "mn", "bn", "b", "tn"})  # scales only right after digits
# Words that say a number without counting: a document that has one supports its values, and they are
# never held against an output.
OTHER_WORDS = {
    "half": "0.5 50 30", "quarter": "0.25 25 15 45", "quarters": "0.75 75 45", "couple": "2",
    "pair": "2", "both": "2", "twice": "2", "double": "2", "twins": "2", "once": "1", "single": "1",
    "triple": "3", "noon": "12", "midday": "12", "midnight": "12 0", "decade": "10", "century": "100",
    "fortnight": "14 2", "biennial": "2", "hundreds": "100", "thousands": "1000", "teens": "13 19",
}  # fmt: skip
# Of other languages, values of 2 to 12, tens, 100: they support a document's digits, no more.
FOREIGN_VALUES = (*range(2, 13), 20, 30, 40, 50, 60, 100)
FOREIGN = """
zwei drei vier fünf sechs sieben acht neun zehn elf zwölf zwanzig dreißig vierzig fünfzig sechzig hundert
deux trois quatre cinq six sept huit neuf dix onze douze vingt trente quarante cinquante soixante cent
dos tres cuatro cinco seis siete ocho nueve diez once doce veinte treinta cuarenta cincuenta sesenta cien
due tre quattro cinque sei sette otto nove dieci undici dodici venti trenta quaranta cinquanta sessanta cento
dois três quatro cinco seis sete oito nove dez onze doze vinte trinta quarenta cinquenta sessenta cem
twee drie vier vijf zes zeven acht negen tien elf twaalf twintig dertig veertig vijftig zestig honderd
два три четыре пять шесть семь восемь девять десять одиннадцать двенадцать двадцать тридцать сорок пятьдесят
шестьдесят сто
"""
HAN_DIGITS = {c: n for n, c in enumerate("零一二三四五六七八九")} | {"\u3007": 0, "两": 2, "兩": 2}
HAN_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}


@functools.cache
def number_words() -> dict[str, int]:
    """English words by value, ordinals and scales too."""
    words: dict[str, int] = {}
    for names in (UNITS, ORDINALS):
        words |= {name: value for value, name in enumerate(names.split())}
    for names in (TENS, ORDINAL_TENS):
        words |= {name: 20 + 10 * place for place, name in enumerate(names.split())}
    words |= {name: 3 + place for place, name in enumerate(PARTS.split())}
    return words | {"hundred": 100, "hundredth": 100, "fourty": 40, "ninty": 90} | SCALES


@functools.cache
def foreign_words() -> dict[str, int]:
    """Words of other languages by value."""
    words = FOREIGN.split()
    languages = len(words) // len(FOREIGN_VALUES)
    return dict(zip(words, FOREIGN_VALUES * languages, strict=True))
