"""Bytes to arrays: storage, probe, frames, sound, subtitles, shots, and the child process that isolates decoders."""
