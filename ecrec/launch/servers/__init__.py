"""The programs of servers: parameter servers and the scheduler."""
