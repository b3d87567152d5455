"""A process that has set JAX to 64 bits, as some do for other work."""

import jax
import pytest

import calce_jax
from calce_jax.distributed.sharding import make_mesh
from calce_jax.errors import UserError
from calce_jax.speech.options import TranscriptionOptions
from calce_jax.speech.transcribe import Transcriber
from calce_jax.speech.whisper_model import open_whisper


def test_numbers_of_64_bits_are_refused_by_whatever_computes(shared):
    model = open_whisper(shared / "weights" / "whisper-tiny.en")
    with jax.enable_x64(True):
        for use in (calce_jax.load, lambda: make_mesh("single"), lambda: Transcriber(model, TranscriptionOptions())):
            with pytest.raises(UserError, match=r"64 bits .*; unset JAX_ENABLE_X64, or call this inside"):
                use()
        with jax.enable_x64(False):
            assert make_mesh("single").size == 1
