"""Attention, matrix products, 8-bit weights and rematerialization: arrays in, arrays out; no model inside."""
