"""Write captions: `launch/caption.py --videos=FILE_OR_DIR --out=DIR --model=HUB_ID_OR_DIR [--language=en]`.

Writes DIR/<video's name>.srt for every video that has none there; the same command goes on where it stopped, and the
folder is what `launch/prepare.py --srts` takes. What is broken is listed at the end and in DIR/failures.jsonl; the exit
code is 1 only if nothing worked. `--model` may also be a size: tiny.en, base, small, medium, large-v3, turbo.
With --runner=DirectRunner, or another of Apache Beam's, a pipeline does it; Beam's own flags follow after --.
"""

from typing import cast

from absl import app, flags

from calce_jax.commands.flags.beam import beam, pipeline_options
from calce_jax.speech.captioning import CaptioningError, caption_videos, find_videos, opener
from calce_jax.speech.transcribe import Options
from calce_jax.speech.whisper_model import Dtype

VIDEOS = flags.DEFINE_string("videos", None, "a video, or a folder of videos; sound alone will do")
OUT = flags.DEFINE_string("out", None, "folder of the .srt files")
MODEL = flags.DEFINE_string("model", None, "a Whisper: its folder, its name on the Hugging Face hub, or its size")
LANGUAGE = flags.DEFINE_string("language", None, "code such as en; found out for each video unless given")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "windows of 30 s at a time on this host", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "bfloat16 is faster on accelerators")
QUOTE = flags.DEFINE_bool("quote", False, "tell each window what was said before it")
ONLY_VOICES = flags.DEFINE_bool("only_voices", True, "leave out stretches in which a detector hears nobody speak")
HOST = flags.DEFINE_integer("host", None, "which of several machines this is, from 0; JAX's own number unless given")
HOSTS = flags.DEFINE_integer("hosts", None, "how many machines share the videos; JAX's own number unless given")
flags.mark_flags_as_required(["videos", "out", "model"])


def main(argv: list[str]) -> None:
    """Caption, and say what is missing."""
    pipeline = pipeline_options(argv)
    try:
        options = Options(
            language=LANGUAGE.value,
            batch_size=int(BATCH_SIZE.value or 1),
            quote=bool(QUOTE.value),
            only_voices=bool(ONLY_VOICES.value),
        )
        videos = find_videos(str(VIDEOS.value))
        out, model, dtype = str(OUT.value), str(MODEL.value), cast(Dtype, DTYPE.value)
        if pipeline is None:
            done = caption_videos(videos, out, opener(model, options, dtype), host=HOST.value, hosts=HOSTS.value)
        else:
            done = beam().caption_videos(videos, out, model, pipeline, choices=options, dtype=dtype)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    for failure in done.failures:
        print(f"{failure.reason}; {failure.remedy}")
    for path in done.soundless:
        print(f"{path}: has no sound; its captions are empty")
    for path in done.speechless:
        print(f"{path}: nobody speaks; its captions are empty")
    print(
        f"{len(done.written)} files of captions written to {OUT.value}, {len(done.there)} were there; "
        f"{done.seconds / 3600:.2f} hours of sound; {len(done.failures)} videos failed"
    )
    if done.failures and not done.written and not done.there:
        raise SystemExit(f"{CaptioningError.__name__}: no video could be captioned; see above")


if __name__ == "__main__":
    app.run(main)
