"""Both stages on any videos: files and sentences in, ranked moments out.

A long video is searched piece by piece (`calce_jax.pieces`), and what is seen of a piece is computed once for all
queries and kept (`calce_jax.looked`, `calce_jax.cache`). What the pieces answer becomes one list (`calce_jax.ranking`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from calce_jax.asking import Asker
from calce_jax.cache import Cache, content_of, key_of
from calce_jax.captions import clean, read_srt
from calce_jax.inference import Answer
from calce_jax.items import items_of
from calce_jax.models.seen import Looked
from calce_jax.pieces import Footage, Piece, Sampling, captions_in, footage
from calce_jax.prompt import BORDER, Caption
from calce_jax.ranking import Moment, moments_of
from calce_jax.report.page import Treatment
from calce_jax.trained import Trained, open_base, open_trained
from calce_jax.training.config import Dataset, RunConfig, validate
from configs.calce import get_config
from data.moments import Example

# Seconds of the videos of each dataset: all of QVHighlights', all of shapes', 99 of 100 of Charades'.
TRAINED_ON: dict[Dataset, float] = {"qvh": 150.0, "charades": 60.0, "shapes": 40.0}
SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv"})
MOST_WORDS = 60  # of a query; more would push each other out of the prompt
MOST_LETTERS = 1000  # of a query; its 60 words may have any length, and all of them are tagged and tokenized
MOST_MOMENTS = 5
DETAIL: dict[Treatment, int] = {"dropped": 0, "compressed": 1, "full": 2}


class SearchError(ValueError):
    """A search cannot be made; the message says what is missing and the remedy."""


@dataclass(frozen=True)
class Said:
    """A caption that the model was given: seconds, words, and how alike it is to the query (cosine)."""

    start: float
    end: float
    text: str
    similarity: float


@dataclass(frozen=True)
class Found:
    """What was found for one query in one video.

    Attributes:
      query: the sentence.
      stages: moments by stage, best first; those of the last stage are the result.
      captions: those used around the moments, in order of time.
      frames: (second, treatment by the last stage) of the key frames of all pieces, in order of time.
      shown: the pieces that hold a moment.
    """

    query: str
    stages: dict[str, list[Moment]]
    captions: list[Said]
    frames: list[tuple[float, Treatment]]
    shown: list[Piece]

    @property
    def moments(self) -> list[Moment]:
        """The last stage's."""
        return list(self.stages.values())[-1]


@dataclass(frozen=True)
class Searched:
    """A video with what was found in it, one entry a query."""

    video: Path
    duration: float
    found: list[Found]


class Searcher:
    """Two stages, ready for any video.

    Args:
      stages: a run of each, in order; see `open_stages`.
      cache: what is computed of videos is kept there.
      longest: seconds of a piece; what the runs were trained on unless given.
    """

    def __init__(self, stages: Sequence[Trained], cache: Cache, longest: float | None = None):
        last = stages[-1].config
        frames = max(trained.config.data.frames for trained in stages)
        self.sampling = Sampling(longest or TRAINED_ON[last.data.dataset], frames, stages[0].sizes.vit.image_size)
        self.cache = cache
        self._t5 = stages[0].tokenizers.t5
        self._phrases = last.data.dataset == "shapes"  # how the items looked that the runs were trained with
        self._askers = {f"stage {each.config.stage}": Asker(each, self.sampling.longest) for each in stages}
        self._weights = {name: _fingerprint(asker.trained) for name, asker in self._askers.items()}

    def search(
        self, video: str | Path, queries: Sequence[str], captions: Sequence[Caption] = (), *, most: int = MOST_MOMENTS
    ) -> Searched:
        """Find the moments of each sentence in one video.

        Args:
          video: the file.
          queries: sentences, see `check_queries`.
          captions: what is said, in order of time.
          most: moments a query at most.

        Raises:
          SearchError: a query cannot be asked.
          VideoError: the video cannot be read.
        """
        check_queries(queries, self._t5)
        content = content_of(video) if Path(video).is_file() else ""
        duration, pieces, footages = footage(video, content, self.sampling, self.cache)
        parts: list[_Part] = []
        together = max(min(asker.most for asker in self._askers.values()) // len(queries), 1)
        with tqdm(desc=Path(video).name, total=len(pieces), unit="piece", dynamic_ncols=True, leave=False) as bar:
            while group := list(islice(footages, together)):
                parts += self._ask(group, content, queries, captions)
                bar.update(len(group))
        found = [_found(query.strip(), number, parts, most) for number, query in enumerate(queries)]
        return Searched(Path(video), duration, found)

    def _ask(
        self, group: Sequence[Footage], content: str, queries: Sequence[str], captions: Sequence[Caption]
    ) -> list["_Part"]:
        heard = [captions_in(captions, each.piece) for each in group]
        named = [items_of(query, phrases=self._phrases) for query in queries]
        examples = [
            _example(number, query, items, each, said)
            for each, said in zip(group, heard, strict=True)
            for number, (query, items) in enumerate(zip(queries, named, strict=True))
        ]
        answers: dict[str, list[Answer]] = {}
        for name, asker in self._askers.items():
            looked = [
                self._look(name, asker, example, each, content)
                for each, example in zip(group, examples[:: len(queries)], strict=True)
            ]
            answers[name] = asker.ask(examples, [each for each in looked for _ in queries])
            examples = [
                replace(example, stage1_windows=_windows(answer))
                for example, answer in zip(examples, answers[name], strict=True)
            ]
        return [
            _Part(
                each.piece,
                each.times,
                clean(said),
                {name: found[n * len(queries) : (n + 1) * len(queries)] for name, found in answers.items()},
            )
            for n, (each, said) in enumerate(zip(group, heard, strict=True))
        ]

    def _look(self, name: str, asker: Asker, example: Example, footage: Footage, content: str) -> Looked:
        piece = footage.piece
        key = key_of(
            content=content,
            piece=[piece.start, piece.end, len(footage.keyframes)],
            frames=asker.frames,
            weights=self._weights[name],
        )
        kept = self.cache.read_arrays("features", key)
        if kept is None:
            looked = asker.look(example)
            self.cache.write_arrays("features", key, {"means": looked.means, "queries": looked.queries})
            return looked
        return Looked(**kept)


def open_stages(checkpoint: str | Path | None = None) -> list[Trained]:
    """Open the runs of both stages on one device, with frozen weights that are there once.

    Args:
      checkpoint: a folder with the workdirs `stage1` and `stage2`; the tiny model that comes with the package unless
        given, which knows nothing but the world of shapes.

    Raises:
      SearchError: the folder has no such workdirs.
      ConfigError, CheckpointError, TokenizerError: a run cannot be opened.
    """
    if checkpoint is None:
        stages = [open_base(tiny_config(stage)) for stage in (1, 2)]
    else:
        folders = [Path(checkpoint) / f"stage{stage}" for stage in (1, 2)]
        missing = [str(folder) for folder in folders if not (folder / "config.json").is_file()]
        if missing:
            raise SearchError(
                f"{checkpoint}: no trained run in {' and '.join(missing)}; give the folder that holds the workdirs "
                "stage1 and stage2 (`make demo` makes runs/demo), or leave --checkpoint out for the tiny model"
            )
        stages = [open_trained(folder, mesh="single") for folder in folders]
    first, second = stages
    if (first.config.model, first.config.weights.base) == (second.config.model, second.config.weights.base):
        second = replace(second, frozen=first.frozen)
    return [first, second]


def tiny_config(stage: int) -> RunConfig:
    """Return the config of the tiny model that comes with the package, its files wherever they are installed."""
    here = Path(str(files("data")))
    config = get_config(f"shapes,stage={stage}")
    config.update(
        {
            "mesh": "single",
            "weights": {"base": str(here / "shapes" / "base.safetensors"), "start": ""},
            "text": {name: str(here / "tokenizers" / f"tiny_{name.split('_')[0]}") for name in _TOKENIZERS},
        }
    )
    return validate(config)


_TOKENIZERS = ("t5_tokenizer", "bert_tokenizer")


def keep_programs(folder: str | Path, limit: int = 10**9) -> None:
    """Keep compiled programs in a folder, too, up to so many bytes; those unused for longest go first."""
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).absolute() / "programs"))
    jax.config.update("jax_compilation_cache_max_size", limit)


def check_queries(queries: Sequence[str], t5: PreTrainedTokenizerBase | None = None) -> None:
    """Refuse what no model here can be asked.

    Args:
      queries: sentences.
      t5: the model's tokenizer; without it, whether the words are known is not looked at.

    Raises:
      SearchError: there is no query; one is empty, longer than 60 words or 1000 characters, or has no word that the
        tokenizer can write.
    """
    if not queries:
        raise SearchError("no query; say in a sentence what to look for")
    for number, query in enumerate(queries, 1):
        if not query.strip():
            raise SearchError(f"query {number} is empty; say in a sentence what to look for")
        if (words := len(query.split())) > MOST_WORDS:
            raise SearchError(f"query {number} has {words:,} words; say it in {MOST_WORDS} or fewer")
        if len(query) > MOST_LETTERS:
            raise SearchError(f"query {number} has {len(query):,} characters; say it in {MOST_LETTERS:,} or fewer")
        if t5 and not any(piece.strip(BORDER).isalnum() for piece in _pieces(query, t5)):
            raise SearchError(f"query {number} ({query.strip()[:40]}) has no word that the model knows; ask in English")


def _pieces(text: str, t5: PreTrainedTokenizerBase) -> list[str]:
    """Return what the tokenizer makes of a text, without what it does not know."""
    ids = [int(i) for i in t5(text, add_special_tokens=False)["input_ids"]]
    return [str(t5.convert_ids_to_tokens(i)) for i in ids if i != t5.unk_token_id]


def captions_of(video: str | Path, srt: str | Path) -> list[Caption]:
    """Return what is said in a video.

    Args:
      video: the file.
      srt: "none" for nothing; "auto" for the .srt file beside the video, where there is one; otherwise a file, or a
        folder of files called like their videos.

    Raises:
      CaptionError, FileNotFoundError: the captions cannot be read.
    """
    beside = Path(video).with_suffix(".srt")
    if srt == "none" or (srt == "auto" and not beside.is_file()):
        return []
    if srt == "auto":
        return read_srt(beside)
    return read_srt(Path(srt) / beside.name if Path(srt).is_dir() else srt)


def videos_in(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files, and those in the folders that are called like videos, each once.

    Raises:
      SearchError: there is none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        found += [each for each in inside if each not in found]
    if not found:
        raise SearchError(f"no video among {', '.join(map(str, paths))}; they end in {', '.join(sorted(SUFFIXES))}")
    return found


def _fingerprint(trained: Trained) -> str:
    """Name the weights that decide what is seen: those of the base, and `ln_vision`, which is trained."""
    config, base = trained.config, trained.config.weights.base
    norm = [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(trained.trainable["ln_vision"])]
    about = Path(base).stat() if base else None
    return key_of(
        model=[config.model.size, config.model.frozen_dtype, config.model.compute_dtype],
        base=[about.st_size, about.st_mtime_ns] if about else config.seed,
        norm=norm,
    )


def _norm(trained: Trained) -> dict[str, jax.Array]:
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(trained.trainable["ln_vision"])
    }


def _example(number: int, query: str, items: list[str], footage: Footage, captions: Sequence[Caption]) -> Example:
    return Example(
        qid=number,
        video="",
        row=0,
        query=query.strip(),
        items=items,
        duration=footage.piece.duration,
        windows=np.zeros((0, 2)),
        stage1_windows=None,
        kind=None,
        keyframes=footage.keyframes,
        indices=footage.indices,
        times=footage.times,
        total=footage.total,
        rate=footage.rate,
        captions=[(float(caption.start), float(caption.end), caption.text) for caption in captions],
    )


def _windows(answer: Answer) -> np.ndarray | None:
    """Return what stage 2 is told: the windows in order of time, or nothing where stage 1 found none."""
    windows = sorted(window[:2] for window in answer.moments.windows)
    return np.array(windows, np.float64) if windows else None


@dataclass(frozen=True)
class _Part:
    """A piece with the times of its key frames, what is said in it, and by stage the answers to each query."""

    piece: Piece
    times: np.ndarray  # seconds from the piece's start
    said: list[Caption]
    answers: dict[str, list[Answer]]


def _found(query: str, number: int, parts: Sequence[_Part], most: int) -> Found:
    pieces = [part.piece for part in parts]
    stages = {
        name: moments_of(pieces, [part.answers[name][number].moments.beams for part in parts], most)
        for name in parts[0].answers
    }
    name, moments = list(stages.items())[-1]
    captions: dict[tuple[float, float, str], float] = {}
    frames: dict[float, Treatment] = {}
    shown: list[Piece] = []
    for part in parts:
        piece, answer = part.piece, part.answers[name][number]
        for second, treatment in zip(part.times.tolist(), answer.treatments, strict=True):
            at = round(piece.start + second, 2)
            frames[at] = max(frames.get(at, treatment), treatment, key=DETAIL.__getitem__)
        if any(moment.start < piece.end and moment.end > piece.start for moment in moments):
            shown.append(piece)
            for n in answer.used:
                said = part.said[n]
                span = piece.start + float(said.start), piece.start + float(said.end)
                captions[*span, said.text] = answer.similarity[n]
    return Found(
        query=query,
        stages=stages,
        captions=[Said(*caption, round(alike, 3)) for caption, alike in sorted(captions.items())],
        frames=sorted(frames.items()),
        shown=shown,
    )
