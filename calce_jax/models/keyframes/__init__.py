"""Selection of key frames and compressed frames in both stages; the result is a `FramePlan`."""
