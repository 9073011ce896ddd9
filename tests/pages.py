"""Reads a page over HTTP."""

import urllib.error
import urllib.request


def get(url: str) -> tuple[int, str]:
    """The status and the text, also of an error."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
