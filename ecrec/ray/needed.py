"""Ray, as far as it is there."""

from types import ModuleType

from ecrec.errors import ConfigurationError


def import_ray() -> ModuleType:
    """Raises ConfigurationError, with what to install, where Ray is missing."""
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError(f'Ray is missing: pip install "ecrec[ray]" ({error})') from error
    return ray
