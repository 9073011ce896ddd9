"""A parameter server for an ablation: it takes each window for durable as soon as it has closed it.

So parity updates are sent and forgotten, as the artefact of the paper does: workers do not wait for peers, nothing is
kept to be undone or sent again, and what a death leaves on one parity server and not on another is not settled. Never
to be used for anything else.
"""

from typing import Any

from ecrec.launch.servers import ps
from ecrec.protocol.windows import Windows


def forget() -> None:
    """From now on windows of this process are durable when they are closed."""
    close: Any = Windows.close

    def close_and_forget(self: Windows) -> None:
        close(self)
        for window in self.context.unstable.values():
            window.waiting.clear()
        self.settle()

    Windows.close = close_and_forget  # type: ignore[method-assign]


if __name__ == "__main__":
    forget()
    ps.main()
