"""Sound to captions: what is said in a video, and when, written as .srt by Whisper."""
