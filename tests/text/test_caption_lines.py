"""Captions broken into lines, and into several captions."""

import pytest

from calce_jax.text.caption import Caption, Word
from calce_jax.text.caption_lines import break_captions, text_width

SENTENCES = (
    "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do for them. "
    "He was not an ill-disposed young man, unless to be rather cold-hearted and rather selfish is to be ill-disposed."
)


def broken(text, width, count=2, **times):
    return break_captions([Caption(times.get("start", 0.0), times.get("end", 10.0), text)], width, count)


@pytest.mark.parametrize(("width", "count"), [(42, 2), (42, 1), (20, 3), (37, 2)])
def test_lines_and_captions_keep_within_their_limits_and_lose_no_word(width, count):
    captions = broken(SENTENCES, width, count)
    for caption in captions:
        lines = caption.text.split("\n")
        assert len(lines) <= count
        assert all(0 < len(line) <= width and line == line.strip() for line in lines)
    assert " ".join(caption.text.replace("\n", " ") for caption in captions) == SENTENCES


def test_a_caption_that_fits_is_unchanged():
    words = (Word(" Ask", 0.5, 1.0, 0.9), Word(" not.", 1.0, 1.5, 0.9))
    caption = Caption(0.5, 1.5, "Ask not.", words)
    assert break_captions([caption], 8, 1) == [caption]
    assert break_captions([], 42, 2) == []


def test_lines_are_of_similar_width_and_end_with_a_clause():
    assert broken("one two three four five six seven", 30)[0].text == "one two three four\nfive six seven"
    assert (
        broken("I came here, but nobody knew what it was.", 38)[0].text == "I came here,\nbut nobody knew what it was."
    )


def test_captions_break_after_a_sentence():
    captions = broken("He came in at four o'clock. She was there already, with friends.", 42, 1)
    assert [caption.text for caption in captions] == [
        "He came in at four o'clock.",
        "She was there already, with friends.",
    ]


def test_a_word_is_never_broken():
    url = "https://example.org/a/very/long/address"
    assert [caption.text for caption in broken(f"see {url} there", 12, 1)] == ["see", url, "there"]


def test_time_is_shared_in_proportion_to_characters():
    captions = broken("abcd efgh ij kl mn op", 9, 1, start=10.0, end=26.0)
    assert captions == [Caption(10.0, 14.0, "abcd"), Caption(14.0, 20.0, "efgh ij"), Caption(20.0, 26.0, "kl mn op")]


def test_parts_begin_and_end_with_their_words():
    words = tuple(
        Word(f" {text}", start, end, 0.5)
        for text, start, end in (("one", 1.0, 2.0), ("two,", 2.5, 3.0), ("three", 5.0, 6.0), ("four", 6.0, 6.5))
    )
    captions = break_captions([Caption(1.0, 6.5, "one two, three four", words)], 10, 1)
    assert captions == [Caption(1.0, 3.0, "one two,", words[:2]), Caption(5.0, 6.5, "three four", words[2:])]


def test_chinese_and_japanese_break_between_characters_but_not_before_a_mark():
    text = "私は昨日、東京へ行きました。そこで友達に会って、一緒にコーヒーを飲みました。"
    captions = broken(text, 26, 2)
    lines = [line for caption in captions for line in caption.text.split("\n")]
    assert "".join(lines) == text
    assert all(text_width(line) <= 26 for line in lines)
    assert not any(line[0] in "、。ーょっ" for line in lines)
    mixed = broken("我们用GPT-4来写「你好」这样的句子", 12, 9)[0].text.split("\n")
    assert "".join(mixed) == "我们用GPT-4来写「你好」这样的句子"
    assert any("GPT-4" in line for line in mixed)
    assert not any(line.endswith("「") or line.startswith("」") for line in mixed)


def test_korean_breaks_at_spaces():
    lines = broken("안녕하세요 여러분 오늘은 날씨가 좋습니다", 12, 9)[0].text.split("\n")
    assert " ".join(lines) == "안녕하세요 여러분 오늘은 날씨가 좋습니다"
    assert max(map(text_width, lines)) <= 12


def test_words_of_one_token_over_two_lines_share_their_time():
    words = (Word("今天", 0.0, 2.0, 0.9), Word("天气", 2.0, 4.0, 0.9), Word("好。", 4.0, 6.0, 0.9))
    captions = break_captions([Caption(0.0, 6.0, "今天天气好。", words)], 6, 1)
    assert [(caption.text, caption.start, caption.end) for caption in captions] == [
        ("今天天", 0.0, 3.0),
        ("气好。", 3.0, 6.0),
    ]
    assert [word.word for caption in captions for word in caption.words] == ["今天", "天气", "好。"]


def test_a_page_of_text_without_a_break():
    captions = broken("词" * 600 + " word" * 200, 42, 2)
    assert sum(len(caption.text.replace("\n", "").replace(" ", "")) for caption in captions) == 1400
