"""ROUGE means something in every script: equal texts score 1, other texts do not, marks are no words."""

from __future__ import annotations

import unicodedata

import pytest
from rouge_score import rouge_scorer

from tasks.contracts.records import ROUGE_NAMES, Output, Row
from tasks.contracts.words import kind_of, words
from tasks.evaluate.lead3 import lead3
from tasks.evaluate.scores import DEFAULT_SCORING, Scoring, score_texts
from tasks.evaluate.sentences import one_a_line, sentences

# Two sentences about different things in each, as two newspapers could have them.
# ruff: noqa: RUF001 - the scripts are what is tested
TEXTS = {
    "English": ("The train left at noon. Nobody missed it.", "Prices rose again. Bread is dearer."),
    "German": ("Der Zug fährt mittags ab. Keiner fehlt.", "Die Preise steigen. Brot wird teurer für Jörg."),
    "French": ("Le train est parti à midi. Été comme hiver.", "Les prix ont augmenté. Le pain est cher."),
    "Polish": ("Pociąg odjechał w południe. Nikt się nie spóźnił.", "Ceny wzrosły. Chleb jest droższy."),
    "Turkish": ("Tren öğlen kalktı. Kimse kaçırmadı.", "Fiyatlar yükseldi. Ekmek daha pahalı."),
    "Vietnamese": ("Tàu rời ga lúc trưa. Không ai lỡ chuyến.", "Giá cả lại tăng. Bánh mì đắt hơn."),
    "Russian": ("Поезд ушёл в полдень. Никто не опоздал.", "Цены снова выросли. Хлеб подорожал."),
    "Ukrainian": ("Потяг відбув опівдні. Ніхто не спізнився.", "Ціни знову зросли. Хліб подорожчав."),
    "Greek": ("Το τρένο έφυγε το μεσημέρι. Κανείς δεν άργησε.", "Οι τιμές ανέβηκαν. Το ψωμί ακρίβυνε."),
    "Hebrew": ("הרכבת יצאה בצהריים. איש לא איחר.", "המחירים עלו שוב. הלחם התייקר."),
    "Arabic": ("غادر القطار ظهرا. لم يتأخر أحد.", "ارتفعت الأسعار مجددا. الخبز أغلى."),
    "Persian": ("قطار ظهر حرکت کرد. کسی دیر نکرد.", "قیمت‌ها دوباره بالا رفت. نان گران شد."),
    "Urdu": ("ٹرین دوپہر کو روانہ ہوئی۔ کوئی لیٹ نہیں ہوا۔", "قیمتیں پھر بڑھ گئیں۔ روٹی مہنگی ہے۔"),
    "Hindi": ("ट्रेन दोपहर में चली। कोई देर से नहीं आया।", "कीमतें फिर बढ़ीं। रोटी महँगी है।"),
    "Bengali": ("ট্রেন দুপুরে ছেড়েছে। কেউ দেরি করেনি।", "দাম আবার বেড়েছে। রুটি দামি।"),
    "Tamil": ("ரயில் மதியம் புறப்பட்டது. யாரும் தாமதிக்கவில்லை.", "விலைகள் உயர்ந்தன. ரொட்டி விலை கூடியது."),
    "Thai": ("รถไฟออกตอนเที่ยง ไม่มีใครพลาด", "ราคาสูงขึ้นอีก ขนมปังแพงกว่า"),
    "Chinese": ("火车中午开走了。没有人迟到。", "物价又上涨。面包更贵。"),
    "Japanese": ("列車は正午に出た。誰も遅れなかった。", "物価がまた上がった。パンは高い。"),
    "Korean": ("기차는 정오에 떠났다. 아무도 늦지 않았다.", "물가가 다시 올랐다. 빵은 더 비싸다."),
    "Georgian": ("მატარებელი შუადღისას გავიდა. არავინ დააგვიანა.", "ფასები გაიზარდა. პური გაძვირდა."),
    "Armenian": ("Գնացքը մեկնեց կեսօրին։ Ոչ ոք չուշացավ։", "Գները բարձրացան։ Հացը թանկ է։"),
    "Amharic": ("ባቡሩ በእኩለ ቀን ተነሳ። ማንም አልዘገየም።", "ዋጋ ጨመረ። ዳቦ ውድ ነው።"),
    "Telugu": ("రైలు మధ్యాహ్నం బయలుదేరింది. ఎవరూ ఆలస్యం చేయలేదు.", "ధరలు మళ్ళీ పెరిగాయి. రొట్టె ఖరీదైంది."),
    "Gujarati": ("ટ્રેન બપોરે ઊપડી. કોઈ મોડું ન પડ્યું.", "ભાવ ફરી વધ્યા. રોટલી મોંઘી છે."),
    "Punjabi": ("ਰੇਲਗੱਡੀ ਦੁਪਹਿਰੇ ਚੱਲੀ। ਕੋਈ ਲੇਟ ਨਹੀਂ ਹੋਇਆ।", "ਕੀਮਤਾਂ ਫਿਰ ਵਧੀਆਂ। ਰੋਟੀ ਮਹਿੰਗੀ ਹੈ।"),
    "Sinhala": ("දුම්රිය දහවල් පිටත් විය. කිසිවෙකු ප්‍රමාද නොවීය.", "මිල නැවත ඉහළ ගියේය. පාන් මිල වැඩියි."),
    "Khmer": ("រថភ្លើងចេញដំណើរនៅពេលថ្ងៃត្រង់។ គ្មាននរណាម្នាក់យឺតទេ។", "តម្លៃឡើងម្តងទៀត។ នំប៉័ងថ្លៃជាងមុន។"),
    "Burmese": ("ရထား မွန်းတည့်ချိန်တွင် ထွက်ခဲ့သည်။ ဘယ်သူမှ နောက်မကျပါ။", "ဈေးနှုန်းများ ထပ်တက်သည်။ ပေါင်မုန့် ဈေးကြီးသည်။"),
}  # fmt: skip


def _scores(written: str, reference: str, scoring: Scoring = DEFAULT_SCORING) -> dict[str, float]:
    row = Row("1", "s", "document", (reference,))
    [prediction] = score_texts([row], [Output(written, True, 1, 1, 0)], scoring=scoring)
    return prediction.scores


@pytest.mark.parametrize("language", TEXTS)
def test_a_perfect_copy_scores_one_and_another_text_little(language: str) -> None:
    """Every ROUGE of a text with itself is 1; of a text about something else it is under a half."""
    right, other = TEXTS[language]
    for kind in ("auto", "unicode", "characters"):
        scoring = Scoring(words=kind)  # type: ignore[arg-type]
        assert set(_scores(right, right, scoring).values()) == {1.0}
    scores = _scores(other, right)
    assert scores["rougeL"] < 0.5
    assert scores["rouge2"] < 0.1


@pytest.mark.parametrize("language", TEXTS)
def test_digits_alone_are_not_a_summary(language: str) -> None:
    """Nonsense with the right number in it scores far below a text that says half of it."""
    right, _ = TEXTS[language]
    reference = f"{right} 1984"
    half = right[: right.index(sentences(right)[-1])] if len(sentences(right)) > 1 else right[:14]
    assert _scores("1984", reference)["rouge1"] < _scores(half, reference)["rouge1"]


@pytest.mark.parametrize("language", TEXTS)
def test_unicode_forms_of_a_text_are_one_text(language: str) -> None:
    """Composed or decomposed, upper or lower case: the same words."""
    right, _ = TEXTS[language]
    if kind_of([right]) == "latin":
        return
    assert words(unicodedata.normalize("NFD", right)) == words(unicodedata.normalize("NFC", right))
    assert _scores(unicodedata.normalize("NFD", right), right)["rouge1"] == 1.0


@pytest.mark.parametrize("language", TEXTS)
def test_two_sentences_are_found(language: str) -> None:
    """Each script's own marks end a sentence; Thai has none, and is one."""
    right, other = TEXTS[language]
    assert [len(sentences(text)) for text in (right, other)] == [2, 2] or language == "Thai"
    first_three = lead3(f"{right} {other}")
    assert words(first_three) == words(f"{right} {other}")[: len(words(first_three))]


def test_sentences_in_another_order_keep_their_rouge_lsum() -> None:
    """rougeLsum compares sentence by sentence, so it is not rougeL; as rouge_score's users split."""
    right, written = "We met Ann. She was ill. We left.", "She was ill. We met Ann. We left."
    scores = _scores(written, right)
    assert scores["rougeLsum"] == 1.0
    assert scores["rougeL"] < 0.7
    theirs = rouge_scorer.RougeScorer(list(ROUGE_NAMES), use_stemmer=True)
    expected = theirs.score(one_a_line(right), one_a_line(written))
    assert scores == {name: expected[name].fmeasure for name in ROUGE_NAMES}


def test_english_with_some_loan_words_is_scored_as_rouge_score_does() -> None:
    """A few accents do not change how words are counted; German umlauts do."""
    mostly_english = ["The house was open until ten in the evening."] * 9 + ["A café."]
    assert kind_of(mostly_english) == "latin"
    assert kind_of([TEXTS["German"][1]]) == "unicode"
    assert kind_of(["12 34", "..."]) == "latin"


def test_several_references_count_as_the_recipe_says() -> None:
    """best, mean or first."""
    row = Row("1", "s", "document", ("x y z", "a b c"))
    scores = {
        kind: score_texts([row], [Output("a b c", True, 1, 1, 0)], scoring=Scoring(references=kind))[0].scores
        for kind in ("best", "mean", "first")
    }  # fmt: skip
    assert [scores[kind]["rouge1"] for kind in ("best", "mean", "first")] == [1.0, 0.5, 0.0]
