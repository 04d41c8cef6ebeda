"""Numbers and names that a document does not support, and the forms in which it supports them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tasks.contracts.unsupported import Usage, unsupported

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from invented import flagged, planted, read

DIALOGSUM = Path(__file__).parents[3] / "shared/data/dialogsum/dev.jsonl"

BILLSUM = DIALOGSUM.parents[1] / "billsum/us_train_100.jsonl"


def _found(output: str, document: str) -> list[str]:
    return [span.text for span in unsupported(output, document)]


@pytest.mark.parametrize(
    ("document", "output"),
    [
        ("It costs 1,000 dollars", "It costs one thousand dollars"),
        ("1.000 Euro", "1000 Euro"),
        ("It is 1,00,000 rupees", "100000 rupees"),
        ("$3,000,000", "$3m, 3 million"),
        ("two hundred and fifty people", "250"),
        ("fifteen hundred", "1500"),
        ("thirty-five", "35"),
        ("see you at half past three", "at 3:30, 15:30 or 3.30"),
        ("at 15:30", "half past three, 3:30 pm"),
        ("quarter to five", "at 4:45"),
        ("ten thirty", "10:30"),
        ("12:00", "at noon"),
        ("twenty percent", "20%"),
        ("the third of the 3rd", "third, 3rd"),
        ("the twenty-first", "21st"),
        ("born in nineteen ninety four", "born in 1994, in the 1990s"),
        ("five dollars and fifty cents", "$5.50"),
        ("two and a half hours", "2.5 hours"),
        ("call 555 1234", "call 5551234 or 555-1234"),
        ("fiscal years 2009 through 2013", "FY2011"),
        ("on July 4, 1994", "on 4/7/1994"),
        ("on 4/7/1994", "on July 4"),
        ("他有三万五千元", "他有35000元"),
        ("他有30000元", "他有3万元"),
        ("今天是２０２４年", "2024年"),
        ("25 साल, ٢٦", "२५ साल, 26"),
        ("United Nations", "the UN, the U.N."),
        ("the UN met", "The United Nations met"),
        ("We met in China.", "They met a Chinese man."),
        ("Anna's sisters, the Browns", "Anna and Mr. Brown"),
        ("I saw José", "Jose was seen"),
        ("Kathrine called", "Katherine called"),
        ("Я видел Ивана в Москве", "Иван был в Москве"),
        ("ΑΘΗΝΑ", "η Αθήνα"),
        ("#Person1#: hi", "#Person1# says hi"),
        ("the department of education", "the Department of Education (DOE), and DOE again"),
        ("lunch in the snow-white city", "lunch in the Snow White City"),
        ("age of 70\\1/2\\ and", "age 70 1/2, 70.5, 70\u00bd, 70 12, seventy and one-half"),
        ("age 70\u00bd", "70 1/2 or 70.5"),
        ("66 2/3 percent", "66.7 percent, two-thirds, 67%"),
        ("two-thirds and one-fifth, split in halves", "2/3, 67%, 20%, 1/5"),
        (".5 percent", "0.5 percent"),
        ("half a million", "500,000"),
        ("$0.25, 0.5 percent", "25 cents, 50 basis points"),
        ("rates of 4. 5 % on $ 5, 000 dozen", "4.5% on 5,000 dozen"),
        ("room thirteen-thirteen, open from eight-thirty", "1313, from 8:30"),
        ("a 401(k) plan", "a 401k plan"),
        ("title XVIII, part V", "title 18, part 5"),
        ("section 1877 of the Social Security Act", "its title XVIII"),
        ("paragraph (12)", "paragraph 12"),
        ("the old-age, survivors, and disability insurance", "OASDI"),
        ("in Texas and New York", "TX and NY"),
        ("TX, NY and D.C.", "Texas, New York and the District of Columbia"),
        ("fiscal year 2005", "FY05, FY2005, '05"),
        ("2004-2005", "2004-05"),
        ("$1,500,000 to $2,000,000", "$1.5 to $2 million, $1.5-2 million"),
        ("Department of Defense", "DOD, DoD"),
        ("21st Century, 1st Session", "Twenty-First Century, First Session"),
        ("World War II", "World War 2, WWII, Second World War"),
        ("the CDs", "a CD"),
        ("1400RMB", "1400 RMB"),
        (
            "Dominican Republic-Central America-United States Free Trade Agreement",
            "Dominican Republic-Central America-United States Free Trade Agreement (CAFTA-DR), CAFTA",
        ),
        ("a cure for tuberculosis", "a cure for tuberculosis (TB); TB"),
    ],
)
def test_other_forms_of_a_number_or_a_name_are_supported(document: str, output: str) -> None:
    """What a reader would call the same is not flagged."""
    assert _found(output, document) == []


@pytest.mark.parametrize(
    ("document", "output", "invented"),
    [
        ("It costs 1,000 dollars", "It costs 10,000 dollars", ["10,000"]),
        ("at 15:30", "at 4:30", ["4:30"]),
        ("3 billion", "3 million", ["3 million"]),
        ("35 people", "thirty-six people", ["thirty-six"]),
        ("in 1994", "in 2004", ["2004"]),
        ("20%", "25%", ["25"]),
        ("an MP3 player", "an MP4 player", ["MP4"]),
        ("他有三万元", "他有5万元", ["5万"]),
        ("هو ٢٥ سنة", "هو ٢٦ سنة", ["٢٦"]),
        ("Anna called", "Then Anna called Bob", ["Bob"]),
        ("Mr. Brown came", "Brown came with Mr. Green", ["Green"]),
        ("#Person1#: hi", "#Person1# meets #Person3#", ["#Person3#"]),
        ("Я видел Ивана", "Иван и Олег", ["Олег"]),
        ("the UN met", "the EU met", ["EU"]),
        ("age of 70\\1/2\\ and", "age 70 1/3, or 71 12", ["3", "71", "12"]),
        ("two-thirds of it", "3/4 of it, 45%", ["4", "45"]),
        ("$1,500,000 to $2,000,000", "$1.7 to $2 million", ["1.7"]),
        ("section 1877 of the Act", "title XIX of it", ["XIX"]),
        ("in Texas and Ohio", "TX and FL", ["FL"]),
        ("in fiscal year 2005", "FY06", ["FY06"]),
        ("(1) apples (12) pears", "it has 12", ["12"]),
        ("World War II", "WWIII", ["WWIII"]),
        ("Health and Human Services", "Health and Human Services (EPA)", ["EPA"]),
        ("fine. To allow. Sales", "the FTAS", ["FTAS"]),
        ("and the others allow it", "they allow the Andrea", ["Andrea"]),
    ],
)
def test_what_the_document_does_not_hold_is_found(
    document: str, output: str, invented: list[str]
) -> None:
    """Another number or name is flagged, and nothing else."""
    assert _found(output, document) == invented


def test_words_that_begin_a_sentence_are_names_only_if_never_in_lower_case() -> None:
    """The evaluation set's own writing tells words from names."""
    usage = Usage.of(["Let us discuss it, Walter.", "They discuss the plan with Walter."])
    found = unsupported("Discussing it helps. Walter agrees.", "They talk.", usage)
    assert [span.text for span in found] == ["Walter"]


def test_nouns_of_german_are_no_names() -> None:
    """German writes every noun with a capital, so there numbers alone are checked."""
    output = "Die Frau fährt mit dem Zug nach Bonn und zahlt 40 Euro für die Karte."
    assert _found(output, "Sie nimmt die Bahn und es kostet 30 Euro.") == ["40"]


@pytest.mark.skipif(not DIALOGSUM.exists(), reason="the shared data are not here")
def test_references_are_rarely_flagged_and_planted_ones_nearly_always_found() -> None:
    """On real dialogues: at most 2% of references flagged, at least 95% of planted ones found."""
    rows = read(DIALOGSUM, "dialogue", "summary")[:200]
    found, _ = flagged(rows)
    assert len(found) <= 0.02 * len(rows)
    for kind, (hits, total) in planted(rows).items():
        assert hits >= 0.95 * total, kind


@pytest.mark.skipif(not BILLSUM.exists(), reason="the shared data are not here")
def test_forms_of_bills_are_not_flagged() -> None:
    """References of bills that say in another form what the bill says: fractions, titles, acronyms."""
    rows = read(BILLSUM, "text", "summary")
    found, _ = flagged([rows[place] for place in (4, 41, 59, 74)])
    assert found == []


def test_time_grows_with_the_text() -> None:
    """Twenty times the text takes no more than some forty times as long."""
    import time

    text = json.dumps([f"Person{i} paid {i} dollars to Walter at {i % 12}:30." for i in range(300)])
    times = []
    for copies in (1, 20):
        started = time.process_time()
        unsupported(text * copies, text * copies)
        times.append(time.process_time() - started)
    assert times[1] < 60 * times[0] + 0.1
