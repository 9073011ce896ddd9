"""The protocol of a coding group as sans-I/O machines: events in, effects out (docs/protocol.md)."""
