"""Token rewards and flow-based losses."""

REFERENCES = {}
