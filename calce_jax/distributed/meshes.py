"""The meshes that a config can name; without jax, so that configs are checked without importing it."""

# Devices along the axes data, fsdp, tensor; -1 stands for all remaining devices.
MESHES: dict[str, tuple[int, int, int]] = {
    "single": (1, 1, 1),
    "data": (-1, 1, 1),
    "a100x4": (1, 4, 1),
    "a100x8": (-1, 8, 1),  # machines of eight, each with all parameters
    "tpu": (-1, 4, 1),
}
