"""The metaclass of objects that a torch.fx graph may make of its inputs."""

import logging

from torch.fx import _symbolic_trace


class Traceable(_symbolic_trace.ProxyableClassMeta):
    """torch's own. At the first object it warns, once a process, of a name that it has itself called: not here."""


def _warn_nobody() -> None:
    warn = getattr(_symbolic_trace, "is_fx_tracing_warning", None)  # it remembers that it has warned
    if warn is not None:
        log = logging.getLogger(_symbolic_trace.__name__)
        disabled, log.disabled = log.disabled, True
        try:
            warn()
        finally:
            log.disabled = disabled


_warn_nobody()
