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

/// What an alias of a resource opens.
pub fn description(alias: &str) -> &'static str {
    match alias {
        "storage" => "Azure Storage: blobs, files, queues, tables, Data Lake",
        "key-vault" => "Key Vault",
        "managed-hsm" => "Key Vault Managed HSM",
        "postgresql" => "Azure Database for PostgreSQL and MySQL",
        "sql" => "Azure SQL",
        "management" => "Azure Resource Manager",
        "graph" => "Microsoft Graph",
        "fabric" => "Microsoft Fabric",
        "cognitive-services" => "Azure AI services and Azure OpenAI",
        "service-bus" => "Service Bus",
        "event-hubs" => "Event Hubs",
        _ => "",
    }
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

    /// The aliases of resources: name and resource. Whether a resource ends with a slash
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alias_is_described() {
        for (alias, _) in Cloud::Public.aliases() {
            assert!(!description(alias).is_empty(), "{alias}");
        }
    }
}
