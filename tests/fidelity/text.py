"""07 to 09: prompts token by token, captions, and the parsing of answers."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calce_jax.models.keyframes.plan import FramePlan
from calce_jax.models.prompt_packing import (
    build_prompt_layout,
    caption_similarity,
    count_prompt_tokens,
    select_captions,
)
from calce_jax.models.selection import CaptionSelection
from calce_jax.moments import windows_reference
from calce_jax.text.captions import CaptionError, clean_captions, clean_text, read_srt, speech_intervals
from calce_jax.text.prompt import (
    NO_CAPTION,
    SINGLE_TOKEN_LIMIT,
    WORD_BOUNDARY,
    Caption,
    PromptWriter,
    TextRow,
    TextSizes,
    decode_answer,
    find_number_replacements,
)
from calce_jax.text.text_tokenizer import TextTokenizer
from calce_jax.text.tokenizers import load_bert, load_t5
from tests.fidelity.folder import RecordingFolder
from tests.fidelity.language import load_qformer
from tests.fidelity.report import Case, Group

# Cosines of float32 hidden states after all layers.
COSINES = 1e-5
Tokenizers = tuple[TextTokenizer, TextTokenizer]
ExpectedPairs = Iterator[tuple[Any, Any]]
POSITION_FIELDS = ("attention_mask", "kind", "token_id", "frame_idx", "key_frame_idx")
BERT_TOKENS, ANSWER_TOKENS = 64, 256  # enough: the original has 200 for either


def prompts(folder: RecordingFolder) -> Iterator[Group]:
    """Compare every position of every prompt, the labels, and the tokens of numbers.

    The original pads prompts in the middle; without the padding they equal those of a batch of one.
    """
    recorded = folder.json("07_prompts")
    tokenizers = load_t5(folder.find_shared("tokenizers", "t5")), load_bert(folder.find_shared("tokenizers", "bert"))
    cases = recorded["cases"]
    positions, texts = Group("07_prompts/positions"), Group("07_prompts/strings")
    yield from (positions, texts)

    frames = max(len(times) for case in cases for times in case["timestamps"])
    captions = max(1, *(len(row_captions) for case in cases for row_captions in case["subtitles_in"]))
    max_selected = max(1, *(len(row_captions) for case in cases for row_captions in case["subtitles_selected"]))
    max_length = max(sum(mask) for case in cases for mask in case["attention_mask"])
    full, compressed = _frame_tokens(cases)
    sizes = TextSizes(
        frames, captions, BERT_TOKENS, text_tokens=400 + 2 * frames + 64 * captions, answer_tokens=ANSWER_TOKENS
    )
    packs = jax.jit(partial(build_prompt_layout, length=max_length + 8, full_tokens=full, compressed_tokens=compressed))
    measures = jax.jit(partial(count_prompt_tokens, full_tokens=full, compressed_tokens=compressed))

    for number, case in enumerate(cases):
        writer = PromptWriter(*tokenizers, sizes, stage=case["stage"], behaviour="reference")
        for i, row in enumerate(case["rows"]):
            label = f"case {number}, {row['qid']}"
            windows = json.loads(case["stage1_result"][i]) if case["stage"] == 2 else None
            text: TextRow | None = None
            with texts.case(label) as compared:
                text = _write_prompt(writer, case, i, windows)
                compared.same(writer.format_text(row["query"], row["items"], windows), case["text_prompt"][i], "prompt")
                compared.same(writer.format_answer(row["relevant_windows"]), case["target_strings"][i], "answer")
                target, is_target = np.array(case["target_ids"][i]), np.array(case["target_mask"][i]) != 0
                compared.same(text.labels[text.labels != 0], target[is_target], "labels")
            with positions.case(label) as compared:
                if text is None:
                    raise RuntimeError("there is no prompt")
                plan = _plan(case["key_frame_idx"][i], case["non_key_frame_idx"][i], frames)
                choice = _choice(case, i, max_selected, captions)
                tokens, spans = jnp.asarray(text.tokens[None]), jnp.asarray(text.spans[None])
                needed = int(measures(plan, spans, choice)[0])
                arrays = vars(packs(plan, tokens, spans, choice))
                packed = SimpleNamespace(**{name: np.asarray(array)[0] for name, array in arrays.items()})
                expected = {name: case[name][i] for name in POSITION_FIELDS}
                _compare_positions(compared, packed, needed, np.asarray(plan.frame_index)[0], expected)

    numbers = Group("07_prompts/numbers")
    yield numbers
    _compare_extras(numbers, recorded["extras"], tokenizers)


def _frame_tokens(cases: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the most frequent numbers of tokens of a key frame and of another frame."""
    full, compressed = Counter[int](), Counter[int]()
    for case in cases:
        for i, frame_idx in enumerate(case["frame_idx"]):
            sizes = Counter(frame for frame, kind in zip(frame_idx, case["kind"][i], strict=True) if kind == 2)
            key = set(case["key_frame_idx"][i])
            full.update(size for frame, size in sizes.items() if frame in key)
            compressed.update(size for frame, size in sizes.items() if frame not in key)
    most_common = [(counter.most_common(1) or [(1, 0)])[0][0] for counter in (full, compressed)]
    return most_common[0], most_common[1]


def _write_prompt(writer: PromptWriter, case: dict[str, Any], i: int, windows: Any) -> TextRow:
    row = case["rows"][i]
    captions = [Caption(c["start"], c["end"], c["text"]) for c in case["subtitles_in"][i]]
    text = writer.write(
        row["query"],
        row["items"],
        case["timestamps"][i],
        case["duration"][i],
        captions,
        true_windows=row["relevant_windows"],
        stage1_windows=windows,
    )
    if text.row_flags:
        raise ValueError(f"the row is truncated: {', '.join(text.row_flags.describe())}")
    return text


def _plan(key: list[int], other: list[int], slots: int) -> FramePlan:
    """Return the plan of the given key frames and other frames, with `slots` slots."""
    selected = sorted([*key, *other])
    index = np.zeros((1, slots), np.int32)
    index[0, : len(selected)] = selected
    kept = np.arange(slots)[None] < len(selected)
    return FramePlan(
        jnp.asarray(index),
        jnp.asarray(kept),
        jnp.asarray(kept & np.isin(index, key)),
        jnp.zeros((1, slots), jnp.int32),
        jnp.zeros(1, bool),
    )


def _choice(case: dict[str, Any], i: int, max_selected: int, captions: int) -> CaptionSelection:
    """Return the recorded caption selection of a row."""
    all_captions = [(c["start"], c["end"], c["text"]) for c in case["subtitles_in"][i]]
    selected = [c for c in case["subtitles_selected"][i] if c["text"] != NO_CAPTION]
    order = [all_captions.index((c["start"], c["end"], c["text"])) for c in selected]
    padded = np.array([[*order, *[0] * (max_selected - len(order))]], np.int32)
    similarity = np.zeros((1, captions), np.float32)
    return CaptionSelection(
        jnp.asarray(padded), jnp.asarray(np.arange(max_selected)[None] < len(order)), jnp.asarray(similarity)
    )


def _compare_positions(
    compared: Case, packed: SimpleNamespace, needed: int, index: np.ndarray, recorded: dict[str, Any]
) -> None:
    real = np.array(recorded["attention_mask"]) != 0
    kind, token, frame = (np.array(recorded[name])[real] for name in ("kind", "token_id", "frame_idx"))
    compared.same(needed, len(kind), "length")
    compared.same(packed.mask.sum(), len(kind), "mask")
    n = len(kind)
    text = packed.is_text[:n]
    compared.same(text, kind == 1, "kinds")
    compared.same(packed.token_id[:n][text], token[kind == 1], "tokens")
    slot = packed.slot[:n][~text]
    compared.same(index[slot], frame[kind == 2], "frames")
    compared.same(packed.is_keyframe[:n][~text], np.isin(frame[kind == 2], recorded["key_frame_idx"]), "key frames")
    # The query tokens of a frame are in order.
    sizes = Counter(frame[kind == 2].tolist())
    expected = [query for frame_id in dict.fromkeys(frame[kind == 2].tolist()) for query in range(sizes[frame_id])]
    compared.same(packed.query_token[:n][~text], expected, "query tokens")


class _Numbers:
    """Encoding and decoding of numbers, signs and answers; each method yields pairs (ours, recorded)."""

    def __init__(self, tokenizers: Tokenizers, extras: dict[str, Any]):
        sizes = TextSizes(frames=1, captions=1, bert_tokens=BERT_TOKENS, text_tokens=600, answer_tokens=ANSWER_TOKENS)
        self.t5 = tokenizers[0]
        self.writer = PromptWriter(*tokenizers, sizes, stage=1, behaviour="reference")
        self.replaced = find_number_replacements(self.t5)
        # The longest list of tokens by second that was recorded.
        lists = [ids for name, ids in extras.items() if re.fullmatch(r"clean_timestamp_token_ids_0_\d+", name)]
        self.single, self.minus_one = max(lists, key=len, default=[]), extras.get("minus_one", [])

    def replacements(self, expected: dict[str, int], below: int = SINGLE_TOKEN_LIMIT) -> ExpectedPairs:
        yield find_number_replacements(self.t5, below), {int(a): b for a, b in expected.items()}

    def split(self, expected: list[int], below: int) -> ExpectedPairs:
        yield list(find_number_replacements(self.t5, below)), expected

    def single_pieces(self, expected: list[list[int]], last: int) -> ExpectedPairs:
        for number in range(last + 1):
            yield self._time(number), expected[self.replaced.get(number, number)]

    def pieces(self, expected: list[list[int]], last: int) -> ExpectedPairs:
        yield [self._plain(number) for number in range(last + 1)], expected

    def bordered(self, expected: list[int]) -> ExpectedPairs:
        border = self.t5.token_id(WORD_BOUNDARY)
        yield [number for number in range(len(self.single)) if self._plain(number)[0] == border], expected

    def minus(self, expected: list[int]) -> ExpectedPairs:
        yield self._time(-1), expected

    def answers(self, expected: list[Any]) -> ExpectedPairs:
        for windows, text, ids in expected:
            yield self.writer.format_answer(json.loads(windows)), text
            yield self.t5(text)["input_ids"], ids

    def decoded(self, expected: list[dict[str, Any]]) -> ExpectedPairs:
        for case in expected:
            yield decode_answer(self.t5, case["ids"]), case["skip_special"]

    def rounded(self, expected: dict[str, list[Any]]) -> ExpectedPairs:
        for second, rounded_second in zip(expected["in_"], expected["out"], strict=True):
            yield self._time(second), self.minus_one if rounded_second == -1 else self.single[rounded_second]
        for duration, rounded_second in zip(expected["durations_in"], expected["durations_out"], strict=True):
            yield self._spans(duration=duration)[1][1:-1], self.single[rounded_second]

    def signs(self, expected: dict[str, list[int]]) -> ExpectedPairs:
        end, nothing, caption_end = (self._spans()[place] for place in (1, 3, 4))
        ours = {">": end[:1], "<extra_id_0>": end[-1:], "<extra_id_1>": caption_end}
        ours |= {"[": nothing[:1], "]": nothing[-1:]}
        yield ours, {sign: expected[sign] for sign in ours}

    def _spans(self, **row: Any) -> list[list[int]]:
        fields = {"query": "", "items": [], "times": [0], "duration": 1} | row
        written = self.writer.write(**fields)
        return [written.tokens[start : start + size].tolist() for start, size in written.spans]

    def _time(self, second: float) -> list[int]:
        return self._spans(times=[second])[0]

    def _plain(self, second: int) -> list[int]:
        return self.t5(str(second), add_special_tokens=False)["input_ids"]


def _compare_extras(group: Group, extras: dict[str, Any], tokenizers: Tokenizers) -> None:
    numbers = _Numbers(tokenizers, extras)
    comparisons: dict[str, Callable[..., ExpectedPairs]] = {
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
    for name, expected in extras.items():
        kind, number = re.sub(r"\d+$", "N", name), re.search(r"\d+$", name)
        if kind not in comparisons:
            group.add_note(f"not compared: {name}")
            continue
        with group.case(name) as case:
            for ours, theirs in comparisons[kind](expected, *([int(number[0])] if number else [])):
                case.same(ours, theirs)


def tokenizer_statistics(folder: RecordingFolder) -> Iterator[Group]:
    """Compare the token counts of the prompts and answers of all annotations."""
    group = Group("07_tokenizer_stats", 1e-12)
    yield group
    t5 = load_t5(folder.find_shared("tokenizers", "t5"))
    bert = load_bert(folder.find_shared("tokenizers", "bert"))
    sizes = TextSizes(frames=1, captions=1, bert_tokens=BERT_TOKENS, text_tokens=600, answer_tokens=ANSWER_TOKENS)
    writer = PromptWriter(t5, bert, sizes, stage=2, behaviour="reference")
    for name, expected in folder.json("07_tokenizer_stats")["stats"].items():
        with group.case(name) as case:
            rows = folder.rows(expected.get("annotations", name))
            prompt_texts = [writer.format_text(row["query"], row["items"], row["stage1_result"]) for row in rows]
            prompt = np.array([len(ids) for ids in t5(prompt_texts)["input_ids"]])
            answers = [writer.format_answer(row["relevant_windows"]) for row in rows]
            answer = np.array([len(ids) for ids in t5(answers)["input_ids"]])
            ours = {"rows": len(rows), "text_prompt_tokens_max": prompt.max(), "target_tokens_max": answer.max()}
            ours |= {name: (prompt > int(name.split("_")[-1])).sum() for name in expected if "prompt_over" in name}
            ours |= {name: (answer > int(name.split("_")[-1])).sum() for name in expected if "targets_over" in name}
            case.same({key: int(value) for key, value in ours.items()}, {key: expected[key] for key in ours})
            case.close(answer.mean(), expected["mean_target"], "mean length of an answer")


def subtitles(folder: RecordingFolder) -> Iterator[Group]:
    """Compare captions after merging and cleaning, speech intervals, and the caption selection by similarity."""
    recorded = folder.json("08_subtitles")
    files, cleaning = Group("08_subtitles/files"), Group("08_subtitles/cleaning")
    yield from (files, cleaning)
    for name, expected in recorded["files"].items():
        if isinstance(expected, dict):
            with files.case(name) as case:
                _compare_captions(case, folder.path / "08_srt" / f"{name}.srt", expected)
    for text, words in recorded["files"].get("text_filter", ()):
        with cleaning.case(repr(text)) as case:
            case.same(clean_text(text), words)

    choice = Group("08_subtitles/choice", COSINES)
    yield choice
    arrays = folder.arrays("08_subtitles")
    words, rows = arrays["word_embedding_ids"], arrays["word_embedding_rows"]
    model = load_qformer(arrays.with_prefix("Qformer."), words, rows, folder, "08_subtitles")
    state = jax.jit(model.embed_sentences)
    max_length = max(len(ids) for case in recorded["cls_filter"] for ids in _sentences(case))
    for number, expected in enumerate(recorded["cls_filter"]):
        with choice.case(f"case {number}") as case:
            captions = expected["subtitles"]
            # Padded to the same number of sentences, so that the model is compiled once.
            max_sentences = max(len(selection["subtitles"]) for selection in recorded["cls_filter"]) + 1
            ids = np.zeros((max_sentences, max_length), np.int32)
            for index, token_ids in enumerate(_sentences(expected)):
                ids[index, : len(token_ids)] = token_ids
            states = state(jnp.asarray(ids))
            used = jnp.arange(max_sentences - 1)[None] < len(captions)
            ours = select_captions(
                caption_similarity(states[:1], states[None, 1:]),
                used,
                min_similarity=expected["threshold"],
                max_captions=expected["topk"],
            )
            selected = [captions[c] for c in np.asarray(ours.caption_index)[0, np.asarray(ours.is_used)[0]]]
            case.same(selected or [{"start": -1, "end": -1, "text": NO_CAPTION}], expected["selected"])
            if expected["sims"] is not None:
                case.close(np.asarray(ours.similarity)[0, : len(captions)], expected["sims"], "cosines")


def _sentences(case: dict[str, Any]) -> list[list[int]]:
    """Return the BERT ids of the query and of the captions, if there are any."""
    return [case["query_ids"], *(case["subtitle_ids"] or ())]


def _compare_captions(case: Case, path: Any, expected: dict[str, Any]) -> None:
    if not expected["error"]:
        captions = read_srt(path, "reference")
        ours = [{"start": c.start, "text": c.text, "end": c.end} for c in clean_captions(captions)]
        case.same(ours, expected["combined_subtitles"], "captions")
        case.same([list(s) for s in speech_intervals(captions, "reference")], expected["subtitle_durations"], "speech")
        return
    kind, _, reason = expected["error"].partition(": ")
    try:
        read_srt(path, "reference")
    except FileNotFoundError:
        case.same("FileNotFoundError", kind)
    except CaptionError as error:
        case.same(reason.strip("'\"") in str(error), True, f"raises {error}, recorded {reason}:")
    else:
        case.fail(f"no error; recorded {expected['error']}")


def postprocess(folder: RecordingFolder) -> Iterator[Group]:
    """Compare the windows of answers, or the kind of error."""
    recorded = folder.json("09_postprocess")
    mended = Group("09_postprocess/mended")
    yield mended
    num_skipped = len(recorded.get("get_iou", ())) + len(recorded.get("tal", ()))
    for expected in recorded["cases"]:
        for name in [name for name in expected if name != "s"]:
            if name_match := re.fullmatch(r"post_process_(?:(None)|tensor([\d.]+)|(?:float)?([\d.]+))", name):
                # The original takes the integer of a tensor.
                tensor, number = name_match[2], name_match[3]
                duration = None if name_match[1] else int(float(tensor)) if tensor else json.loads(number)
                with mended.case(f"{expected['s']!r} of {duration} s") as case:
                    _compare_outcome(case, windows_reference.repair_windows, expected[name], expected["s"], duration)
            else:
                num_skipped += 1
    if num_skipped:
        mended.add_note(
            f"not compared: {num_skipped} results for windows with labels (TAL), of literals, of a training printout"
        )


def _compare_outcome(case: Case, function: Any, expected: dict[str, Any], *arguments: Any) -> None:
    try:
        ours: Any = {"out": _listed(function(*arguments))}
    except (ValueError, TypeError) as error:
        ours = {"error": type(error).__name__}
    case.same(ours, {name: value for name, value in expected.items() if name != "msg"})


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
