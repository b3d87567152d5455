"""Train the small tokenizers of the tiny model, calce_jax/assets/tiny/{t5,bert}: `python -m data.tokenizers.make`.

`t5` is a sentencepiece model laid out like T5's (0 padding, 1 end, 2 unknown, 3 the word border, a hundred sentinels
after the pieces). Every number from 0 to 199, the brackets, the comma, ">" and the words of the shapes world are single
pieces of it. `bert` is a WordPiece vocabulary. Both fall back to letters, so they can encode any English sentence.
"""

import io
import re
import string
from pathlib import Path

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # pyright: ignore[reportAttributeAccessIssue]

from data.shapes.scene import make_scene

ASSETS = Path(__file__).parents[2] / "calce_jax" / "assets" / "tiny"
NUM_SCENES = 2000
T5_VOCAB_SIZE = 300
WORD_BOUNDARY = "\N{LOWER ONE EIGHTH BLOCK}"
TASK_PROMPT = "Given the video and the subtitle and the query, find the query relevant windows.\nRelevant windows: "
# Words of real queries and captions, so that other sentences are not encoded as letters only.
ENGLISH_SENTENCES = (
    "a man and woman are talking to the camera in their car while driving; people walk through the park with dogs",
    "she shows how to cook food at home, he is sitting on the couch with his laptop, they look at what is in front",
    "hello everyone welcome back to my channel, thank you for watching, see you soon, this is the best one",
    "person opens the door, holds a cup of water, turns the light on, puts clothes away, takes off shoes",
)


def corpus_lines() -> list[str]:
    """Return the sentences and queries of the shapes world, and the other text of a prompt."""
    lines = ["Query: x\n", "Items: a,b\n", "*None*", "-1", TASK_PROMPT, *ENGLISH_SENTENCES] * 50
    for seed in range(NUM_SCENES):
        scene = make_scene(seed)
        lines += [sentence.text for sentence in scene.sentences]
        lines += [f"Query: {query.query}\nItems: {','.join(query.items)}" for query in scene.queries]
    return lines


def train_t5_tokenizer(folder: Path) -> None:
    """Write `spiece.model` to a folder."""
    model_file = io.BytesIO()
    lines = corpus_lines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model_file,
        vocab_size=T5_VOCAB_SIZE,
        hard_vocab_limit=False,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        required_chars=WORD_BOUNDARY + string.ascii_letters + string.punctuation,
        character_coverage=1.0,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(add_whole_word_pieces(model_file.getvalue(), lines))


def add_whole_word_pieces(model: bytes, lines: list[str]) -> bytes:
    """Insert numbers, signs and the words of the shapes world before the trained pieces, with higher scores.

    A unigram model takes the segmentation with the greatest sum of scores, so a piece with a score near zero is never
    split. The word border alone gets id 3, as in T5.
    """
    proto = ModelProto.FromString(model)
    words = sorted({word for line in lines for word in re.findall("[A-Za-z]+", line)})
    whole_words = [WORD_BOUNDARY, *map(str, range(200)), *"[],>", *(WORD_BOUNDARY + word for word in words)]
    special, trained = proto.pieces[:3], [piece for piece in proto.pieces[3:] if piece.piece not in whole_words]
    whole_word_pieces = [ModelProto.SentencePiece(piece=piece, score=-1.0) for piece in whole_words]
    for piece in trained:
        piece.score -= 5.0
    del proto.pieces[:]
    proto.pieces.extend([*special, *whole_word_pieces, *trained])
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString()


def write_bert_vocabulary(folder: Path) -> None:
    """Write `vocab.txt` to a folder: special tokens, signs, letters and digits at and after the start of a word, words.

    Trainers of WordPiece break ties at random, and these words are few enough to be listed.
    """
    characters = string.digits + string.ascii_lowercase
    words = {word.lower() for line in corpus_lines() for word in re.findall("[A-Za-z]{2,}", line)}
    vocabulary = [
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *string.punctuation,
        *characters,
        *("##" + character for character in characters),
        *sorted(words),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")


if __name__ == "__main__":
    train_t5_tokenizer(ASSETS / "t5")
    write_bert_vocabulary(ASSETS / "bert")
