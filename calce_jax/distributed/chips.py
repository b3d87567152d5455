"""Peak rates of accelerators, by the name that jax gives them (`jax.Device.device_kind`).

Rates are those of dense matrix products in bfloat16, as their makers publish them. NVIDIA: the datasheets of A100,
H100, H200, L4, L40S and B200; "with sparsity" halved. Google: the system architecture pages of Cloud TPU, per chip; of
v2 and v3 jax shows each of the two cores of a chip as a device.
"""

PEAK_TFLOP_PER_S: dict[str, float] = {
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.0,
    "NVIDIA L4": 121.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA B200": 2250.0,
    "TPU v2": 22.5,
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
}


def peak_flop_per_s(device_kind: str, dtype: str) -> float | None:
    """Return the peak of a device in FLOP/s; None for one that is not in the table, and for any dtype but bfloat16."""
    peak = PEAK_TFLOP_PER_S.get(device_kind)
    return None if peak is None or dtype != "bfloat16" else 1e12 * peak
