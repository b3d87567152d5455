"""What happens to a frame of the video; apart from the plan, since reports and searches of speech run without jax."""

from typing import Literal

# Key frame, compressed, or not in the prompt.
Treatment = Literal["full", "compressed", "dropped"]
