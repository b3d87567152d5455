"""Devices that JAX does not have."""

import os
import subprocess
import sys

import jax
import pytest

from calce_jax.distributed.devices import find_devices
from calce_jax.errors import UserError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Unable to initialize backend 'tpu': UNAVAILABLE\nmore"), "'tpu': UNAVAILABLE\\); JAX_PLATFORMS"),
        (AssertionError(), "JAX has no software for them"),
    ],
)
@pytest.mark.parametrize("local", [False, True])
def test_what_jax_says_is_told_in_a_line(monkeypatch, local, error, reason):
    def fail():
        raise error

    monkeypatch.setattr(jax, "local_devices" if local else "devices", fail)
    with pytest.raises(UserError, match=rf"^JAX finds no devices \(.*{reason}.*; set it to a platform"):
        find_devices(local=local)


def test_a_platform_that_does_not_exist():
    program = "import calce_jax\ntry:\n    calce_jax.load()\nexcept ValueError as error:\n    print(error)"
    environment = os.environ | {"JAX_PLATFORMS": "nonsense"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("JAX finds no devices (Unable to initialize backend 'nonsense'")
    assert done.stdout.endswith("JAX_PLATFORMS is 'nonsense'; set it to a platform that is installed, such as cpu\n")
