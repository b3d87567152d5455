"""Transcription of videos to .srt captions with Whisper."""
