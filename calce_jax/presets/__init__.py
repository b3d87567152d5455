"""Every run of the library, as frozen dataclasses."""
