"""GGUF files, the format of llama.cpp: read as a model's folder is, and written.

A file has metadata (of which `families` makes a config.json and `tokenizer` a tokenizer) and tensors, which `tensors`
reads by slices under their Hugging Face names. `writer` goes the other way, with `vocabulary` for the tokenizer.
"""
