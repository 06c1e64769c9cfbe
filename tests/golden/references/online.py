"""Online preference losses."""

REFERENCES = {}
