"""07 to 09: prompts token for token, captions, and what is read from answers."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from calce_jax.models.keyframes.plan import Plan
from calce_jax.models.prompt_packing import Choice, choose_captions, lengths, pack
from calce_jax.moments import windows_reference
from calce_jax.text.captions import CaptionError, clean, clean_text, read_srt, spoken_intervals
from calce_jax.text.prompt import (
    BORDER,
    NO_CAPTION,
    SINGLE_NUMBERS,
    Caption,
    PromptWriter,
    TextRow,
    TextSizes,
    answer_text,
    replaced_numbers,
)
from calce_jax.text.tokenizers import load_bert, load_t5
from tests.fidelity.folder import Folder
from tests.fidelity.language import load_qformer
from tests.fidelity.report import Case, Group

# Cosines of float32 states that went through all layers.
COSINES = 1e-5
Tokenizers = tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]
Pairs = Iterator[tuple[Any, Any]]
POSITIONS = ("attention_mask", "kind", "token_id", "frame_idx", "key_frame_idx")
WORDS, ANSWER = 64, 256  # room enough: the original has 200 for either


def prompts(folder: Folder) -> Iterator[Group]:
    """Compare every position of every prompt, the answers to learn, and how numbers are written.

    The original pads in the middle of a batch; its padding is taken out, which leaves what it makes of a batch of one.
    """
    recorded = folder.json("07_prompts")
    tokenizers = load_t5(folder.beside("tokenizers", "t5")), load_bert(folder.beside("tokenizers", "bert"))
    cases = recorded["cases"]
    positions, texts = Group("07_prompts/positions"), Group("07_prompts/strings")
    yield from (positions, texts)

    frames = max(len(times) for case in cases for times in case["timestamps"])
    captions = max(1, *(len(said) for case in cases for said in case["subtitles_in"]))
    used = max(1, *(len(said) for case in cases for said in case["subtitles_selected"]))
    longest = max(sum(mask) for case in cases for mask in case["attention_mask"])
    full, compressed = _frame_tokens(cases)
    sizes = TextSizes(frames, captions, WORDS, text_tokens=400 + 2 * frames + 64 * captions, answer_tokens=ANSWER)
    packs = jax.jit(partial(pack, length=longest + 8, full=full, compressed=compressed))
    measures = jax.jit(partial(lengths, full=full, compressed=compressed))

    for number, case in enumerate(cases):
        writer = PromptWriter(*tokenizers, sizes, stage=case["stage"], behaviour="reference")
        for i, row in enumerate(case["rows"]):
            label = f"case {number}, {row['qid']}"
            windows = json.loads(case["stage1_result"][i]) if case["stage"] == 2 else None
            text: TextRow | None = None
            with texts.case(label) as compared:
                text = _written(writer, case, i, windows)
                compared.same(writer.text(row["query"], row["items"], windows), case["text_prompt"][i], "prompt")
                compared.same(writer.answer(row["relevant_windows"]), case["target_strings"][i], "answer")
                target, held = np.array(case["target_ids"][i]), np.array(case["target_mask"][i]) != 0
                compared.same(text.labels[text.labels != 0], target[held], "labels")
            with positions.case(label) as compared:
                if text is None:
                    raise RuntimeError("no prompt was written")
                plan = _plan(case["key_frame_idx"][i], case["non_key_frame_idx"][i], frames)
                choice = _choice(case, i, used, captions)
                tokens, spans = jnp.asarray(text.tokens[None]), jnp.asarray(text.spans[None])
                needed = int(measures(plan, spans, choice)[0])
                arrays = vars(packs(plan, tokens, spans, choice))
                packed = SimpleNamespace(**{name: np.asarray(array)[0] for name, array in arrays.items()})
                wanted = {name: case[name][i] for name in POSITIONS}
                _compare_positions(compared, packed, needed, np.asarray(plan.index)[0], wanted)

    numbers = Group("07_prompts/numbers")
    yield numbers
    _compare_extras(numbers, recorded["extras"], tokenizers)


def _frame_tokens(cases: list[dict[str, Any]]) -> tuple[int, int]:
    """Return how many tokens a key frame and another frame take, as most of the recorded ones do."""
    full, compressed = Counter[int](), Counter[int]()
    for case in cases:
        for i, frame_idx in enumerate(case["frame_idx"]):
            sizes = Counter(frame for frame, kind in zip(frame_idx, case["kind"][i], strict=True) if kind == 2)
            key = set(case["key_frame_idx"][i])
            full.update(size for frame, size in sizes.items() if frame in key)
            compressed.update(size for frame, size in sizes.items() if frame not in key)
    most = [(counter.most_common(1) or [(1, 0)])[0][0] for counter in (full, compressed)]
    return most[0], most[1]


def _written(writer: PromptWriter, case: dict[str, Any], i: int, windows: Any) -> TextRow:
    row = case["rows"][i]
    said = [Caption(c["start"], c["end"], c["text"]) for c in case["subtitles_in"][i]]
    text = writer.write(
        row["query"],
        row["items"],
        case["timestamps"][i],
        case["duration"][i],
        said,
        answer=row["relevant_windows"],
        reference_windows=windows,
    )
    if text.notes:
        raise ValueError(f"something did not fit: {', '.join(text.notes.describe())}")
    return text


def _plan(key: list[int], other: list[int], slots: int) -> Plan:
    """Return the plan that takes these frames, as selection hands it over."""
    taken = sorted([*key, *other])
    index = np.zeros((1, slots), np.int32)
    index[0, : len(taken)] = taken
    kept = np.arange(slots)[None] < len(taken)
    return Plan(
        jnp.asarray(index),
        jnp.asarray(kept),
        jnp.asarray(kept & np.isin(index, key)),
        jnp.zeros((1, slots), jnp.int32),
        jnp.zeros(1, bool),
    )


def _choice(case: dict[str, Any], i: int, most: int, captions: int) -> Choice:
    """Return the choice of the captions that were selected there."""
    said = [(c["start"], c["end"], c["text"]) for c in case["subtitles_in"][i]]
    selected = [c for c in case["subtitles_selected"][i] if c["text"] != NO_CAPTION]
    order = [said.index((c["start"], c["end"], c["text"])) for c in selected]
    padded = np.array([[*order, *[0] * (most - len(order))]], np.int32)
    room = np.zeros((1, captions), np.float32)
    return Choice(jnp.asarray(padded), jnp.asarray(np.arange(most)[None] < len(order)), jnp.asarray(room))


def _compare_positions(
    compared: Case, packed: SimpleNamespace, needed: int, index: np.ndarray, wanted: dict[str, Any]
) -> None:
    real = np.array(wanted["attention_mask"]) != 0
    kind, token, frame = (np.array(wanted[name])[real] for name in ("kind", "token_id", "frame_idx"))
    compared.same(needed, len(kind), "length")
    compared.same(packed.mask.sum(), len(kind), "mask")
    n = len(kind)
    text = packed.text[:n]
    compared.same(text, kind == 1, "kinds")
    compared.same(packed.token[:n][text], token[kind == 1], "tokens")
    slot = packed.slot[:n][~text]
    compared.same(index[slot], frame[kind == 2], "frames")
    compared.same(packed.key[:n][~text], np.isin(frame[kind == 2], wanted["key_frame_idx"]), "key frames")
    # Within a frame the query tokens come in order, each once.
    sizes = Counter(frame[kind == 2].tolist())
    expected = [query for each in dict.fromkeys(frame[kind == 2].tolist()) for query in range(sizes[each])]
    compared.same(packed.query[:n][~text], expected, "query tokens")


class _Numbers:
    """How numbers, signs and answers become tokens and come back; each method gives pairs of ours and theirs."""

    def __init__(self, tokenizers: Tokenizers, extras: dict[str, Any]):
        sizes = TextSizes(frames=1, captions=1, words=WORDS, text_tokens=600, answer_tokens=ANSWER)
        self.t5 = tokenizers[0]
        self.writer = PromptWriter(*tokenizers, sizes, stage=1, behaviour="reference")
        self.replaced = replaced_numbers(self.t5)
        self.single, self.minus_one = extras["clean_timestamp_token_ids_0_199"], extras["minus_one"]

    def replacements(self, wanted: dict[str, int], below: int = SINGLE_NUMBERS) -> Pairs:
        yield replaced_numbers(self.t5, below), {int(a): b for a, b in wanted.items()}

    def split(self, wanted: list[int], below: int) -> Pairs:
        yield list(replaced_numbers(self.t5, below)), wanted

    def single_pieces(self, wanted: list[list[int]], last: int) -> Pairs:
        for number in range(last + 1):
            yield self._time(number), wanted[self.replaced.get(number, number)]

    def pieces(self, wanted: list[list[int]], last: int) -> Pairs:
        yield [self._plain(number) for number in range(last + 1)], wanted

    def bordered(self, wanted: list[int]) -> Pairs:
        border = self.t5.convert_tokens_to_ids(BORDER)
        yield [number for number in range(len(self.single)) if self._plain(number)[0] == border], wanted

    def minus(self, wanted: list[int]) -> Pairs:
        yield self._time(-1), wanted

    def answers(self, wanted: list[Any]) -> Pairs:
        for windows, text, ids in wanted:
            yield self.writer.answer(json.loads(windows)), text
            yield self.t5(text)["input_ids"], ids

    def decoded(self, wanted: list[dict[str, Any]]) -> Pairs:
        for case in wanted:
            yield answer_text(self.t5, case["ids"]), case["skip_special"]

    def rounded(self, wanted: dict[str, list[Any]]) -> Pairs:
        for second, whole in zip(wanted["in_"], wanted["out"], strict=True):
            yield self._time(second), self.minus_one if whole == -1 else self.single[whole]
        for duration, whole in zip(wanted["durations_in"], wanted["durations_out"], strict=True):
            yield self._spans(duration=duration)[1][1:-1], self.single[whole]

    def signs(self, wanted: dict[str, list[int]]) -> Pairs:
        end, nothing, caption_end = (self._spans()[place] for place in (1, 3, 4))
        ours = {">": end[:1], "<extra_id_0>": end[-1:], "<extra_id_1>": caption_end}
        ours |= {"[": nothing[:1], "]": nothing[-1:]}
        yield ours, {sign: wanted[sign] for sign in ours}

    def _spans(self, **row: Any) -> list[list[int]]:
        told = {"query": "", "items": [], "times": [0], "duration": 1} | row
        written = self.writer.write(**told)
        return [written.tokens[start : start + size].tolist() for start, size in written.spans]

    def _time(self, second: float) -> list[int]:
        return self._spans(times=[second])[0]

    def _plain(self, second: int) -> list[int]:
        return self.t5(str(second), add_special_tokens=False)["input_ids"]


def _compare_extras(group: Group, extras: dict[str, Any], tokenizers: Tokenizers) -> None:
    numbers = _Numbers(tokenizers, extras)
    known: dict[str, Callable[..., Pairs]] = {
        "replacement_dict": numbers.replacements,
        "replacement_dict_N": numbers.replacements,
        "annoying_numbers_rangeN": numbers.split,
        "clean_timestamp_token_ids_0_N": numbers.single_pieces,
        "timestamp_token_ids_0_N": numbers.pieces,
        "space_annoying": numbers.bordered,
        "minus_one": numbers.minus,
        "sign_tokens": numbers.signs,
        "target_replacements": numbers.answers,
        "decode": numbers.decoded,
        "rounding": numbers.rounded,
    }
    for name, wanted in extras.items():
        kind, number = re.sub(r"\d+$", "N", name), re.search(r"\d+$", name)
        if kind not in known:
            group.remark(f"not compared: {name}")
            continue
        with group.case(name) as case:
            for ours, theirs in known[kind](wanted, *([int(number[0])] if number else [])):
                case.same(ours, theirs)


def tokenizer_statistics(folder: Folder) -> Iterator[Group]:
    """Compare how long the prompts and answers of all annotations are in tokens."""
    group = Group("07_tokenizer_stats", 1e-12)
    yield group
    t5 = load_t5(folder.beside("tokenizers", "t5"))
    bert = load_bert(folder.beside("tokenizers", "bert"))
    sizes = TextSizes(frames=1, captions=1, words=WORDS, text_tokens=600, answer_tokens=ANSWER)
    writer = PromptWriter(t5, bert, sizes, stage=2, behaviour="reference")
    for name, wanted in folder.json("07_tokenizer_stats")["stats"].items():
        with group.case(name) as case:
            rows = json.loads(folder.beside("annotations", "calce", *name.split("/")).read_text(encoding="utf-8"))
            asked = [writer.text(row["query"], row["items"], row["stage1_result"]) for row in rows]
            prompt = np.array([len(ids) for ids in t5(asked)["input_ids"]])
            answers = [writer.answer(row["relevant_windows"]) for row in rows]
            answer = np.array([len(ids) for ids in t5(answers)["input_ids"]])
            ours = {"rows": len(rows), "text_prompt_tokens_max": prompt.max(), "target_tokens_max": answer.max()}
            ours |= {name: (prompt > int(name.split("_")[-1])).sum() for name in wanted if "prompt_over" in name}
            ours |= {name: (answer > int(name.split("_")[-1])).sum() for name in wanted if "targets_over" in name}
            case.same({key: int(value) for key, value in ours.items()}, {key: wanted[key] for key in ours})
            case.close(answer.mean(), wanted["mean_target"], "mean length of an answer")


def subtitles(folder: Folder) -> Iterator[Group]:
    """Compare captions as read, joined and cleaned, stretches of speech, and the choice by likeness."""
    recorded = folder.json("08_subtitles")
    files, cleaning = Group("08_subtitles/files"), Group("08_subtitles/cleaning")
    yield from (files, cleaning)
    for name, wanted in recorded["files"].items():
        if isinstance(wanted, dict):
            with files.case(name) as case:
                _compare_captions(case, folder.path / "08_srt" / f"{name}.srt", wanted)
    for text, words in recorded["files"]["text_filter"]:
        with cleaning.case(repr(text)) as case:
            case.same(clean_text(text), words)

    choice = Group("08_subtitles/choice", COSINES)
    yield choice
    arrays = folder.arrays("08_subtitles")
    words, rows = arrays["word_embedding_ids"], arrays["word_embedding_rows"]
    model = load_qformer(arrays.named("Qformer."), words, rows, folder, "08_subtitles")
    state = jax.jit(model.text_cls)
    longest = max(len(ids) for case in recorded["cls_filter"] for ids in _sentences(case))
    for number, wanted in enumerate(recorded["cls_filter"]):
        with choice.case(f"case {number}") as case:
            captions = wanted["subtitles"]
            # Always the same number of sentences, so that nothing is compiled twice.
            most = max(len(each["subtitles"]) for each in recorded["cls_filter"]) + 1
            ids = np.zeros((most, longest), np.int32)
            for place, its in enumerate(_sentences(wanted)):
                ids[place, : len(its)] = its
            states = state(jnp.asarray(ids))
            used = jnp.arange(most - 1)[None] < len(captions)
            ours = choose_captions(
                states[:1], states[None, 1:], used, threshold=wanted["threshold"], limit=wanted["topk"]
            )
            selected = [captions[c] for c in np.asarray(ours.order)[0, np.asarray(ours.used)[0]]]
            case.same(selected or [{"start": -1, "end": -1, "text": NO_CAPTION}], wanted["selected"])
            if wanted["sims"] is not None:
                case.close(np.asarray(ours.similarity)[0, : len(captions)], wanted["sims"], "cosines")


def _sentences(case: dict[str, Any]) -> list[list[int]]:
    """Return the words of the query and of every caption, of which there may be none."""
    return [case["query_ids"], *(case["subtitle_ids"] or ())]


def _compare_captions(case: Case, path: Any, wanted: dict[str, Any]) -> None:
    if not wanted["error"]:
        said = read_srt(path, "reference")
        ours = [{"start": c.start, "text": c.text, "end": c.end} for c in clean(said)]
        case.same(ours, wanted["combined_subtitles"], "captions")
        case.same([list(s) for s in spoken_intervals(said, "reference")], wanted["subtitle_durations"], "speech")
        return
    kind, _, reason = wanted["error"].partition(": ")
    try:
        read_srt(path, "reference")
    except FileNotFoundError:
        case.same("FileNotFoundError", kind)
    except CaptionError as error:
        case.same(reason.strip("'\"") in str(error), True, f"says {error}, recorded {reason}:")
    else:
        case.differ(f"was read; recorded {wanted['error']}")


def postprocess(folder: Folder) -> Iterator[Group]:
    """Compare what is made of answers, or the kind of error; and the overlap that is printed while training."""
    recorded = folder.json("09_postprocess")
    mended, literal = Group("09_postprocess/mended"), Group("09_postprocess/literal")
    overlap = Group("09_postprocess/overlap", 1e-12)
    yield from (mended, literal, overlap)
    other = 0
    for wanted in recorded["cases"]:
        for name in [name for name in wanted if name != "s"]:
            if name == "moment_str_to_list":
                with literal.case(repr(wanted["s"])) as case:
                    _compare_outcome(case, windows_reference.read_literal, wanted[name], wanted["s"])
            elif found := re.fullmatch(r"post_process_(?:(None)|tensor(\d+)|(?:float)?([\d.]+))", name):
                duration = None if found[1] else json.loads(found[2] or found[3])
                with mended.case(f"{wanted['s']!r} of {duration} s") as case:
                    _compare_outcome(case, windows_reference.mend, wanted[name], wanted["s"], duration)
            else:
                other += 1
    for number, wanted in enumerate(recorded["get_iou"]):
        with overlap.case(f"case {number}") as case:
            ours = windows_reference.frame_iou(wanted["gt"], wanted["pred"], wanted["n_frms"])
            if wanted["out"] == "nan":
                case.same(math.isnan(ours), True, "no number")
            else:
                case.close(ours, wanted["out"])
    if other or recorded.get("tal"):
        mended.remark(f"not compared: {other + len(recorded.get('tal', ()))} results for windows with labels (TAL)")


def _compare_outcome(case: Case, function: Any, wanted: dict[str, Any], *arguments: Any) -> None:
    try:
        ours: Any = {"out": _listed(function(*arguments))}
    except (ValueError, TypeError) as error:
        ours = {"error": type(error).__name__}
    case.same(ours, {name: value for name, value in wanted.items() if name != "msg"})


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
