"""Reference implementations, in torch: TRL's own code where it has the loss, else a derivation in float64.

One module a family, as in `tests/losses/cases`; each has `REFERENCES`, from a case's function to
`reference(inputs, options) -> tensor`, where inputs are float64 (int64, bool) tensors by argument name and the
result has the shape of ours. None of it is imported by the tests.
"""
