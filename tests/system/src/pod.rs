//! A server in a pod of a cluster with workload identity: its environment, its federated token file, and
//! the authority that exchanges it.

use std::fs;

use emulator::{Config, Emulator, EntraService, Identity, OidcIssuer, Pki, Secret, TENANT};
use tempfile::TempDir;

use crate::cluster::shared_folder;
use crate::{Options, World};

/// The pod's service account.
pub const SUBJECT: &str = "system:serviceaccount:default:postgres";

/// The node has an identity of its own, `node`, which the instance metadata service gives; the pod's is `pod`,
/// and `keys` trusts its service account, too.
pub struct Pod {
    pub world: World,
    pub entra: EntraService,
    pub issuer: OidcIssuer,
    files: TempDir,
}

impl Pod {
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    /// With Azurite, as [`World::with_storage`].
    pub fn with_storage() -> Self {
        Self::build(Options::default(), true, true)
    }

    /// The same, but not in a pod.
    pub fn with_storage_without_environment() -> Self {
        Self::build(Options::default(), false, true)
    }

    /// Not in a pod: the environment says nothing of workload identity.
    pub fn without_environment() -> Self {
        Self::build(Options::default(), false, false)
    }

    /// A server that is started with more.
    pub fn with(options: Options) -> Self {
        Self::build(options, true, false)
    }

    fn build(mut options: Options, environment: bool, storage: bool) -> Self {
        let mut config = Config::new(Pki::create_for(&["login.test"]).expect("certificates"));
        config.identities = vec![Identity::user("node")];
        config.secrets = vec![Secret::new("db-password", "hunter2")];
        let emulator = Emulator::start(config).expect("the emulator");
        let entra = emulator.entra().expect("an authority");
        let issuer = OidcIssuer::new("https://oidc.test/cluster/").expect("an issuer");
        for identity in ["pod", "keys"] {
            entra.trust(TENANT, &Identity::user(identity), &issuer, SUBJECT).expect("a credential");
        }
        let files = shared_folder();
        if environment {
            // As the webhook of AKS sets them, the slash included.
            options = options
                .environment("AZURE_CLIENT_ID", &Identity::user("pod").client_id)
                .environment("AZURE_TENANT_ID", TENANT)
                .environment("AZURE_FEDERATED_TOKEN_FILE", &token_file(&files))
                .environment("AZURE_AUTHORITY_HOST", &format!("{}/", entra.authority()));
        }
        let pod = Self { world: World::around(emulator, options, storage), entra, issuer, files };
        pod.write(&pod.issuer.token(SUBJECT).expect("a token"));
        pod
    }

    /// The path of the federated token file.
    pub fn token_file(&self) -> String {
        token_file(&self.files)
    }

    /// Replaces the federated token in one step, as kubelet does.
    pub fn write(&self, token: &str) {
        let new = self.files.path().join("new");
        fs::write(&new, format!("{token}\n")).expect("a file");
        fs::rename(new, self.token_file()).expect("the file");
    }

    /// What the authority was shown, in order.
    pub fn assertions(&self) -> Vec<String> {
        let requests = self.entra.log().requests();
        requests.iter().filter_map(|entry| entry.form("client_assertion").map(str::to_owned)).collect()
    }
}

impl Default for Pod {
    fn default() -> Self {
        Self::new()
    }
}

fn token_file(files: &TempDir) -> String {
    files.path().join("azure-identity-token").to_str().expect("a path").to_owned()
}
