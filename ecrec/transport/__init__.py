"""A thin ZeroMQ shell around the machines: receive, decode, ``machine.handle(event)``, carry out effects."""
