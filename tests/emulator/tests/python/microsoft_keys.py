"""azure-keyvault-keys against the emulator, which microsoft_keys.rs starts and names in EMULATOR, a JSON object.

The emulator is right where the client is satisfied, and where it fails as it does against Azure.
"""

import base64
import hashlib
import json
import os
import socket
import unittest
from unittest import mock
from urllib.parse import urlsplit

import requests
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.core.rest import HttpRequest
from azure.identity import ManagedIdentityCredential
from azure.keyvault.keys import KeyClient, KeyCurveName, KeyOperation, KeyType
from azure.keyvault.keys.crypto import (
    CryptographyClient,
    EncryptionAlgorithm,
    KeyWrapAlgorithm,
    SignatureAlgorithm,
)
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

AT = json.loads(os.environ["EMULATOR"])
DATA_KEY = bytes(range(32))
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
DIGESTS = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}


def b64u(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_b64u(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Case(unittest.TestCase):
    """Clients with the token of an identity: `keys` unless another one is named."""

    def options(self, identity="keys", **kwargs):
        options = {
            "credential": ManagedIdentityCredential(client_id=AT[identity]["client_id"])
            if identity != "system"
            else ManagedIdentityCredential(),
            "verify_challenge_resource": False,
            "connection_verify": AT["ca"],
            "retry_total": 0,
        }
        return options | kwargs

    def client(self, **kwargs):
        client = KeyClient(kwargs.pop("vault", AT["vault"]), **self.options(**kwargs))
        self.addCleanup(client.close)
        return client

    def crypto(self, key, **kwargs):
        client = CryptographyClient(key, **self.options(**kwargs))
        self.addCleanup(client.close)
        return client

    def remote(self, name, operation, **body):
        """The service does it: the package would wrap, encrypt and verify without asking."""
        request = HttpRequest("POST", f"/keys/{name}/{operation}", json=body)
        response = self.client().send_request(request)
        response.raise_for_status()
        return response.json()

    def refused(self, code, inner, call, *args, error=HttpResponseError, **kwargs):
        with self.assertRaises(error) as raised:
            call(*args, **kwargs)
        error = raised.exception.error
        self.assertEqual((error.code, (error.innererror or {}).get("code")), (code, inner))
        return raised.exception


class Reading(Case):
    def test_newest_and_each_version_by_each_api_version(self):
        for api_version in ["7.4", "7.5", "7.6", "2025-07-01"]:
            with self.subTest(api_version):
                client = self.client(api_version=api_version)
                newest = client.get_key("kek")
                self.assertEqual(newest.properties.version, AT["versions"][-1])
                self.assertEqual(newest.id, f"{AT['vault']}/keys/kek/{AT['versions'][-1]}")
                self.assertEqual(newest.key_type, KeyType.rsa)
                self.assertEqual(len(newest.key.n), 256)
                moduli = {client.get_key("kek", version).key.n for version in AT["versions"]}
                self.assertEqual(len(moduli), len(AT["versions"]))

    def test_all_that_is_said_of_a_key(self):
        key = self.client().get_key("large")
        self.assertEqual(key.key_type, KeyType.rsa_hsm)
        self.assertEqual(key.key_operations, [KeyOperation.wrap_key, KeyOperation.unwrap_key])
        self.assertEqual(len(key.key.n), 384)
        self.assertTrue(key.properties.enabled)
        self.assertEqual(key.properties.not_before.year, 1970)
        self.assertEqual(key.properties.expires_on.year, 2096)
        self.assertEqual(key.properties.tags, {"team": "data"})
        self.assertEqual(key.properties.recovery_level, "Recoverable+Purgeable")

    def test_an_elliptic_curve(self):
        key = self.client().get_key("ec")
        self.assertEqual((key.key_type, key.key.crv), (KeyType.ec, KeyCurveName.p_256))
        numbers = [int.from_bytes(number, "big") for number in (key.key.x, key.key.y)]
        ec.EllipticCurvePublicNumbers(*numbers, ec.SECP256R1()).public_key()

    def test_versions_in_one_page_and_in_three(self):
        for size in [None, 2]:
            with self.subTest(size):
                listed = list(self.client().list_properties_of_key_versions("kek", max_page_size=size))
                self.assertCountEqual([found.version for found in listed], AT["versions"])
                self.assertEqual({found.name for found in listed}, {"kek"})


class ByName(Case):
    def test_pages_with_the_port_written_out(self):
        port = urlsplit(AT["vault"]).port
        resolve = socket.getaddrinfo

        def here(host, asked, *args, **kwargs):
            return resolve("127.0.0.1", port if host == AT["name"] else asked, *args, **kwargs)

        with mock.patch("socket.getaddrinfo", here):
            client = self.client(vault=f"https://{AT['name']}", verify_challenge_resource=True)
            answers = []

            def keep(answer):
                answers.append(answer.http_response.json())

            found = list(client.list_properties_of_key_versions("kek", max_page_size=1, raw_response_hook=keep))
        self.assertEqual(len(found), 3)
        self.assertEqual({key.vault_url for key in found}, {f"https://{AT['name']}"})
        links = [answer["nextLink"] for answer in answers if "value" in answer]
        self.assertEqual(len(links), 3)
        self.assertTrue(links[0].startswith(f"https://{AT['name']}:443/keys/kek/versions?"), links[0])
        self.assertIsNone(links[2])


class Cryptography(Case):
    def clients(self, name):
        """One that knows the key and one that may not read it."""
        local = self.crypto(self.client(identity="system").get_key(name), identity="system")
        remote = self.crypto(f"{AT['vault']}/keys/{name}", identity="keys")
        return local, remote

    def test_wrap_and_encrypt(self):
        for name in ["k2", "k3", "k4"]:
            for alg in ["RSA-OAEP-256", "RSA-OAEP", "RSA1_5"]:
                wrapping, encryption = KeyWrapAlgorithm(alg), EncryptionAlgorithm(alg)
                local, remote = self.clients(name)
                for one in (local, remote):
                    with self.subTest(name=name, alg=alg, remote=one is remote):
                        wrapped = one.wrap_key(wrapping, DATA_KEY).encrypted_key
                        self.assertEqual(remote.unwrap_key(wrapping, wrapped).key, DATA_KEY)
                        self.assertEqual(local.unwrap_key(wrapping, wrapped).key, DATA_KEY)
                        sealed = one.encrypt(encryption, DATA_KEY).ciphertext
                        self.assertEqual(remote.decrypt(encryption, sealed).plaintext, DATA_KEY)
                        self.assertEqual(local.decrypt(encryption, sealed).plaintext, DATA_KEY)

    def test_sign_and_verify(self):
        rsa_algorithms = ["PS256", "PS384", "PS512", "RS256", "RS384", "RS512"]
        cases = [(name, alg) for name in ["k2", "k3", "k4"] for alg in rsa_algorithms] + [("ec", "ES256")]
        for name, alg in cases:
            with self.subTest(name=name, alg=alg):
                local, remote = self.clients(name)
                algorithm = SignatureAlgorithm(alg)
                digest = DIGESTS[alg[2:]](b"message").digest()
                other = DIGESTS[alg[2:]](b"massage").digest()
                signature = remote.sign(algorithm, digest).signature
                for one in (local, remote):
                    self.assertTrue(one.verify(algorithm, digest, signature).is_valid)
                    self.assertFalse(one.verify(algorithm, other, signature).is_valid)

    def test_what_does_not_fit_a_key(self):
        _, on_ec = self.clients("ec")
        _, on_rsa = self.clients("k2")
        wrap = on_ec.wrap_key
        self.refused("Forbidden", "KeyOperationForbidden", wrap, KeyWrapAlgorithm.rsa_oaep_256, DATA_KEY)
        self.refused("BadParameter", None, on_ec.sign, SignatureAlgorithm.rs256, DATA_KEY)
        self.refused("BadParameter", None, on_rsa.wrap_key, KeyWrapAlgorithm.aes_256, DATA_KEY)
        self.refused("BadParameter", None, on_rsa.sign, SignatureAlgorithm.es256, DATA_KEY)
        self.refused("BadParameter", None, on_rsa.sign, SignatureAlgorithm.rs512, DATA_KEY)
        self.refused("BadParameter", None, on_rsa.wrap_key, KeyWrapAlgorithm.rsa_oaep_256, bytes(191))


class Independent(Case):
    """What the vault did is undone by `cryptography` with the vault's private key, and the reverse."""

    def private(self, name):
        return serialization.load_der_private_key(base64.b64decode(AT[name]), None)

    def test_wrap(self):
        private = self.private("rsa")
        self.assertIsInstance(private, rsa.RSAPrivateKey)
        done = self.remote("kek/", "wrapkey", alg="RSA-OAEP-256", value=b64u(DATA_KEY))
        self.assertEqual(private.decrypt(from_b64u(done["value"]), OAEP), DATA_KEY)
        wrapped = b64u(private.public_key().encrypt(DATA_KEY, OAEP))
        done = self.remote("kek/", "unwrapkey", alg="RSA-OAEP-256", value=wrapped)
        self.assertEqual(from_b64u(done["value"]), DATA_KEY)

    def test_the_published_key_is_that_of_the_private_one(self):
        key = self.client().get_key("kek").key
        numbers = self.private("rsa").public_key().public_numbers()
        self.assertEqual((int.from_bytes(key.n, "big"), int.from_bytes(key.e, "big")), (numbers.n, numbers.e))

    def test_sign(self):
        digest = hashlib.sha256(b"message").digest()
        done = self.remote("kek/", "sign", alg="PS256", value=b64u(digest))
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256().digest_size)
        hashed = utils.Prehashed(hashes.SHA256())
        self.private("rsa").public_key().verify(from_b64u(done["value"]), digest, pss, hashed)
        signature = b64u(self.private("rsa").sign(digest, pss, hashed))
        self.assertTrue(self.remote("kek/", "verify", alg="PS256", digest=b64u(digest), value=signature)["value"])
        done = from_b64u(self.remote("ec/", "sign", alg="ES256", value=b64u(digest))["value"])
        halves = [int.from_bytes(half, "big") for half in (done[:32], done[32:])]
        der = utils.encode_dss_signature(*halves)
        self.private("ec").public_key().verify(der, digest, ec.ECDSA(hashed))


class ManagedHsm(Case):
    def test_wrap(self):
        key = self.client(identity="system").get_key("kek")
        self.assertEqual((key.key_type, key.key.k), (KeyType.oct_hsm, None))
        # One that may not read the key: having read it, this client wraps with a random one that it makes up.
        crypto = self.crypto(key.id)
        wrapped = crypto.wrap_key(KeyWrapAlgorithm.aes_256, DATA_KEY).encrypted_key
        private = base64.b64decode(AT["private"])
        self.assertEqual(wrapped, keywrap.aes_key_wrap(private, DATA_KEY))
        self.assertEqual(crypto.unwrap_key(KeyWrapAlgorithm.aes_256, wrapped).key, DATA_KEY)
        bad = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
        self.refused("BadParameter", None, crypto.unwrap_key, KeyWrapAlgorithm.aes_256, bad)


class Refused(Case):
    def of(self, name, operation, **body):
        return lambda: self.remote(name, operation, **({"alg": "RSA-OAEP-256", "value": b64u(DATA_KEY)} | body))

    def test_not_found(self):
        for name, version in [("nope", None), ("kek", "0" * 32), ("gone", None)]:
            with self.subTest(name):
                self.refused("KeyNotFound", None, self.client().get_key, name, version, error=ResourceNotFoundError)
        self.assertEqual(list(self.client().list_properties_of_key_versions("gone")), [])

    def test_disabled(self):
        key = self.client().get_key("off")
        self.assertFalse(key.properties.enabled)
        for call in [
            lambda: self.crypto(key).unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, bytes(256)),
            lambda: self.crypto(key).sign(SignatureAlgorithm.rs256, DATA_KEY),
        ]:
            raised = self.refused("Forbidden", "KeyDisabled", call)
            self.assertEqual(raised.status_code, 403)

    def test_outside_its_time(self):
        for name, inner in [("expired", "KeyExpired"), ("early", "KeyNotYetValid")]:
            with self.subTest(name):
                key = self.client().get_key(name)
                crypto = self.crypto(key)
                with self.assertRaises(ValueError):
                    crypto.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, DATA_KEY)
                self.refused("Forbidden", inner, crypto.sign, SignatureAlgorithm.rs256, DATA_KEY)
                public = rsa.RSAPublicNumbers(
                    int.from_bytes(key.key.e, "big"), int.from_bytes(key.key.n, "big")
                ).public_key()
                wrapped = public.encrypt(DATA_KEY, OAEP)
                self.assertEqual(crypto.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, wrapped).key, DATA_KEY)

    def test_wrapped_by_another_version(self):
        old = self.crypto(self.client().get_key("kek", AT["old"]))
        wrapped = old.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, DATA_KEY).encrypted_key
        self.assertEqual(old.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, wrapped).key, DATA_KEY)
        newest = self.crypto(self.client().get_key("kek"))
        raised = self.refused("BadParameter", None, newest.unwrap_key, KeyWrapAlgorithm.rsa_oaep_256, wrapped)
        self.assertEqual(raised.error.message, "Unable to decrypt specified value with this key.")

    def test_not_among_the_key_s_operations(self):
        key = self.client().get_key("signs")
        unwrap = self.crypto(key).unwrap_key
        self.refused("Forbidden", "KeyOperationForbidden", unwrap, KeyWrapAlgorithm.rsa_oaep_256, bytes(256))
        self.crypto(key).sign(SignatureAlgorithm.rs256, DATA_KEY)

    def test_no_role(self):
        raised = self.refused("Forbidden", "ForbiddenByRbac", self.client(identity="system").get_key, "kek")
        self.assertEqual(raised.status_code, 403)
        self.assertIn(f"oid={AT['system']['object_id']};", raised.error.message)
        self.assertIn("Action: 'Microsoft.KeyVault/vaults/keys/read'", raised.error.message)
        key = self.client().get_key("kek")
        unwrap = self.crypto(key, identity="system").unwrap_key
        raised = self.refused("Forbidden", "ForbiddenByRbac", unwrap, KeyWrapAlgorithm.rsa_oaep_256, bytes(256))
        self.assertIn("Action: 'Microsoft.KeyVault/vaults/keys/unwrap/action'", raised.error.message)


class Firewall(Case):
    def test_refused(self):
        raised = self.refused("Forbidden", "ForbiddenByFirewall", self.client().get_key, "kek")
        self.assertIn("Client address: 127.0.0.1", raised.error.message)


class NewToken(Case):
    def test_one_new_token_for_as_many_requests_as_come(self):
        client = self.client()
        client.get_key("kek")
        requests.post(f"{AT['control']}/require_new_tokens", timeout=30).raise_for_status()
        client.get_key("kek")
        client.get_key("kek")


if __name__ == "__main__":
    unittest.main()
