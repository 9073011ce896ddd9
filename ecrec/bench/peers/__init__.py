"""The peers, one module each; ``load`` (or the class's constructor) raises PeerMissingError with what to install."""
