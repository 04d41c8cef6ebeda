"""Plain words: this project's earlier private words are not used in code, docs, messages or tests.

A term must be found under the name that the field uses (docs/glossary.md).
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What is refused, as a regular expression, and what to write in its place.
WORDS = {
    r"mend(s|ed|ing)?": "fix",
    r"fore(tell|tells|told|telling)": "estimate or predict",
    r"fore(see|sees|saw|seen|seeing)": "estimate",
    r"knock(s|ed|ing)?": "check that a server is reachable",
    r"heed(s|ed|ing)?": "respect or follow",
    r"under way": "running, in progress",
    r"shared out": "sharded, split, distributed",
    r"dealt out": "split, distributed",
    r"without a word": "without a message; killed",
    r"at rest|rests": "stored",
    r"for a person": "for a terminal; readable",
    r"(errors|refusals|problems|S3) in words": "as a message",
    r"whoever": "the process, run or person that",
    r"thereof|hitherto|nought": "plain English",
    r"anew": "again",
    r"makes? room for": "is followed by; its slot goes to",
    r"turned away": "refused",
    r"what there is of": "the available",
    r"yardstick": "reference",
    r"as much as mentions": "contains",
}
# Identifiers that said nothing, and what they are called now.
IDENTIFIERS = {
    r"_?said": "what it holds: message, headline, text",
    r"_?knock": "check_reachable",
    r"OnHost": "OffloadToHost",
    r"MEETING": "RENDEZVOUS_VARIABLES",
    r"_deaf": "ignore_signals",
    r"trash": "scratch_index",
}
# What is data, was written before, or must name the refused words.
EXEMPT = re.compile(
    r"docs/log/|CHANGELOG\.md|LICENSE|constraints\.txt|tests/test_language\.py|"
    r"deployments/demo/(base|data|dialogues)/|tests/bench/results/|.*/previous_\w+/|.*\.(png|ico|gz)$"
)
FILES = [
    name
    for name in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    if not EXEMPT.match(name) and (ROOT / name).is_file()
]
# In prose a refused phrase may be split over two lines, and a comment's line begins with #.
BREAK = r"(?:\s|#)+"


def refused_in(text: str, is_code: bool) -> list[str]:
    """`LINE: the refused words: what to write`, in the order of the text."""
    refusals: list[tuple[int, str]] = []
    for pattern, plain_word in WORDS.items():
        phrase = pattern.replace(" ", BREAK)
        for match in re.finditer(rf"(?<![A-Za-z])(?:{phrase})(?![A-Za-z])", text, re.IGNORECASE):
            refusals.append((match.start(), f"{match[0]!r}, write {plain_word}"))
    for pattern, plain_word in IDENTIFIERS.items() if is_code else ():
        for match in re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", text):
            refusals.append((match.start(), f"{match[0]!r}, write {plain_word}"))
    return [
        f"{text.count(chr(10), 0, start) + 1}: {refusal}" for start, refusal in sorted(refusals)
    ]


def test_a_refused_word_is_found() -> None:
    """In prose, over a line break, within snake_case, and as an identifier of code alone."""
    assert refused_in("the mend", is_code=False) == ["1: 'mend', write fix"]
    assert refused_in("x\n# a run under\n# way", is_code=False)[0].startswith("2: ")
    assert refused_in("foreseen_gib = 1", is_code=True)
    assert refused_in("said = 1", is_code=True)
    assert not refused_in("He said it; amendment, here, interests", is_code=False)


def test_every_file_is_written_in_plain_words() -> None:
    """Names and content of all tracked text files; all refusals at once."""
    refusals = []
    for name in FILES:
        text = (ROOT / name).read_text()
        is_code = name.endswith(".py")
        refusals += [f"{name}: its name: {r}" for r in refused_in(name, is_code=False)]
        refusals += [f"{name}:{refusal}" for refusal in refused_in(text, is_code)]
    assert not refusals, "\n".join(["", *refusals])
