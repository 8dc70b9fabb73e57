//! The names that differ between Azure's clouds. Sources: the Azure CLI's `cloud.py`, go-autorest's
//! `environments.go`, and for vaults Always Encrypted's list of trusted endpoints.

/// An Azure cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cloud {
    #[default]
    Public,
    UsGovernment,
    China,
}

impl Cloud {
    /// Host suffix of blob endpoints, behind `<account>.`.
    pub fn blob_suffix(self) -> &'static str {
        match self {
            Cloud::Public => "blob.core.windows.net",
            Cloud::UsGovernment => "blob.core.usgovcloudapi.net",
            Cloud::China => "blob.core.chinacloudapi.cn",
        }
    }

    /// Host of the authority that issues the cloud's tokens.
    pub fn authority_host(self) -> &'static str {
        match self {
            Cloud::Public => "login.microsoftonline.com",
            Cloud::UsGovernment => "login.microsoftonline.us",
            Cloud::China => "login.chinacloudapi.cn",
        }
    }

    /// Host suffix of key vaults, behind `<vault>.`.
    pub fn vault_suffix(self) -> &'static str {
        match self {
            Cloud::Public => "vault.azure.net",
            Cloud::UsGovernment => "vault.usgovcloudapi.net",
            Cloud::China => "vault.azure.cn",
        }
    }

    /// Host suffix of managed HSMs.
    pub fn hsm_suffix(self) -> &'static str {
        match self {
            Cloud::Public => "managedhsm.azure.net",
            Cloud::UsGovernment => "managedhsm.usgovcloudapi.net",
            Cloud::China => "managedhsm.azure.cn",
        }
    }

    /// The aliases of resources: name, resource, what it opens. Whether a resource ends with a slash
    /// matters: Entra compares it with the registered identifier and repeats it in `aud`.
    pub fn aliases(self) -> [(&'static str, &'static str); 11] {
        let pick = |public, government, china| match self {
            Cloud::Public => public,
            Cloud::UsGovernment => government,
            Cloud::China => china,
        };
        [
            ("storage", "https://storage.azure.com/"),
            ("key-vault", pick("https://vault.azure.net", "https://vault.usgovcloudapi.net", "https://vault.azure.cn")),
            (
                "managed-hsm",
                pick(
                    "https://managedhsm.azure.net",
                    "https://managedhsm.usgovcloudapi.net",
                    "https://managedhsm.azure.cn",
                ),
            ),
            (
                "postgresql",
                pick(
                    "https://ossrdbms-aad.database.windows.net",
                    "https://ossrdbms-aad.database.usgovcloudapi.net",
                    "https://ossrdbms-aad.database.chinacloudapi.cn",
                ),
            ),
            (
                "sql",
                pick(
                    "https://database.windows.net/",
                    "https://database.usgovcloudapi.net/",
                    "https://database.chinacloudapi.cn/",
                ),
            ),
            (
                "management",
                pick(
                    "https://management.azure.com/",
                    "https://management.usgovcloudapi.net/",
                    "https://management.chinacloudapi.cn/",
                ),
            ),
            (
                "graph",
                pick(
                    "https://graph.microsoft.com",
                    "https://graph.microsoft.us",
                    "https://microsoftgraph.chinacloudapi.cn",
                ),
            ),
            ("fabric", "https://api.fabric.microsoft.com"),
            (
                "cognitive-services",
                pick(
                    "https://cognitiveservices.azure.com",
                    "https://cognitiveservices.azure.us",
                    "https://cognitiveservices.azure.cn",
                ),
            ),
            ("service-bus", "https://servicebus.azure.net"),
            ("event-hubs", "https://eventhubs.azure.net"),
        ]
    }
}
