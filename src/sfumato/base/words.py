"""Words of messages."""


def counted(count: int, noun: str) -> str:
    """`1 image` or `2,000 images`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
