"""What a function is traced for: the platform of the mesh in use, and the flags of this machine's processor."""

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from calce_jax.distributed.sharding import build_mesh
from calce_jax.distributed.target import cpu_has_bfloat16, target_platform
from calce_jax.storage import processor


def test_target_platform():
    """That of the mesh in use, whatever devices this machine has; inside a traced function too."""
    assert target_platform() == "cpu"
    with jax.set_mesh(build_mesh((1, 1, 1), jax.devices()[:1])):
        assert target_platform() == "cpu"
    device = AbstractDevice(device_kind="any", num_cores=None, platform="tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=device)):
        assert target_platform() == "tpu"
        traced = []
        jax.make_jaxpr(lambda x: traced.append(target_platform()) or x)(0)
    assert traced == ["tpu"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512_vnni avx512_bf16 sse2\n\nprocessor\t: 1\nflags\t\t: fpu\n", True),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile\n", True),
        ("BogoMIPS\t: 50.00\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("model name\t: bf16 avx512_bf16\nflags\t\t: fpu avx2 avx512f xbf16\n", False),
        ("", False),
        (None, False),
    ],
)
def test_cpu_has_bfloat16(tmp_path, monkeypatch, text, expected):
    """Whole words of the line of flags; without the file, or without the line, no."""
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(processor, "CPU_INFO", path)
    monkeypatch.setattr(processor, "processor", processor.processor.__wrapped__)
    assert cpu_has_bfloat16() is expected
