//! A server, the emulator and, where asked for, Azurite behind a proxy, wired together as a DBA would.

use emulator::{CA_CERTIFICATE, Config, Emulator, Identity, Pki, Proxy, Secret};

use crate::{Azurite, Cluster, Options, Session, peer_vault};

/// Azurite's account.
pub const ACCOUNT: &str = "devstoreaccount1";

/// Everything a test talks to. The server goes first when it is dropped, then its peers.
pub struct World {
    pub cluster: Cluster,
    proxy: Option<Proxy>,
    azurite: Option<Azurite>,
    pub emulator: Emulator,
}

impl World {
    /// A machine with a system-assigned identity, one named `keys`, a vault with secret `db-password`, and
    /// a server on which the extension is created.
    pub fn new() -> Self {
        Self::with(Options::default(), vec![Identity::system(), Identity::user("keys")])
    }

    pub fn with(options: Options, identities: Vec<Identity>) -> Self {
        Self::build(options, identities, false)
    }

    /// The same with Azurite behind a proxy, a container `box` in it, and storage server `devstoreaccount1`.
    pub fn with_storage() -> Self {
        Self::with_storage_and(Options::default())
    }

    pub fn with_storage_and(options: Options) -> Self {
        Self::build(options, vec![Identity::system(), Identity::user("keys")], true)
    }

    fn build(options: Options, identities: Vec<Identity>, storage: bool) -> Self {
        let pki =
            Pki::create_for(&["blob.test", "vault.test", "slow.hang.test", peer_vault::HOST]).expect("certificates");
        let mut config = Config::new(pki);
        config.identities = identities;
        config.secrets = vec![Secret::new("db-password", "hunter2")];
        Self::around(Emulator::start(config).expect("the emulator"), options, storage)
    }

    /// The same around an emulator that is there already.
    pub(crate) fn around(emulator: Emulator, options: Options, storage: bool) -> Self {
        let azurite = storage.then(|| Azurite::start(emulator.pki(), emulator.issuer()));
        let proxy = azurite.as_ref().map(|azurite| emulator.proxy(azurite.endpoint()).expect("a proxy"));
        let cluster =
            Cluster::start(options.conf(format!("managed_identity.imds_endpoint = '{}'", emulator.imds_endpoint())));
        let world = Self { cluster, proxy, azurite, emulator };
        let mut session = world.session();
        session.run("CREATE EXTENSION managed_identity");
        world.configure();
        if storage {
            world.azurite().create_container("box");
        }
        world.create_servers(&mut session);
        world
    }

    fn configure(&self) {
        let ca = self.cluster.file(CA_CERTIFICATE, self.emulator.pki().ca_pem());
        self.set("managed_identity.tls_ca_file", &ca);
        self.set("managed_identity.key_vault_hosts", "127.0.0.1");
    }

    /// The same world with its server upgraded to the one under test.
    pub fn upgraded(self) -> Self {
        let Self { cluster, proxy, azurite, emulator } = self;
        let world = Self { cluster: cluster.upgraded(), proxy, azurite, emulator };
        world.configure();
        world
    }

    /// Creates in a session's database the servers of this world.
    pub fn create_servers(&self, session: &mut Session) {
        session.run(&format!(
            "CREATE SERVER keys FOREIGN DATA WRAPPER managed_identity OPTIONS (client_id '{}', resources 'key-vault');
             CREATE SERVER vault FOREIGN DATA WRAPPER azure_key_vault
                 OPTIONS (vault_uri '{}', identity 'keys', allow 'secrets')",
            Identity::user("keys").client_id,
            self.emulator.vault_uri(),
        ));
        if let Some(proxy) = &self.proxy {
            session.run(&format!(
                "CREATE SERVER {ACCOUNT} FOREIGN DATA WRAPPER azure_storage OPTIONS (endpoint '{}/{ACCOUNT}')",
                proxy.endpoint(),
            ));
        }
    }

    pub fn session(&self) -> Session {
        self.cluster.session()
    }

    /// What stands between the server and Azurite.
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a world with storage")
    }

    pub fn azurite(&self) -> &Azurite {
        self.azurite.as_ref().expect("a world with storage")
    }

    /// The URL of a blob, `container/name`, by way of the proxy.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{ACCOUNT}/{path}", self.proxy().endpoint())
    }

    /// Sets something for the whole server and waits until a new session sees it.
    pub fn set(&self, name: &str, value: &str) {
        let mut session = self.session();
        // Where it is not preloaded, 15 knows its settings only in sessions that have loaded it.
        session.run("LOAD 'managed_identity'");
        session.run(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        session.run("SELECT pg_reload_conf()");
        crate::wait::until(&format!("{name} is {value}"), || {
            self.session().value(&format!("SELECT current_setting('{name}')")) == value
        });
    }

    /// How often the endpoint was asked for a token.
    pub fn asked(&self) -> usize {
        self.emulator.identity().log().count()
    }

    /// A role that may log in and nothing else.
    pub fn role(&self, name: &str) -> Session {
        self.session().run(&format!("CREATE ROLE {name} LOGIN"));
        self.cluster.session_as(name)
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}
