"""The protocol of a coding group as sans-I/O machines: events in, effects out (DESIGN.md, section 5)."""
