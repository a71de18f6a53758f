"""Doors for `ray job submit`: parse arguments, call one pipeline, return its exit code."""
