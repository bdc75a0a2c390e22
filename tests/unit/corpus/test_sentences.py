"""Prose is kept and cleaned; fragments and remains of markup are dropped."""

import pytest
import sentencex

from onejump.corpus.documents import GAP, Document
from onejump.corpus.sentences import usable_sentences


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        ("The cat sat down here.  It  did not\nget up again.", ["The cat sat down here.", "It did not get up again."]),
        ("Dr. Smith met Mr. Jones at noon.", ["Dr. Smith met Mr. Jones at noon."]),
        ('He said that "it was over then."', ['He said that "it was over then."']),
        ('"Was it really over by then?"', ['"Was it really over by then?"']),
        ("In 1990 (or so) it all began (see below).", ["In 1990 (or so) it all began (see below)."]),
        ("Athens ( ; ) is an old city of Greece.", ["Athens is an old city of Greece."]),
        ("Athens () , it seems , is very old .", ["Athens, it seems, is very old."]),
        (
            "Soft\u00adhy\u00adphens and zero\u200bwidth marks all vanish.",
            ["Softhyphens and zerowidth marks all vanish."],
        ),
        ("Élan is what the whole team lacks.", ["Élan is what the whole team lacks."]),
    ],
)
def test_prose_is_kept_and_cleaned(paragraph, sentences):
    assert usable_sentences(Document("T", [paragraph])) == sentences


@pytest.mark.parametrize(
    "paragraph",
    [
        "Too short this is.",
        "A b c d.",
        "History of the old city of Athens",
        "The temples that still stand today are:",
        "the first letter is not a capital one.",
        "\u2013 a dash is no way to begin.",
        "A bracket (that never closes is not kept.",
        "A bracket that closes] first is not kept.",
        "These (two [cross) each] other in the text.",
        'A quotation that "never ends is not kept.',
        "Words " * 200 + "without end.",
        "A link [[that was left]] is not prose.",
        "A template {{that was left}} is not prose.",
        "A cell | of a table is not prose.",
        "See http://example.org for all the rest.",
        "A note <ref>that was left</ref> is not prose.",
        "A heading == that was left is not prose.",
        "A note that was left[3] is not prose.",
        "Athens (, born in Greece) is not whole now.",
        "Its height of , as measured, , is not whole.",
        f"Its height is {GAP} above the sea level.",
    ],
)
def test_what_is_not_prose_is_dropped(paragraph):
    assert usable_sentences(Document("T", [paragraph])) == []


def test_sentences_of_a_document_are_distinct_and_in_order():
    one, two = "The second letter comes first here.", "Another sentence comes after that one."
    assert usable_sentences(Document("T", [one, two, one])) == [one, two]


def test_the_language_chooses_how_sentences_are_split(monkeypatch):
    asked = []
    monkeypatch.setattr(sentencex, "segment", lambda language, text: asked.append(language) or [text])
    usable_sentences(Document("T", ["Der Hund liegt vor der Hütte."]), "de")
    assert asked == ["de"]


PARAGRAPHS = {
    "zh": "今天天气很好，我们去公园散步，看见了很多美丽的花朵。长江是中国最长的河流，全长约6300公里，流经多个省份！",
    "ja": "東京は日本の首都であり、人口は約1000万人である。彼は「この城は千年前に建てられた、とても古い城だ。」",
    "th": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย ก่อตั้งขึ้นในปี 1782 และมีประชากรมาก",
    "lo": "ນະຄອນຫຼວງວຽງຈັນເປັນນະຄອນຫຼວງຂອງປະເທດລາວ ຕັ້ງຢູ່ແຄມແມ່ນ້ຳຂອງໃກ້ກັບຊາຍແດນປະເທດໄທ",
    "my": "ရန်ကုန်မြို့သည်မြန်မာနိုင်ငံတွင်အကြီးဆုံးမြို့ဖြစ်သည်။ ဧရာဝတီမြစ်သည်မြန်မာနိုင်ငံတွင်အရှည်ဆုံးမြစ်ဖြစ်သည်။",
    "hi": "भारत की राजधानी नई दिल्ली है। यह शहर यमुना नदी के किनारे बसा है।",
    "bn": "ঢাকা বাংলাদেশের রাজধানী ও বৃহত্তম শহর। এই শহরটি বুড়িগঙ্গা নদীর তীরে অবস্থিত।",
    "hy": "Երևանը Հայաստանի մայրաքաղաքն ու ամենամեծ քաղաքն է։ Այս քաղաքը հիմնադրվել է շատ վաղուց։",
    "ar": "القاهرة هي عاصمة جمهورية مصر العربية. هل تقع هذه المدينة على نهر النيل؟",
    "fa": "تهران پایتخت و بزرگ\u200cترین شهر ایران است. این شهر را کوه\u200cهای بلند دربر گرفته\u200cاند.",
    "ur": "اسلام آباد پاکستان کا دارالحکومت ہے۔ یہ شہر بہت خوبصورت اور بڑا ہے۔",
    "am": "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት። ይህች ከተማ በጣም ትልቅና ውብ ናት።",
    "ko": "서울은 대한민국의 수도이자 가장 큰 도시이다. 이 도시는 한강을 끼고 아주 넓게 자리한다.",
    "el": "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας. Είναι μια πολύ παλιά και μεγάλη πόλη.",
    "de": "Die Stadt liegt schön am großen Fluss. Sie wurde vor z. B. tausend Jahren gegründet.",
}


@pytest.mark.parametrize("language", PARAGRAPHS)
def test_every_script_gives_its_sentences(language):
    sentences = usable_sentences(Document("T", [PARAGRAPHS[language]]), language)
    assert len(sentences) == 2
    assert "".join(sentences).replace(" ", "") == PARAGRAPHS[language].replace(" ", "")


@pytest.mark.parametrize(
    ("language", "fragment"),
    [
        ("zh", "今天天气很好。"),
        ("zh", "今天天气很好，我们去公园散步，看见了很多美丽的花朵，"),
        ("zh", "长江（是中国最长的河流，全长约6300公里，流经多个省份。"),
        ("ja", "」東京は日本の首都であり、人口は約1000万人である。"),
        ("hi", "भारत की राजधानी नई दिल्ली है और यह शहर"),
        ("hi", "भारतकीराजधानीनईदिल्लीहैयहशहरयमुना।"),
        ("th", "กรุงเทพ"),
    ],
)
def test_fragments_are_dropped_in_every_script(language, fragment):
    assert usable_sentences(Document("T", [fragment]), language) == []


def test_empty_full_width_parentheses_are_removed():
    found = usable_sentences(Document("T", ["长江（；）是中国最长的河流，全长约6300公里，流经多个省份。"]), "zh")
    assert found == ["长江是中国最长的河流，全长约6300公里，流经多个省份。"]
