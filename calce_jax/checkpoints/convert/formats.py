"""The formats that weights come in and go to, by the words of `calce convert`; free of jax, for its help."""

from pathlib import Path

from calce_jax.errors import UserError

# In the order in which they are usually combined.
SOURCE_FORMATS = {
    "lavis": "LAVIS's blip2_pretrained_flant5xl.pth",
    "eva": "eva_vit_g.pth",
    "t5": "Flan-T5, from the Hugging Face hub",
    "bert": "bert-base-uncased, from the Hugging Face hub",
    "hf": "Salesforce/blip2-flan-t5-xl or -xxl, from the Hugging Face hub",
    "calce": "the original's checkpoint of either stage",
    "mrblip": "a checkpoint of Mr. BLIP",
    "base": "base weights, as --target=base:FILE writes them",
    "orbax": "the workdir of a run, as --target=orbax:DIR or `calce train` writes it",
    "whisper": "a Whisper from the Hugging Face hub; alone, and to base:FILE",
}
EXPORT_FORMATS = {
    "base": "FILE.safetensors for config.weights.base",
    "orbax": "the workdir of a run: config, base weights, adapters",
    "calce": "FILE.pth that the original loads",
    "hf": "a folder that transformers loads, adapters merged",
    "peft": "a folder that peft loads, the adapter alone",
}
DTYPES = ("as stored", "float32", "float16", "bfloat16")


class FormatError(UserError):
    """A --source or --target that names no format; the message lists those there are."""


def parse_sources(text: str) -> list[tuple[str, Path]]:
    """Return the formats and paths in "FORMAT:PATH,FORMAT:PATH".

    Raises:
      FormatError: names what is wrong, and the formats there are.
    """
    return [_parse("--source", entry, SOURCE_FORMATS) for entry in text.split(",")]


def parse_target(text: str) -> tuple[str, Path]:
    """Return the format and the path in "FORMAT:PATH".

    Raises:
      FormatError: lists the formats there are.
    """
    return _parse("--target", text, EXPORT_FORMATS)


def _parse(flag: str, text: str, formats: dict[str, str]) -> tuple[str, Path]:
    name, colon, path = text.partition(":")
    if name not in formats or not colon or not path:
        known = "\n  ".join(f"{name}:PATH  {about}" for name, about in formats.items())
        raise FormatError(f"{flag}: {text!r} is none of\n  {known}")
    return name, Path(path)
