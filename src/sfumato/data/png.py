"""PNG chunk by chunk: text is left out where Pillow refuses an image because of it."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_CHUNK_BYTES = 12
"""Length, kind and checksum of a chunk."""
_MOST_KEPT_BYTES = 2**16


def without_text(content: bytes, *, kept: set[str]) -> bytes:
    """A PNG without its text chunks, except small ones whose keyword is in `kept`; what is no PNG,
    or ends early, stays as it is from there on."""
    if not content.startswith(_SIGNATURE):
        return content
    pieces, at = [_SIGNATURE], len(_SIGNATURE)
    while at + _CHUNK_BYTES <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        kind, end = content[at + 4 : at + 8], at + _CHUNK_BYTES + length
        keyword = content[at + 8 : at + 88].split(b"\0")[0].decode("latin-1")
        if kind not in _TEXT or (keyword in kept and length <= _MOST_KEPT_BYTES):
            pieces.append(content[at:end])
        at = end
    return b"".join([*pieces, content[at:]])
