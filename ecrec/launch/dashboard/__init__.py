"""The live page of a cluster: what it shows (``feed.py``, ``deaths.py``), and how a browser gets it (``page.py``)."""

DEFAULT_ADDRESS = "127.0.0.1:7080"
"""Of this machine alone."""

ALLOW_HOST_HELP = (
    "A name that browsers may call the live page by, beside localhost, the name of this host, and any IP address; "
    "repeatable. For a proxy that passes names on."
)
