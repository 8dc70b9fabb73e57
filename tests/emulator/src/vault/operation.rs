//! What can be asked of a vault, by the names that its paths, its keys and its roles use.

use serde::{Deserialize, Serialize};

/// One kind of request, and one that an identity can be denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VaultOperation {
    GetSecret,
    /// A key's public half and attributes, or the list of its versions: roles do not tell them apart.
    ReadKey,
    WrapKey,
    UnwrapKey,
    Encrypt,
    Decrypt,
    Sign,
    Verify,
}

impl VaultOperation {
    pub const ALL: [Self; 8] = [
        Self::GetSecret,
        Self::ReadKey,
        Self::WrapKey,
        Self::UnwrapKey,
        Self::Encrypt,
        Self::Decrypt,
        Self::Sign,
        Self::Verify,
    ];

    /// What a POST to a key's path asks for; the real vault does not mind the case either.
    pub(super) fn with_key(segment: &str) -> Option<Self> {
        let with_key = Self::ALL.into_iter().skip(2);
        with_key.into_iter().find(|operation| operation.name().eq_ignore_ascii_case(segment))
    }

    /// As refusals and a key's `key_ops` name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::GetSecret | Self::ReadKey => "get",
            Self::WrapKey => "wrapKey",
            Self::UnwrapKey => "unwrapKey",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Sign => "sign",
            Self::Verify => "verify",
        }
    }

    /// As roles name it.
    pub(super) fn action(self) -> &'static str {
        match self {
            Self::GetSecret => "Microsoft.KeyVault/vaults/secrets/getSecret/action",
            Self::ReadKey => "Microsoft.KeyVault/vaults/keys/read",
            Self::WrapKey => "Microsoft.KeyVault/vaults/keys/wrap/action",
            Self::UnwrapKey => "Microsoft.KeyVault/vaults/keys/unwrap/action",
            Self::Encrypt => "Microsoft.KeyVault/vaults/keys/encrypt/action",
            Self::Decrypt => "Microsoft.KeyVault/vaults/keys/decrypt/action",
            Self::Sign => "Microsoft.KeyVault/vaults/keys/sign/action",
            Self::Verify => "Microsoft.KeyVault/vaults/keys/verify/action",
        }
    }

    /// Whether a key still does it when it has expired: what it once protected must remain readable.
    pub(super) fn works_outside_validity(self) -> bool {
        matches!(self, Self::GetSecret | Self::ReadKey | Self::UnwrapKey | Self::Decrypt | Self::Verify)
    }
}
