"""Microsoft's clients against the emulator, which microsoft_clients.rs starts and names in EMULATOR, a JSON object.

The emulator is right where these are satisfied, and where they fail as they do against Azure.
"""

import base64
import json
import os
import unittest
from unittest import mock

import msal
import requests
from azure.core.credentials import AccessToken
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
)
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import (
    CredentialUnavailableError,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)
from azure.keyvault.secrets import SecretClient

AT = json.loads(os.environ["EMULATOR"])
STORAGE = "https://storage.azure.com/.default"
VAULT = "https://vault.azure.net/.default"


def claims(token):
    part = token.token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


class Identity(unittest.TestCase):
    """azure-identity; the emulator has a system-assigned identity and `keys`."""

    def of(self, credential, scope=STORAGE):
        token = credential.get_token(scope)
        self.assertGreater(token.expires_on, 0)
        return claims(token)

    def test_system_assigned(self):
        found = self.of(ManagedIdentityCredential())
        self.assertEqual(found["appid"], AT["system"]["client_id"])
        self.assertEqual(found["aud"], "https://storage.azure.com")

    def test_client_id(self):
        credential = ManagedIdentityCredential(client_id=AT["keys"]["client_id"])
        found = self.of(credential, VAULT)
        self.assertEqual(found["appid"], AT["keys"]["client_id"])
        self.assertEqual(found["aud"], "https://vault.azure.net")

    def test_object_id(self):
        config = {"object_id": AT["keys"]["object_id"]}
        found = self.of(ManagedIdentityCredential(identity_config=config))
        self.assertEqual(found["appid"], AT["keys"]["client_id"])

    def test_resource_id(self):
        config = {"resource_id": AT["keys"]["resource_id"]}
        found = self.of(ManagedIdentityCredential(identity_config=config))
        self.assertEqual(found["appid"], AT["keys"]["client_id"])

    def test_unknown_identity(self):
        credential = ManagedIdentityCredential(client_id="00000000-0000-0000-0000-000000000000")
        with self.assertRaisesRegex(CredentialUnavailableError, "Identity not found"):
            credential.get_token(STORAGE)


class SeveralIdentities(unittest.TestCase):
    """azure-identity; the emulator has two user-assigned identities and no other."""

    def test_none_chosen(self):
        with self.assertRaisesRegex(CredentialUnavailableError, "Multiple user assigned identities exist"):
            ManagedIdentityCredential().get_token(STORAGE)

    def test_one_chosen(self):
        token = ManagedIdentityCredential(client_id=AT["keys"]["client_id"]).get_token(STORAGE)
        self.assertEqual(claims(token)["appid"], AT["keys"]["client_id"])


class OnlyIdentity(unittest.TestCase):
    """azure-identity; the emulator has one user-assigned identity and no other."""

    def test_none_chosen(self):
        token = ManagedIdentityCredential().get_token(STORAGE)
        self.assertEqual(claims(token)["appid"], AT["keys"]["client_id"])


class TriesAgain(unittest.TestCase):
    """azure-identity; the emulator answers otherwise at first, then rightly."""

    def test_until_it_is_answered_rightly(self):
        with mock.patch("time.sleep") as sleep:
            token = ManagedIdentityCredential(retry_backoff_factor=0).get_token(STORAGE)
        self.assertEqual(claims(token)["appid"], AT["system"]["client_id"])
        # What it would have slept: what it was asked to, and no more.
        self.assertEqual([call.args[0] for call in sleep.call_args_list], AT["slept"])


class WithoutHeader(RequestsTransport):
    """Sends no header Metadata, as a stranger's request that somebody was made to forward."""

    def send(self, request, **kwargs):
        del request.headers["Metadata"]
        return super().send(request, **kwargs)


class NoHeader(unittest.TestCase):
    """azure-identity, and a header that is lost on the way."""

    def test_it_is_refused(self):
        credential = ManagedIdentityCredential(transport=WithoutHeader())
        with self.assertRaisesRegex(CredentialUnavailableError, "Required metadata header not specified"):
            credential.get_token(STORAGE)


class Msal(unittest.TestCase):
    """msal's own client of managed identities; the emulator has a system-assigned identity and `keys`."""

    def ask(self, identity):
        client = msal.ManagedIdentityClient(identity, http_client=requests.Session())
        answer = client.acquire_token_for_client(resource="https://storage.azure.com")
        if "access_token" in answer:
            again = client.acquire_token_for_client(resource="https://storage.azure.com")
            self.assertEqual(again["token_source"], "cache")
            self.assertEqual(again["access_token"], answer["access_token"])
        return answer

    def test_each_identity(self):
        of_user = msal.UserAssignedManagedIdentity
        keys = AT["keys"]
        for identity, client_id in [
            (msal.SystemAssignedManagedIdentity(), AT["system"]["client_id"]),
            (of_user(client_id=keys["client_id"]), keys["client_id"]),
            (of_user(object_id=keys["object_id"]), keys["client_id"]),
            (of_user(resource_id=keys["resource_id"]), keys["client_id"]),
        ]:
            with self.subTest(identity):
                answer = self.ask(identity)
                self.assertEqual(claims(AccessToken(answer["access_token"], 0))["appid"], client_id)
                self.assertEqual(answer["token_type"], "Bearer")
                self.assertGreater(answer["expires_in"], 3600)

    def test_unknown_identity(self):
        answer = self.ask(msal.UserAssignedManagedIdentity(client_id="00000000-0000-0000-0000-000000000000"))
        self.assertEqual(answer["error"], "invalid_request")
        self.assertIn("Identity not found", answer["error_description"])


class MsalFederated(unittest.TestCase):
    """msal's confidential client, whose assertion is a federated token; files are named as in Federated."""

    def ask(self, file="good", client_id=AT["keys"]["client_id"]):
        with open(os.path.join(AT["files"], file), encoding="ascii") as token:
            assertion = token.read()
        http_client = requests.Session()
        http_client.verify = AT["ca"]
        # Another authority in the environment would come before this one.
        http_client.trust_env = False
        client = msal.ConfidentialClientApplication(
            client_id,
            client_credential={"client_assertion": assertion},
            authority=f"{AT['authority']}/{AT['tenant']}",
            instance_discovery=False,
            http_client=http_client,
        )
        return client.acquire_token_for_client([STORAGE])

    def test_token(self):
        found = claims(AccessToken(self.ask()["access_token"], 0))
        self.assertEqual(found["appid"], AT["keys"]["client_id"])
        self.assertEqual(found["tid"], AT["tenant"])
        self.assertEqual(found["aud"], "https://storage.azure.com")

    def test_refusals(self):
        cases = [(name, self.ask(name)) for name in os.listdir(AT["files"]) if name != "good"]
        cases.append(("AADSTS700016", self.ask(client_id="00000000-0000-0000-0000-000000000000")))
        self.assertEqual(len(cases), 7)
        for number, answer in cases:
            with self.subTest(number):
                self.assertIn(number + ":", answer["error_description"])
                self.assertEqual(answer["error_codes"], [int(number.removeprefix("AADSTS"))])


class Federated(unittest.TestCase):
    """azure-identity's workload identity; each file but `good` is named by what Entra says to it."""

    def ask(self, file="good", **changed):
        config = {
            "tenant_id": AT["tenant"],
            "client_id": AT["keys"]["client_id"],
            "token_file_path": os.path.join(AT["files"], file),
            "authority": AT["authority"],
            "connection_verify": AT["ca"],
            "retry_total": 0,
        }
        with WorkloadIdentityCredential(**(config | changed)) as credential:
            return credential.get_token(STORAGE)

    def test_token(self):
        found = claims(self.ask())
        self.assertEqual(found["appid"], AT["keys"]["client_id"])
        self.assertEqual(found["tid"], AT["tenant"])
        self.assertEqual(found["aud"], "https://storage.azure.com")

    def test_refusals(self):
        nobody = "00000000-0000-0000-0000-000000000000"
        cases = [(name, {"file": name}) for name in os.listdir(AT["files"]) if name != "good"]
        cases += [("AADSTS90002", {"tenant_id": nobody}), ("AADSTS700016", {"client_id": nobody})]
        self.assertEqual(len(cases), 8)
        for number, changed in cases:
            with self.subTest(number), self.assertRaisesRegex(ClientAuthenticationError, number + ":"):
                self.ask(**changed)


class WrongAudience:
    """A credential that answers with a storage token, whatever is asked for."""

    def get_token(self, *scopes, **kwargs):
        token = ManagedIdentityCredential().get_token(STORAGE)
        return AccessToken(token.token, token.expires_on)


class Secrets(unittest.TestCase):
    """azure-keyvault-secrets, with the token of `keys`."""

    def client(self, credential=None, **kwargs):
        client = SecretClient(
            AT["vault"],
            credential or ManagedIdentityCredential(client_id=AT["keys"]["client_id"]),
            verify_challenge_resource=False,
            connection_verify=AT["ca"],
            retry_total=0,
            **kwargs,
        )
        self.addCleanup(client.close)
        return client

    def test_newest_version_by_the_package_s_own_api_version(self):
        secret = self.client().get_secret("api-key")
        self.assertEqual(secret.value, "two")
        self.assertEqual(secret.properties.version, AT["new"])
        self.assertEqual(secret.properties.content_type, "text/plain")
        self.assertEqual(secret.properties.tags, {"team": "data"})
        self.assertTrue(secret.properties.enabled)
        self.assertEqual(secret.properties.expires_on.year, 2096)
        self.assertEqual(secret.properties.recovery_level, "Recoverable+Purgeable")

    def test_each_version_and_api_version(self):
        for api_version in ["7.4", "7.5", "7.6", "2025-07-01", "2026-04-01"]:
            with self.subTest(api_version):
                client = self.client(api_version=api_version)
                self.assertEqual(client.get_secret("api-key", AT["old"]).value, "one")
                self.assertEqual(client.get_secret("api-key", AT["new"]).value, "two")

    def test_disabled(self):
        with self.assertRaises(HttpResponseError) as raised:
            self.client().get_secret("off")
        self.assertEqual(raised.exception.status_code, 403)
        self.assertEqual(raised.exception.error.code, "Forbidden")
        self.assertEqual(raised.exception.error.innererror["code"], "SecretDisabled")

    def test_not_found(self):
        for version in [None, "0" * 32]:
            with self.subTest(version), self.assertRaises(ResourceNotFoundError) as raised:
                self.client().get_secret("nope", version)
            self.assertEqual(raised.exception.error.code, "SecretNotFound")

    def test_wrong_audience(self):
        with self.assertRaisesRegex(ClientAuthenticationError, "AKV10022: Invalid audience") as raised:
            self.client(WrongAudience()).get_secret("api-key")
        self.assertEqual(raised.exception.status_code, 401)

    def test_the_challenge_names_another_host_than_ours(self):
        client = SecretClient(AT["vault"], ManagedIdentityCredential(), connection_verify=AT["ca"])
        with self.assertRaisesRegex(ValueError, "The challenge resource 'vault.azure.net' does not match"):
            client.get_secret("api-key")


if __name__ == "__main__":
    unittest.main()
