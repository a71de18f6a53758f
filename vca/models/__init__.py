"""Arrays to scores: encoders, OCR, speech, the pretrained language model, zero-shot tagging."""
