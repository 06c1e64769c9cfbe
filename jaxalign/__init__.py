"""jaxalign: align language models with human preferences in JAX and Flax.

Importing this package loads nothing heavy; import the part you need, for example
`from jaxalign import losses`.
"""

__version__ = "0.1.0"
