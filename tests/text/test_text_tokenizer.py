"""The tokenizers of a search are those of transformers, and do without transformers from the second time on."""

import subprocess
import sys

import numpy as np
import pytest
import transformers

from calce_jax.config import packaged_path
from calce_jax.storage.disk_cache import DiskCache
from calce_jax.storage.program_cache import ProgramCache
from calce_jax.text.text_tokenizer import TextTokenizer
from calce_jax.text.tokenizers import load_bert, load_t5

TINY = packaged_path("calce_jax/assets/tiny")
TEXTS = [
    "A red circle moves to the left, doesn't it ?",
    "[[12, 30], [4, 150]]",
    "  x\n\u00e9\u4e2d <extra_id_0> </s>",
    "",
]


@pytest.fixture(params=["t5", "bert"])
def pair(request, tmp_path, monkeypatch) -> tuple[TextTokenizer, transformers.PreTrainedTokenizerBase]:
    """Return our tokenizer, the second time that it is opened, and that of transformers."""
    programs = ProgramCache(DiskCache(tmp_path))
    load, kind, options = {
        "t5": (load_t5, transformers.T5Tokenizer, {"clean_up_tokenization_spaces": True}),
        "bert": (load_bert, transformers.BertTokenizer, {}),
    }[request.param]
    theirs = kind.from_pretrained(str(TINY / request.param), **options)
    load(TINY / request.param, programs)
    monkeypatch.setattr(kind, "from_pretrained", lambda *_, **__: pytest.fail("transformers is not needed any more"))
    return load(TINY / request.param, programs), theirs


def test_ids_and_texts_are_those_of_transformers(pair):
    ours, theirs = pair
    assert (len(ours), ours.get_vocab()) == (len(theirs), theirs.get_vocab())
    assert (ours.unk_token_id, ours.pad_token_id) == (theirs.unk_token_id, theirs.pad_token_id)
    for special in (False, True):
        expected = theirs(TEXTS, add_special_tokens=special)["input_ids"]
        assert ours(TEXTS, add_special_tokens=special)["input_ids"] == expected
        assert [ours(text, add_special_tokens=special)["input_ids"] for text in TEXTS] == expected
    rng = np.random.default_rng(0)
    for ids in [*expected, *rng.integers(0, len(ours), (50, 12)).tolist()]:
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert [ours.token(i) for i in range(len(ours))] == theirs.convert_ids_to_tokens(list(range(len(ours))))
    assert ours.token_id("no such token") == theirs.convert_tokens_to_ids("no such token")


def test_spaces_before_punctuation_are_left_out():
    t5 = load_t5(TINY / "t5")
    plain = TextTokenizer(t5.backend, 2, 0)
    ids = [*t5.encode("12", add_special_tokens=False), 3, t5.token_id(",")]
    assert plain.decode(ids) == "12 ,"
    assert t5.decode(ids) == "12,"


def test_another_vocabulary_is_another_tokenizer(tmp_path):
    programs = ProgramCache(DiskCache(tmp_path / "cache"))
    folder = tmp_path / "bert"
    folder.mkdir()
    words = (TINY / "bert/vocab.txt").read_text()
    (folder / "vocab.txt").write_text(words)
    before = load_bert(folder, programs)
    (folder / "vocab.txt").write_text(words + "zeppelin\n")
    assert len(load_bert(folder, programs)) == len(before) + 1
    with pytest.raises(ValueError, match="there is no token"):
        before.token(len(before))


@pytest.mark.slow
def test_a_search_imports_no_library_of_training():
    program = (
        "import sys, calce_jax.commands.search, calce_jax.search.modes, calce_jax.search.output; "
        "import calce_jax.search.searcher; "
        "print([name for name in ('transformers', 'grain', 'orbax', 'tensorflow_datasets', 'tensorflow', 'torch', "
        "'sentencepiece', 'tensorboardX', 'ml_collections') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_threads_may_load_the_first_tokenizers_at_once():
    program = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from calce_jax.presets.tiny import tiny_config\n"
        "from calce_jax.text.tokenizers import open_tokenizers\n"
        "with ThreadPoolExecutor(4) as threads:\n"
        "    print(len(list(threads.map(open_tokenizers, [tiny_config(1)] * 4))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("4", 0), done.stderr
