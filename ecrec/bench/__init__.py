"""Microbenchmarks: ecrec compared with each installed peer, alternating, in one process tree (``ecrec bench``).

No server imports this package. torch is imported here only by what needs it as a peer.
"""
