"""What ids mean: the id -> piece table of a vocabulary, its space hash, exact decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenmill.schemas.errors import TokenizerError

# An id beyond this is a damaged or hostile file: the largest published vocabulary has 0.3 M.
MAX_ID = (1 << 24) - 1

# bytes: raw bytes, the same in every format that holds them; text: a piece in its model's own
# spelling ("▁the", "<0x0A>"); added: matched in raw text before the model sees it;
# special: carries meaning for the trainer and never stands for raw text by itself
Kind = Literal["bytes", "text", "added", "special"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """`pieces`: id -> (kind, bytes). Ids may have holes."""

    pieces: Mapping[int, tuple[Kind, bytes]]

    @property
    def size(self) -> int:
        """The codebook's size: the highest id plus one."""
        return max(self.pieces, default=-1) + 1

    @property
    def specials(self) -> dict[str, int]:
        return {
            piece.decode("utf-8", "replace"): id_
            for id_, (kind, piece) in sorted(self.pieces.items())
            if kind == "special"
        }

    @property
    def byte_level(self) -> bool:
        """Every id stands for bytes, and every byte can be written."""
        if any(kind == "text" for kind, _ in self.pieces.values()):
            return False
        single = {piece for kind, piece in self.pieces.values() if kind == "bytes"}
        return all(bytes([b]) in single for b in range(256))

    def find(self, token: str) -> int | None:
        """The id of a token: special ones first, then added ones, then any piece so spelled."""
        raw = token.encode("utf-8", "replace")
        ranked = {"special": 0, "added": 1, "text": 2, "bytes": 3}
        found = [(ranked[kind], id_) for id_, (kind, p) in self.pieces.items() if p == raw]
        return min(found)[1] if found else None

    def space(self) -> str:
        """64 hex digits over the ordered (id, kind, piece): equal for two files of one vocabulary.

        A cl100k tokenizer.json and the cl100k rank file share it, so readers may mix their
        tokens; what cuts text into those pieces (merges, patterns) is the recipe's business.
        """
        digest = hashlib.sha256(b"tokenmill text vocabulary 1\0")
        for id_, (kind, piece) in sorted(self.pieces.items()):
            head = id_.to_bytes(4, "little") + kind[0].encode() + len(piece).to_bytes(4, "little")
            digest.update(head + piece)
        return digest.hexdigest()

    def join(self, ids: Sequence[int]) -> bytes:
        """The bytes that the ids stand for. Raises TokenizerError for one that is none."""
        pieces = self.pieces
        try:
            return b"".join([pieces[id_][1] for id_ in ids])
        except KeyError as error:
            raise unknown_id(int(error.args[0]), self.size) from None


def unknown_id(id_: int, size: int) -> TokenizerError:
    return TokenizerError(
        f"the id {id_} is not in this vocabulary of {size}",
        remedy="decode with the tokenizer that made the tokens: `tokenmill info` names its space",
    )


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, as tokenizer.json spells byte-level pieces.

    Printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 onwards.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(plain)]
    alphabet = {chr(b): b for b in plain}
    alphabet.update({chr(0x100 + n): b for n, b in enumerate(others)})
    return alphabet
