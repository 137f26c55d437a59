"""Bodies that are too large for an entry, by their digest; secret ones sealed, and destroyable.

Rules
- A body is durable before its digest is returned, so no entry can name one that is not there.
- The name of a body is the SHA-256 of the stored bytes, in a folder of its first two digits.
  Reading hashes again: a body that changed is refused.
- `seal` encrypts with AES-256-GCM under a random key of that body alone; stored is
  `nonce (12 bytes) || ciphertext || tag`, and the digest is of that. So the log commits to the
  ciphertext, never to a digest of the plain text, which could be guessed from it.
- Keys lie in a directory of their own, 0600, named by the body's digest. A person who
  removes that file destroys the body: the log still verifies, and nobody reads the body again. That
  the disk itself forgets (journal, wear levelling, backups of the key directory) is beyond removing
  a file; keep keys on a volume that is encrypted or never copied.
"""

from __future__ import annotations

import asyncio
import os
import re

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from authority.audit.errors import BodyMissing, LogCorrupt
from authority.audit.files import FileLayer, OsLayer, write_new
from authority.audit.sealed import Sealer
from authority.kernel.canonical import digest as digest_of

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CONTEXT = b"authority/sealed-body/1"
_NONCE = 12


class ContentStore:
    """A folder of bodies. Methods block on the disk; the `_durable` ones do so in a thread."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        layer: FileLayer | None = None,
        *,
        keys: str | os.PathLike[str] | None = None,
    ) -> None:
        """`keys` is the directory for the keys of sealed bodies; without it nothing is sealed.

        Both are made if their parents exist. Raises `OSError`.
        """
        self._layer: FileLayer = OsLayer() if layer is None else layer
        self._directory = os.path.abspath(os.fspath(directory))
        self._keys = None if keys is None else os.path.abspath(os.fspath(keys))
        for folder in filter(None, (self._directory, self._keys)):
            self._layer.mkdir(folder)
            self._layer.sync_directory(os.path.dirname(folder))

    def put(self, data: bytes) -> str:
        """Store `data`, durable on return; its digest in hex. Raises `OSError`. Blocks."""
        name = digest_of(data)
        folder = os.path.join(self._directory, name[:2])
        path = os.path.join(folder, name)
        if not self._layer.exists(folder):
            self._layer.mkdir(folder)
            self._layer.sync_directory(self._directory)
        if self._layer.exists(path):
            # It may be there without its name being on the disk, if a crash came in between.
            self._layer.sync_directory(folder)
            self._layer.sync_directory(self._directory)
        else:
            write_new(self._layer, path, data)
        return name

    async def put_durable(self, data: bytes) -> str:
        """`put` in a thread."""
        return await asyncio.to_thread(self.put, data)

    def get(self, digest: str) -> bytes:
        """The stored bytes. Raises `BodyMissing`, or `LogCorrupt` when they have another digest."""
        path = os.path.join(self._directory, self._checked(digest)[:2], digest)
        try:
            data = self._layer.read(path)
        except FileNotFoundError as error:
            raise BodyMissing(
                f"the body {digest} is not in the store",
                "put STATE/store back as it was: the log holds digests, not what they are of",
            ) from error
        if digest_of(data) != digest:
            raise LogCorrupt(-1, f"the stored body {digest} was changed")
        return data

    def takes(self, size: int) -> bool:
        """Whether the disk has so many bytes beside what has to stay free. Raises `OSError`."""
        return self._layer.space(self._directory).for_bodies >= size

    def has(self, digest: str) -> bool:
        """Whether there is a body of that name (not whether it is intact)."""
        return self._layer.exists(os.path.join(self._directory, self._checked(digest)[:2], digest))

    def seal(self, data: bytes) -> str:
        """Encrypt and store `data`; the digest of what is stored. The key is durable first."""
        body, key = self.encrypted(data)
        self.keep_key(digest_of(body), key)
        return self.put(body)

    @staticmethod
    def encrypted(data: bytes) -> tuple[bytes, bytes]:
        """A sealed body that stands elsewhere (in an entry), and its key, which is for `keep_key`."""
        key = AESGCM.generate_key(256)
        nonce = os.urandom(_NONCE)
        return nonce + AESGCM(key).encrypt(nonce, data, _CONTEXT), key

    def keep_key(self, digest: str, key: bytes) -> None:
        """Store the key of a sealed body, durable on return. Raises `OSError`. Blocks."""
        write_new(self._layer, self._key_path(digest), key)

    async def seal_durable(self, data: bytes) -> str:
        """`seal` in a thread."""
        return await asyncio.to_thread(self.seal, data)

    def unseal(self, digest: str) -> bytes:
        """The plain text of a sealed body. Raises `BodyMissing` when its key was destroyed."""
        return self.open(self.get(digest))

    def open(self, body: bytes) -> bytes:
        """The plain text of a sealed body. Raises `BodyMissing` when its key was destroyed."""
        digest = digest_of(body)
        try:
            key = self._layer.read(self._key_path(digest))
        except FileNotFoundError as error:
            raise BodyMissing(f"the key of the body {digest} was destroyed") from error
        try:
            return AESGCM(key).decrypt(body[:_NONCE], body[_NONCE:], _CONTEXT)
        except (InvalidTag, ValueError) as error:
            raise LogCorrupt(-1, f"the key does not open the body {digest}") from error

    def sealer(self) -> Sealer:
        """A key of its own for many small bodies, durable on return. Raises `OSError`. Blocks."""
        made = Sealer(os.urandom(32).hex(), AESGCM.generate_key(256))
        write_new(self._layer, self._key_path(made.name), made.key)
        return made

    def opener(self, name: str) -> Sealer:
        """The key of that name. Raises `BodyMissing` when it was destroyed."""
        try:
            return Sealer(name, self._layer.read(self._key_path(name)), 0)
        except FileNotFoundError as error:
            raise BodyMissing(f"the key {name} was destroyed") from error

    def _key_path(self, digest: str) -> str:
        if self._keys is None:
            raise BodyMissing("this store was opened without its keys")
        return os.path.join(self._keys, self._checked(digest))

    @staticmethod
    def _checked(digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise BodyMissing("a digest is 64 lower-case hex digits")
        return digest
