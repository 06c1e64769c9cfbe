"""Measures over texts and arrays, one concept a file; `similarity.token_embeddings` alone needs a model."""
