"""Whisper against transformers (torch) and faster-whisper, same weights and decoding: speed, memory, word error rate.

    python benchmarks/whisper.py --model=DIR --audio=FILE [--reference=FILE] [--batch_sizes=1,16] [--rounds=5]

Needs the extras `oracle` and `benchmark`. Every engine has its own process, which loads the weights (float32 from
safetensors, converted to CTranslate2's format for faster-whisper) and warms up; then the engines run alternately, so
that other load on the machine affects all. From samples in memory to text with timestamps; greedy, without temperature
fallback, voice activity detection or previous text. A batch is that many copies of the file.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from absl import app, flags

ENGINES = ("ours", "torch", "faster-whisper float32", "faster-whisper int8")
RATE, WINDOW_S = 16_000, 30

MODEL = flags.DEFINE_string("model", None, "folder of a Whisper model in the layout of Hugging Face", required=True)
AUDIO = flags.DEFINE_string("audio", None, "audio or video file with speech", required=True)
REFERENCE = flags.DEFINE_string("reference", None, "text file of its transcript, for the word error rate")
BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "16"], "batch sizes, in copies of the file")
ROUNDS = flags.DEFINE_integer("rounds", 5, "number of timed rounds")
THREADS = flags.DEFINE_integer("threads", 2, "threads of torch and faster-whisper; XLA uses all cores of the process")
ENGINES_TO_COMPARE = flags.DEFINE_list("engines", list(ENGINES), "engines to compare")
WORKER = flags.DEFINE_string("worker", None, "internal: the engine of this process")
CONVERTED = flags.DEFINE_string("converted", None, "internal: weights for faster-whisper")

# Transcribes a batch of files, given as samples.
TranscribeFn = Callable[[list[np.ndarray]], list[str]]


def open_calce_jax(batch_size: int) -> TranscribeFn:
    """Return the transcription of calce_jax."""
    from calce_jax.speech.mel import log_mel_spectrogram  # noqa: PLC0415
    from calce_jax.speech.options import TranscriptionOptions  # noqa: PLC0415
    from calce_jax.speech.transcribe import AudioFeatures, Transcriber  # noqa: PLC0415
    from calce_jax.speech.whisper_model import open_whisper  # noqa: PLC0415

    model = open_whisper(MODEL.value)
    options = TranscriptionOptions(batch_size=batch_size, temperatures=(0.0,), vad_filter=False, language="en")
    transcriber = Transcriber(model, options)

    def transcribe(files: list[np.ndarray]) -> list[str]:
        mels = model.whisper.config.mel_bins
        numbered = (
            (number, AudioFeatures(log_mel_spectrogram([samples], mels), None)) for number, samples in enumerate(files)
        )
        results = dict(transcriber.transcribe(numbered))
        return [" ".join(caption.text for caption in results[number].captions) for number in range(len(files))]

    return transcribe


def open_torch(batch_size: int) -> TranscribeFn:
    """Return the transcription of transformers."""
    import torch  # noqa: PLC0415
    from transformers import WhisperForConditionalGeneration, WhisperProcessor  # noqa: PLC0415

    torch.set_num_threads(THREADS.value)
    model = WhisperForConditionalGeneration.from_pretrained(MODEL.value, dtype=torch.float32).eval()
    processor = WhisperProcessor.from_pretrained(MODEL.value)

    @torch.no_grad()
    def transcribe(files: list[np.ndarray]) -> list[str]:
        bands = processor(
            files,
            sampling_rate=RATE,
            truncation=False,
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
        tokens = model.generate(
            bands.input_features,
            attention_mask=bands.attention_mask,
            return_timestamps=True,
            condition_on_prev_tokens=False,
            temperature=0.0,
        )
        return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]

    return transcribe


def open_faster_whisper(batch_size: int, compute_type: str) -> TranscribeFn:
    """Return the transcription of faster-whisper; `compute_type` is the dtype of its weights."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel  # noqa: PLC0415

    model = WhisperModel(CONVERTED.value, device="cpu", compute_type=compute_type, cpu_threads=THREADS.value)
    decode_options = {"language": "en", "beam_size": 1, "temperature": 0.0, "condition_on_previous_text": False}

    def transcribe_singly(files: list[np.ndarray]) -> list[str]:
        return [
            join_segments(model.transcribe(samples, **decode_options, without_timestamps=False)[0]) for samples in files
        ]

    def transcribe_batched(files: list[np.ndarray]) -> list[str]:
        # It batches windows of one recording: each file gets windows of its own.
        size = WINDOW_S * RATE
        recording = np.concatenate([np.pad(samples, (0, -len(samples) % size)) for samples in files])
        stretches = [
            {"start": first / RATE, "end": min(first + size, len(recording)) / RATE}
            for first in range(0, len(recording), size)
        ]
        pipeline = BatchedInferencePipeline(model)
        segments, _ = pipeline.transcribe(
            recording,
            **decode_options,
            batch_size=batch_size,
            vad_filter=False,
            clip_timestamps=stretches,
            without_timestamps=False,
        )
        texts_by_file: list[list[str]] = [[] for _ in files]
        windows = [-(-len(samples) // size) for samples in files]
        starts = np.cumsum([0, *windows]) * WINDOW_S
        for segment in segments:
            texts_by_file[int(np.searchsorted(starts, segment.start, side="right")) - 1].append(segment.text.strip())
        return [" ".join(texts) for texts in texts_by_file]

    return transcribe_singly if batch_size == 1 else transcribe_batched


def join_segments(segments) -> str:
    """Return the joined text of segments."""
    return " ".join(segment.text.strip() for segment in segments)


def read_samples(path: str) -> np.ndarray:
    """Return the samples of a file."""
    from calce_jax.speech.audio import read_audio  # noqa: PLC0415

    return np.concatenate(list(read_audio(path)))


def run_worker(engine: str, batch_size: int) -> None:
    """Warm up and print the text, then transcribe and print the usage for every line on stdin."""
    open_fns = {
        "ours": open_calce_jax,
        "torch": open_torch,
        "faster-whisper float32": lambda size: open_faster_whisper(size, "float32"),
        "faster-whisper int8": lambda size: open_faster_whisper(size, "int8"),
    }
    files = [read_samples(AUDIO.value)] * batch_size
    transcribe = open_fns[engine](batch_size)
    texts = transcribe(files)
    print(json.dumps({"ready": texts[0], "alike": len(set(texts)) == 1}), flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        transcribe(files)
        usage = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        usage["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(usage), flush=True)


def convert(folder: Path) -> None:
    """Write the weights in CTranslate2's format."""
    from ctranslate2.converters import TransformersConverter  # noqa: PLC0415

    tokenizer_files = [
        name for name in ("tokenizer.json", "preprocessor_config.json") if (Path(MODEL.value) / name).is_file()
    ]
    TransformersConverter(MODEL.value, copy_files=tokenizer_files).convert(str(folder), force=True)


def start(engine: str, batch_size: int, converted: Path) -> subprocess.Popen[str]:
    """Start the process of an engine."""
    command = [
        sys.executable,
        __file__,
        f"--worker={engine}",
        f"--batch_sizes={batch_size}",
    ]
    command += [f"--model={MODEL.value}", f"--audio={AUDIO.value}", f"--threads={THREADS.value}"]
    command.append(f"--converted={converted}")
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_turn(process: subprocess.Popen[str], message: str = "go\n") -> dict:
    """Run an engine once and return its usage."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(message)
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def word_errors(text: str) -> str:
    """Return the word error rate against the reference, without punctuation and case."""
    if not REFERENCE.value:
        return ""
    import jiwer  # noqa: PLC0415

    normalize = jiwer.Compose(
        [
            jiwer.ToLowerCase(),
            jiwer.SubstituteRegexes({"-": " "}),
            jiwer.RemovePunctuation(),
            jiwer.RemoveMultipleSpaces(),
            jiwer.Strip(),
        ]
    )
    return f"{100 * jiwer.wer(normalize(Path(REFERENCE.value).read_text()), normalize(text)):.1f} %"


def compare(batch_size: int, converted: Path) -> None:
    """Print the table of one batch size."""
    seconds = len(read_samples(AUDIO.value)) / RATE * batch_size
    workers = {engine: start(engine, batch_size, converted) for engine in ENGINES_TO_COMPARE.value}
    texts = {}
    for engine, worker in workers.items():
        assert worker.stdout
        texts[engine] = json.loads(worker.stdout.readline())["ready"]
    usages_by_engine: dict[str, list[dict]] = {engine: [] for engine in workers}
    for _ in range(ROUNDS.value):
        for engine, worker in workers.items():
            usages_by_engine[engine].append(run_turn(worker))
    for worker in workers.values():
        assert worker.stdin
        worker.stdin.close()
        worker.wait()
    print(f"\nbatch {batch_size}: {seconds:.1f} s of audio; medians of {ROUNDS.value} rounds")
    print(f"{'':24}{'s of audio / s':>15}{'processor s':>13}{'peak GiB':>10}{'ours is':>9}{'WER':>8}  text")
    baseline_seconds = statistics.median(usage["wall"] for usage in usages_by_engine[ENGINES_TO_COMPARE.value[0]])
    for engine, usages in usages_by_engine.items():
        wall, processor = (statistics.median(usage[name] for usage in usages) for name in ("wall", "processor"))
        same = "the same" if texts[engine] == texts[ENGINES_TO_COMPARE.value[0]] else "differs"
        print(
            f"{engine:24}{seconds / wall:15.1f}{processor:13.2f}{usages[-1]['memory']:10.2f}"
            f"{wall / baseline_seconds:8.2f}x{word_errors(texts[engine]):>8}  {same}"
        )


def main(argv: list[str]) -> None:
    """Compare the engines at every batch size."""
    if WORKER.value:
        run_worker(WORKER.value, int(BATCH_SIZES.value[0]))
        return
    packages = ("jax", "torch", "transformers", "faster-whisper", "ctranslate2")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "converted"
        if any(engine.startswith("faster") for engine in ENGINES_TO_COMPARE.value):
            convert(converted)
        for batch_size in BATCH_SIZES.value:
            compare(int(batch_size), converted)


if __name__ == "__main__":
    app.run(main)
