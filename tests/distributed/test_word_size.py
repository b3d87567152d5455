"""A process that has set JAX to 64 bits, as some do for other work."""

from contextlib import contextmanager

import jax
import pytest

import calce_jax
from calce_jax.distributed.sharding import make_mesh
from calce_jax.errors import UserError
from calce_jax.speech.options import TranscriptionOptions
from calce_jax.speech.transcribe import Transcriber
from calce_jax.speech.whisper_model import open_whisper


@pytest.fixture
def refused():
    """Return a context in which JAX is set to 64 bits, and an error about it is raised."""

    @contextmanager
    def context():
        with jax.enable_x64(True), pytest.raises(UserError, match=r"64 bits .*; unset JAX_ENABLE_X64, or call this in"):
            yield

    return context


def test_a_model_is_refused(refused):
    with refused():
        make_mesh("single")
    with refused():
        calce_jax.load()
    with jax.enable_x64(True), jax.enable_x64(False):
        assert make_mesh("single").size == 1


def test_speech_is_refused(refused, shared):
    model = open_whisper(shared / "weights" / "whisper-tiny.en")
    with refused():
        Transcriber(model, TranscriptionOptions())
