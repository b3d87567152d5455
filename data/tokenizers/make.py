"""Train the small tokenizers: `python -m data.tokenizers.make`.

`tiny_t5` is a sentencepiece model laid out like T5's (0 padding, 1 end, 2 unknown, 3 the word border, a hundred
sentinels behind the pieces) in which every number from 0 to 199, the brackets, the comma, ">" and the words of the
shapes world are pieces of their own.
`tiny_bert` is a WordPiece vocabulary. Both fall back to letters, so any English sentence can be written.
"""

import io
import re
import string
from pathlib import Path

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # pyright: ignore[reportAttributeAccessIssue]

from data.shapes.scene import make_scene

HERE = Path(__file__).parent
SCENES = 2000
T5_PIECES = 300
BORDER = "\N{LOWER ONE EIGHTH BLOCK}"
TASK = "Given the video and the subtitle and the query, find the query relevant windows.\nRelevant windows: "
# Words of real queries and captions, so that sentences from outside the shapes world are not all letters.
ENGLISH = (
    "a man and woman are talking to the camera in their car while driving; people walk through the park with dogs",
    "she shows how to cook food at home, he is sitting on the couch with his laptop, they look at what is in front",
    "hello everyone welcome back to my channel, thank you for watching, see you soon, this is the best one",
    "person opens the door, holds a cup of water, turns the light on, puts clothes away, takes off shoes",
)


def sentences() -> list[str]:
    """Return what the shapes world says and asks, with the words around it in a prompt."""
    lines = ["Query: x\n", "Items: a,b\n", "*None*", "-1", TASK, *ENGLISH] * 50
    for seed in range(SCENES):
        scene = make_scene(seed)
        lines += [sentence.text for sentence in scene.sentences]
        lines += [f"Query: {query.query}\nItems: {','.join(query.items)}" for query in scene.queries]
    return lines


def make_t5(folder: Path) -> None:
    """Write `spiece.model`."""
    trained = io.BytesIO()
    lines = sentences()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=trained,
        vocab_size=T5_PIECES,
        hard_vocab_limit=False,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        required_chars=BORDER + string.ascii_letters + string.punctuation,
        character_coverage=1.0,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(with_whole_pieces(trained.getvalue(), lines))


def with_whole_pieces(model: bytes, lines: list[str]) -> bytes:
    """Put numbers, signs and the words of the shapes world in front of the trained pieces, and make them preferred.

    A unigram model takes the split with the greatest sum of scores, so a piece with a score near zero is never split.
    The lone word border gets id 3, as in T5.
    """
    proto = ModelProto.FromString(model)
    words = sorted({word for line in lines for word in re.findall("[A-Za-z]+", line)})
    whole = [BORDER, *map(str, range(200)), *"[],>", *(BORDER + word for word in words)]
    special, trained = proto.pieces[:3], [piece for piece in proto.pieces[3:] if piece.piece not in whole]
    kept = [ModelProto.SentencePiece(piece=piece, score=-1.0) for piece in whole]
    for piece in trained:
        piece.score -= 5.0
    del proto.pieces[:]
    proto.pieces.extend([*special, *kept, *trained])
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString()


def make_bert(folder: Path) -> None:
    """Write `vocab.txt`: special tokens, signs, letters and digits at the start of a word and within, whole words.

    Trainers of WordPiece break ties by chance, and these words are few enough to be listed.
    """
    characters = string.digits + string.ascii_lowercase
    words = {word.lower() for line in sentences() for word in re.findall("[A-Za-z]{2,}", line)}
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
    make_t5(HERE / "tiny_t5")
    make_bert(HERE / "tiny_bert")
