"""Measures of answers that training and evaluation both take: pure functions of texts and numbers, without JAX."""
