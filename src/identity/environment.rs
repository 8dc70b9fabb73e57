//! What the environment that PostgreSQL was started with says of identities.

/// The variables that the AKS webhook and Kubernetes set in a pod. Empty is the same as missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    pub client_id: Option<String>,
    pub tenant_id: Option<String>,
    pub token_file: Option<String>,
    pub authority_host: Option<String>,
    /// Whether this is a pod, of which Kubernetes itself tells.
    pub in_kubernetes: bool,
}

impl Environment {
    /// Reads them by `variable`.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let given = |name| variable(name).filter(|value| !value.is_empty());
        Self {
            client_id: given("AZURE_CLIENT_ID"),
            tenant_id: given("AZURE_TENANT_ID"),
            token_file: given("AZURE_FEDERATED_TOKEN_FILE"),
            authority_host: given("AZURE_AUTHORITY_HOST"),
            in_kubernetes: given("KUBERNETES_SERVICE_HOST").is_some(),
        }
    }

    /// The variables of workload identity: name, and whether it is set.
    pub fn workload_identity(&self) -> [(&'static str, bool); 3] {
        [
            ("AZURE_CLIENT_ID", self.client_id.is_some()),
            ("AZURE_TENANT_ID", self.tenant_id.is_some()),
            ("AZURE_FEDERATED_TOKEN_FILE", self.token_file.is_some()),
        ]
    }

    /// Whether this is a pod with workload identity.
    pub fn has_workload_identity(&self) -> bool {
        self.workload_identity().iter().all(|(_, is_set)| *is_set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[(&str, &str)]) -> Environment {
        Environment::read(|name| {
            set.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn workload_identity_needs_three_variables_that_are_not_empty() {
        let all = [("AZURE_CLIENT_ID", "c"), ("AZURE_TENANT_ID", "t"), ("AZURE_FEDERATED_TOKEN_FILE", "/f")];
        assert!(with(&all).has_workload_identity());
        for at in 0..all.len() {
            let mut some = all;
            some[at].1 = "";
            assert!(!with(&some).has_workload_identity(), "{some:?}");
        }
        assert_eq!(with(&[("AZURE_AUTHORITY_HOST", "")]), Environment::default());
    }
}
