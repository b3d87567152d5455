"""The formats of `calce convert` and the parsing of its flags; imports no JAX, so that --help is fast."""

from pathlib import Path

from calce_jax.errors import UsageError

# In the order in which they are usually combined on the command line.
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
FILE_FORMATS = ("base", "calce")  # of `EXPORT_FORMATS`; the others are folders
DTYPES = ("as stored", "float32", "float16", "bfloat16")


class FormatError(UsageError):
    """A --source or --target without a known format; the message lists the formats."""


def parse_sources(text: str) -> list[tuple[str, Path]]:
    """Parse "FORMAT:PATH,FORMAT:PATH" to (format, path) pairs.

    Raises:
      FormatError: an entry has no known format, or no path.
    """
    return [_parse("--source", entry, SOURCE_FORMATS) for entry in text.split(",")]


def parse_target(text: str) -> tuple[str, Path]:
    """Parse "FORMAT:PATH" to (format, path).

    Raises:
      FormatError: there is no known format, or no path.
    """
    return _parse("--target", text, EXPORT_FORMATS)


def _parse(flag: str, text: str, formats: dict[str, str]) -> tuple[str, Path]:
    name, colon, path = text.partition(":")
    if name not in formats or not colon or not path:
        known = "\n  ".join(f"{name}:PATH  {description}" for name, description in formats.items())
        raise FormatError(f"{flag}: must be one of the following, got {text!r}\n  {known}")
    return name, Path(path)
