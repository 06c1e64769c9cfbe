"""Benchmarks: how their published files are read and their answers scored. No model is needed here."""
