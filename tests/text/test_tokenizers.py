"""T5's and BERT's tokenizers against recorded ids, and the requirements on the packaged ones."""

import json
import re
import string

import pytest

from calce_jax.config import packaged_path
from calce_jax.text.prompt import TASK_PROMPT
from calce_jax.text.tokenizers import TokenizerError, load_bert, load_t5
from data.shapes.scene import make_scene
from data.tokenizers import make

TINY = packaged_path("calce_jax/assets/tiny")


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def words(text: str) -> str:
    """Return text without the signs and numbers that the small BERT vocabulary lacks."""
    return re.sub("[^A-Za-z ]", " ", text)


def test_t5_gives_the_recorded_ids(shared):
    tokenizer = load_t5(shared / "tokenizers" / "t5")
    recorded = json.loads((shared / "golden" / "07_prompts.json").read_text())["extras"]
    assert [ids(tokenizer, str(n)) for n in range(200)] == recorded["timestamp_token_ids_0_199"]
    for _, text, expected in recorded["target_replacements"]:
        assert tokenizer(text)["input_ids"] == expected
    # Recorded without the lone word boundary token.
    for text, expected in {**recorded["sign_tokens"], "-1": recorded["minus_one"]}.items():
        assert [piece for piece in ids(tokenizer, text) if piece != 3] == expected
    for case in recorded["decode"]:
        assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["skip_special"]


def test_bert_gives_the_recorded_ids(shared):
    tokenizer = load_bert(shared / "tokenizers" / "bert")
    for case in json.loads((shared / "golden" / "08_subtitles.json").read_text())["cls_filter"]:
        query = case["query"].removeprefix("Query: ").strip()
        assert tokenizer(query)["input_ids"] == case["query_ids"]
        texts = [subtitle["text"] for subtitle in case["subtitles"]]
        assert [tokenizer(text)["input_ids"] for text in texts] == (case["subtitle_ids"] or [])


def test_every_number_and_sign_is_one_piece_of_the_small_t5():
    tokenizer = load_t5(TINY / "t5")
    for text in [*map(str, range(200)), "[", "]", ",", ">"]:
        assert len([piece for piece in ids(tokenizer, text) if piece != 3]) == 1, text
    assert 500 <= len(tokenizer) <= 700


@pytest.mark.parametrize("answer", ["[[82, 150]]", "[[0, 7], [12, 19]]", "[[9, 199]]"])
def test_answers_survive_the_small_t5(answer):
    tokenizer = load_t5(TINY / "t5")
    assert tokenizer.decode(tokenizer(answer)["input_ids"], skip_special_tokens=True) == answer


def test_no_token_of_the_shapes_data_is_unknown():
    t5, bert = load_t5(TINY / "t5"), load_bert(TINY / "bert")
    texts = [TASK_PROMPT, "*None*", "-1", "ref: [[82, 150]]\n", string.ascii_letters]
    for seed in range(50):
        scene = make_scene(seed)
        texts += [query.query for query in scene.queries] + [sentence.text for sentence in scene.sentences]
    for text in texts:
        assert t5.unk_token_id not in ids(t5, text), text
        assert bert.unk_token_id not in ids(bert, words(text)), text


def test_any_english_word_can_be_written_by_both():
    t5, bert = load_t5(TINY / "t5"), load_bert(TINY / "bert")
    text = "Jovial quizmasters vex a cryptographer's 12 dwarfs"
    assert t5.decode(ids(t5, text)) == text
    assert bert.unk_token_id not in ids(bert, words(text))


@pytest.mark.parametrize(("load", "file"), [(load_t5, "spiece.model"), (load_bert, "vocab.txt")])
def test_a_folder_without_its_files_is_refused(tmp_path, load, file):
    with pytest.raises(TokenizerError, match=file):
        load(tmp_path)
    with pytest.raises(TokenizerError, match="no_such_folder"):
        load(tmp_path / "no_such_folder")


def test_the_committed_t5_vocabulary_is_what_the_command_makes(tmp_path):
    make.train_t5_tokenizer(tmp_path)
    assert load_t5(tmp_path).get_vocab() == load_t5(TINY / "t5").get_vocab()
