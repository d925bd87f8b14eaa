"""How ranks share a global batch; without torch, for what is checked before it is loaded."""

from sfumato.base.errors import ConfigError


def check_shares(batch_size: int, world_size: int) -> None:
    """`ConfigError` for a batch that ranks cannot share equally."""
    if batch_size % world_size:
        raise ConfigError(
            f"training.batch_size: {batch_size} images cannot be shared by {world_size} ranks.",
            hint="Start a number of processes that divides it, or choose a multiple of "
            f"{world_size}.",
        )
