"""Measures over texts and arrays, one concept a file. No model is needed here, but for `similarity.token_embeddings`."""
