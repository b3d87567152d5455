"""Transcribe videos: `calce caption --videos=FILE_OR_DIR --out=DIR --model=HUB_ID_OR_DIR [--language=en]`.

Writes DIR/<stem of the video>.srt for every video that has none there yet, the captions that `calce prepare --srts=DIR`
reads. Run the same command again to continue. Failures are listed at the end and in DIR/failures.jsonl; the exit code
is 1 only if every video failed. --model is also a size: tiny.en, base, small, medium, large-v3, turbo.
--runner=DirectRunner runs an Apache Beam pipeline instead, or another of Beam's runners; its flags follow after --.
"""

from typing import cast

from absl import flags

from calce_jax.commands.flags.beam import BeamFlags
from calce_jax.commands.flags.paths import check_folder
from calce_jax.commands.runner import warn_deprecated
from calce_jax.speech.inputs import CaptioningError, find_videos, resolve_whisper_name

FLAGS = flags.FlagValues()
VIDEOS = flags.DEFINE_string("videos", None, "a video or audio file, or a folder of them", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "output folder of the .srt files", flag_values=FLAGS)
MODEL = flags.DEFINE_string(
    "model", None, "Whisper model: a folder, a name on the Hugging Face hub, or a size", flag_values=FLAGS
)
LANGUAGE = flags.DEFINE_string(
    "language", None, "language code such as en; detected for each video unless given", flag_values=FLAGS
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 16, "batch size of this host, in windows of 30 s", lower_bound=1, flag_values=FLAGS
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16"],
    "of weights and activations; bfloat16 is faster on accelerators",
    flag_values=FLAGS,
)
CONDITION = flags.DEFINE_bool(
    "condition_on_previous_text",
    False,
    "give the decoder the text of the previous window as a prompt",
    flag_values=FLAGS,
)
VAD_FILTER = flags.DEFINE_bool(
    "vad_filter", True, "skip audio in which voice activity detection finds no speech", flag_values=FLAGS
)
HOST = flags.DEFINE_integer("host", None, "index of this host, from 0; that of JAX unless given", flag_values=FLAGS)
HOSTS = flags.DEFINE_integer(
    "hosts", None, "number of hosts that share the videos; that of JAX unless given", flag_values=FLAGS
)
RENAMED_FLAGS = {"quote": "condition_on_previous_text", "only_voices": "vad_filter"}  # names in version 0.1
for old_name, new_name in RENAMED_FLAGS.items():
    flags.DEFINE_alias(old_name, new_name, flag_values=FLAGS)
BEAM = BeamFlags(FLAGS)
flags.mark_flags_as_required(["videos", "out", "model"], flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Transcribe the videos; print the failures and the videos without speech."""
    for old_name, new_name in RENAMED_FLAGS.items():
        if FLAGS[old_name].present:
            warn_deprecated(f"--{old_name}", f"--{new_name}")
    pipeline = BEAM.pipeline_options(argv)
    check_folder("--out=", str(OUT.value))
    resolve_whisper_name(str(MODEL.value))
    videos = find_videos(str(VIDEOS.value))

    from calce_jax.speech.captioning import caption_videos, lazy_transcriber
    from calce_jax.speech.transcribe import TranscriptionOptions
    from calce_jax.speech.whisper_model import Dtype

    options = TranscriptionOptions(
        language=LANGUAGE.value,
        batch_size=int(BATCH_SIZE.value or 1),
        condition_on_previous_text=bool(CONDITION.value),
        vad_filter=bool(VAD_FILTER.value),
    )
    out, model, dtype = str(OUT.value), str(MODEL.value), cast(Dtype, DTYPE.value)
    if pipeline is None:
        result = caption_videos(
            videos, out, lazy_transcriber(model, options, dtype), process_index=HOST.value, process_count=HOSTS.value
        )
    else:
        result = BEAM.module().caption_videos(videos, out, model, pipeline, transcribe_options=options, dtype=dtype)
    for failure in result.failures:
        print(f"{failure.reason}; {failure.remedy}")
    for path in result.no_audio:
        print(f"{path}: no audio; its captions are empty")
    for path in result.no_speech:
        print(f"{path}: no speech; its captions are empty")
    print(
        f"{len(result.written)} files of captions written to {OUT.value}, {len(result.existing)} existed already; "
        f"{result.seconds / 3600:.2f} hours of audio; {len(result.failures)} videos failed"
    )
    if result.failures and not result.written and not result.existing:
        raise CaptioningError("no video could be transcribed", "see the errors above")
