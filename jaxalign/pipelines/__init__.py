"""Whole pipelines: the demonstration, and comparing methods. Configurations are shipped beside them."""
