"""Tenant data keys: each tenant's commits and blobs are encrypted under a key of its own.

The key lives in the KEYS bucket, wrapped by the mesh's master key. Destroying it erases the tenant:
the log still verifies, because the chain hashes stored bytes.
"""

import base64
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from eventsourcing.cryptography import AESCipher
from eventsourcing.utils import Environment
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError

from events.streams import KEYS
from schemas.errors import DataLoss, FailedPrecondition, StoreUnavailable


MASTER_KEY_BYTES = 32


class KeyRing(Protocol):
    """Gives each tenant's cipher."""

    async def cipher(self, tenant: str) -> AESCipher:
        """Return the cipher of a tenant, creating its data key at first use.

        Raises:
            DataLoss: The key was wrapped under another master key.
            StoreUnavailable: The bucket of keys does not answer.
        """
        ...


def cipher_of(key: bytes) -> AESCipher:
    """Return AES-GCM under a raw key of 32 bytes."""
    return AESCipher(Environment(env={AESCipher.CIPHER_KEY: base64.b64encode(key).decode()}))


def parse_master_key(text: str) -> bytes:
    """Read the master key.

    Raises:
        FailedPrecondition: Not the base64 of 32 bytes.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise FailedPrecondition("not base64", field="CLAWDBOT_MASTER_KEY") from error
    if len(key) != MASTER_KEY_BYTES:
        raise FailedPrecondition("needs 32 bytes in base64", field="CLAWDBOT_MASTER_KEY")
    return key


class JetStreamKeyRing:
    """Keeps wrapped data keys in the KEYS bucket and unwrapped ones in memory."""

    def __init__(self, js: JetStreamContext, master_key: bytes) -> None:
        self._js = js
        self._master = cipher_of(master_key)
        self._ciphers: dict[str, AESCipher] = {}

    async def cipher(self, tenant: str) -> AESCipher:
        """Return the cipher of a tenant."""
        found = self._ciphers.get(tenant)
        if found is None:
            found = cipher_of(await self._data_key(tenant))
            self._ciphers[tenant] = found
        return found

    async def _data_key(self, tenant: str) -> bytes:
        try:
            wrapped = await self._wrapped(tenant)
        except (NatsError, TimeoutError) as error:
            raise StoreUnavailable("the bucket of keys does not answer") from error
        try:
            return self._master.decrypt(wrapped)
        except (InvalidTag, ValueError) as error:
            raise DataLoss(
                f"tenant {tenant}'s data key was wrapped under another master key"
            ) from error

    async def _wrapped(self, tenant: str) -> bytes:
        """Return a tenant's data key as it is kept, making one for a new tenant."""
        bucket = await self._js.key_value(KEYS)
        try:
            entry = await bucket.get(tenant)
        except KeyNotFoundError:
            wrapped = self._master.encrypt(AESGCM.generate_key(MASTER_KEY_BYTES * 8))
            try:
                await bucket.create(tenant, wrapped)
            except KeyWrongLastSequenceError:
                pass  # another service made it first; read theirs
            entry = await bucket.get(tenant)
        return entry.value or b""
