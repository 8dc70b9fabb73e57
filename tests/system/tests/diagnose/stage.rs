//! How each cause is provoked, and what is told of it then.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use emulator::{Fault, Faults, Identity, NeverAccepts, OidcIssuer, Pki, Refuses, Reply};
use serde_json::{Value, json};
use server_tests::{Options, Pod, SUBJECT, Session, World, is_root};

/// A row of `diagnose`.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub name: String,
    pub status: String,
    pub detail: String,
    pub hint: String,
}

pub fn diagnose(session: &mut Session, resource: &str, identity: &str) -> Vec<Step> {
    let sql = format!(
        "SELECT json_build_array(step, status, detail, coalesce(hint, ''))
         FROM managed_identity.diagnose('{resource}', '{identity}')"
    );
    let step = |row: String| {
        let [name, status, detail, hint]: [String; 4] = serde_json::from_str(&row).unwrap();
        Step { name, status, detail, hint }
    };
    session.rows(&sql).into_iter().map(step).collect()
}

/// What was told of one cause: the rows, and the HINT of the error that a token gets.
pub struct Told {
    pub steps: Vec<Step>,
    pub error: Option<String>,
}

fn told(world: &World, resource: &str, identity: &str) -> Told {
    let mut session = world.session();
    let steps = diagnose(&mut session, resource, identity);
    session.run("SELECT managed_identity.forget_tokens()");
    let token = session.try_rows(&format!("SELECT managed_identity.access_token('{resource}', '{identity}')"));
    let error = token.err().map(|error| error.hint().unwrap_or_default().to_owned());
    session.run("SELECT managed_identity.forget_tokens()");
    Told { steps, error }
}

fn with_fault(faults: &Faults, fault: impl Into<Fault>, tell: impl FnOnce() -> Told) -> Told {
    faults.always(fault);
    let told = tell();
    faults.clear();
    faults.release();
    told
}

fn with_setting(world: &World, name: &str, value: &str, tell: impl FnOnce() -> Told) -> Told {
    let before = world.session().value(&format!("SHOW {name}"));
    world.set(name, value);
    let told = tell();
    world.set(name, &before);
    told
}

fn with_server(world: &World, options: &str, tell: impl FnOnce() -> Told) -> Told {
    let create = format!("CREATE SERVER chosen FOREIGN DATA WRAPPER managed_identity OPTIONS ({options})");
    world.session().run(&create);
    let told = tell();
    world.session().run("DROP SERVER chosen");
    told
}

/// A refusal that asks to be left alone for longer than a token is waited for, so that nobody tries again.
fn refusal(status: u16) -> Reply {
    let body = r#"{"error": "some_error", "error_description": "canary"}"#;
    Reply::new(status).header("Retry-After", "30").body(body)
}

fn page(status: u16) -> Reply {
    Reply::new(status).header("Retry-After", "30").body("<html>canary</html>")
}

/// Where causes are provoked: a virtual machine, a pod without workload identity, one with it, one without
/// certificates, and a server that does not preload the library.
pub struct Stage {
    pub vm: World,
    pub aks: World,
    pub pod: Pod,
    pub bare: Pod,
    pub late: World,
}

impl Stage {
    pub fn new() -> Self {
        let in_cluster = Options::default().environment("KUBERNETES_SERVICE_HOST", "10.0.0.1");
        let hidden = match is_root() {
            true => Options { no_certificates: true, ..Options::default() },
            false => Options::default()
                .environment("SSL_CERT_FILE", "/nonexistent/roots.pem")
                .environment("SSL_CERT_DIR", "/nonexistent"),
        };
        let bare = Pod::with(hidden);
        bare.world.set("managed_identity.tls_ca_file", "");
        Self {
            vm: World::with(Options::default(), vec![Identity::system()]),
            aks: World::with(in_cluster.clone(), vec![Identity::user("node")]),
            pod: Pod::with(in_cluster.environment("RES_OPTIONS", "timeout:1 attempts:1")),
            bare,
            late: World::with(Options { not_preloaded: true, ..Options::default() }, vec![Identity::system()]),
        }
    }

    pub fn provoke(&self, how: &str) -> Told {
        let (place, how) = how.split_once(": ").expect("a place");
        match place {
            "vm" => self.on_the_vm(how),
            "aks" => self.on_aks(how),
            "pod" => self.in_the_pod(how),
            "late" => told(&self.late, "storage", "machine"),
            _ => told(&self.bare.world, "storage", "machine"),
        }
    }

    fn on_the_vm(&self, how: &str) -> Told {
        let vm = &self.vm;
        let (identity, issuer) = (vm.emulator.identity(), vm.emulator.issuer());
        let tell = || told(vm, "storage", "machine");
        let assigned = |identities: Vec<Identity>, options: Option<&str>| {
            identity.assign(identities).unwrap();
            let told = match options {
                Some(options) => with_server(vm, options, || told(vm, "storage", "chosen")),
                None => tell(),
            };
            identity.assign(vec![Identity::system()]).unwrap();
            told
        };
        let system = || vec![Identity::system()];
        let other = Identity::user("other").client_id;
        let of_other = format!("client_id '{other}'");
        match how {
            "nothing listens" => nothing_listens(vm, tell),
            "no connection" => no_connection(vm, tell),
            "hangs" => with_fault(identity.faults(), Fault::HangBeforeHeaders, || {
                with_setting(vm, "managed_identity.acquire_timeout", "300ms", tell)
            }),
            "401" => with_fault(identity.faults(), refusal(401), tell),
            "403" => with_fault(identity.faults(), refusal(403), tell),
            "410" => with_fault(identity.faults(), refusal(410), tell),
            "429" => with_fault(identity.faults(), refusal(429), tell),
            "503" => with_fault(identity.faults(), refusal(503), tell),
            "another service" => with_fault(identity.faults(), Reply::new(200).body(r#"{"x": "canary"}"#), tell),
            "HTML" => with_fault(identity.faults(), page(200), tell),
            "Via" => with_fault(identity.faults(), refusal(503).header("Via", "1.1 proxy").body("canary"), tell),
            "none assigned" => assigned(Vec::new(), None),
            "another chosen" => assigned(system(), Some(&of_other)),
            "several assigned" => assigned(vec![Identity::user("a"), Identity::user("b")], None),
            "another answers" => {
                let body = r#"{"access_token": "canary", "expires_in": "60", "client_id": "some-other"}"#;
                with_fault(identity.faults(), Reply::new(200).body(body), || assigned(system(), Some(&of_other)))
            }
            "system-assigned asked" => assigned(vec![Identity::user("a")], Some("kind 'system-assigned'")),
            "workload identity asked" => assigned(system(), Some("kind 'workload-identity'")),
            "unknown resource" => {
                issuer.set_resources(Some(&["https://vault.azure.net"]));
                let told = tell();
                issuer.set_resources(None);
                told
            }
            // Seen from here a clock that is ahead is a service that lags behind.
            "clock ahead" => {
                issuer.set_clock_ahead(-200_000);
                let told = tell();
                issuer.set_clock_ahead(0);
                told
            }
            "clock behind" => {
                issuer.set_clock_ahead(600);
                let told = tell();
                issuer.set_clock_ahead(0);
                told
            }
            _ => panic!("how is \"{how}\" provoked?"),
        }
    }

    fn on_aks(&self, how: &str) -> Told {
        let tell = || told(&self.aks, "storage", "machine");
        match how {
            "node" => tell(),
            "nothing listens" => nothing_listens(&self.aks, tell),
            "no connection" => no_connection(&self.aks, tell),
            // A prefix that is there for packets to be discarded (RFC 6666).
            "no route" => by_way_of(&self.aks, "[100::1]", tell),
            _ => panic!("how is \"{how}\" provoked?"),
        }
    }

    fn in_the_pod(&self, how: &str) -> Told {
        let (pod, world, issuer) = (&self.pod, &self.pod.world, self.pod.world.emulator.issuer());
        let tell = || told(world, "storage", "machine");
        let chosen = |options: &str| with_server(world, options, || told(world, "storage", "chosen"));
        let shown = |token: &str| {
            pod.write(token);
            let told = tell();
            pod.write(&pod.issuer.token(SUBJECT).unwrap());
            told
        };
        let claiming = |claim: &str, value: Value| {
            let mut claims = pod.issuer.claims(SUBJECT);
            claims[claim] = value;
            shown(&pod.issuer.sign(&claims).unwrap())
        };
        match how {
            "no file" => {
                fs::remove_file(pod.token_file()).unwrap();
                let told = tell();
                pod.write(&pod.issuer.token(SUBJECT).unwrap());
                told
            }
            "no permission" => {
                fs::set_permissions(pod.token_file(), Permissions::from_mode(0o000)).unwrap();
                let told = tell();
                pod.write(&pod.issuer.token(SUBJECT).unwrap());
                told
            }
            "stale" => claiming("exp", json!(1)),
            "no token" => shown("canary of some file"),
            "subject" => claiming("sub", json!("system:serviceaccount:default:other")),
            "audience" => claiming("aud", json!("https://storage.azure.com")),
            "issuer" => shown(&OidcIssuer::new("https://oidc.test/another/").unwrap().token(SUBJECT).unwrap()),
            "70021" => {
                let body = json!({"error": "invalid_request", "error_codes": [70_021], "error_description": "canary"});
                with_fault(pod.entra.faults(), Reply::new(400).body(body.to_string()), tell)
            }
            "tenant" => chosen("tenant_id '9d2a77c0-55f1-4a0e-8a3e-1b7d5c3f0a11'"),
            "client" => chosen(&format!("client_id '{}'", Identity::user("nobody").client_id)),
            "another service" => chosen(&format!("authority '{}'", world.emulator.vault_uri())),
            // However slow it is to learn that there is none.
            "no such name" => with_setting(world, "managed_identity.connect_timeout", "14s", || {
                chosen("authority 'https://login.invalid'")
            }),
            "nothing listens" => {
                let nobody = Refuses::start().unwrap();
                chosen(&format!("authority 'https://{}'", nobody.address()))
            }
            "Via" => with_fault(pod.entra.faults(), page(503).header("Via", "1.1 proxy"), tell),
            "another CA" => {
                let other = world.cluster.file("other-ca.pem", Pki::create().unwrap().ca_pem());
                with_setting(world, "managed_identity.tls_ca_file", &other, tell)
            }
            "unknown resource" => {
                issuer.set_resources(Some(&["https://vault.azure.net"]));
                let told = tell();
                issuer.set_resources(None);
                told
            }
            // The pod's token is as old as the cluster's clock says, which is the authority's.
            "clock ahead" => {
                issuer.set_clock_ahead(-200_000);
                let mut claims = pod.issuer.claims(SUBJECT);
                for claim in ["exp", "iat", "nbf"] {
                    claims[claim] = (claims[claim].as_i64().unwrap() - 200_000).into();
                }
                let told = shown(&pod.issuer.sign(&claims).unwrap());
                issuer.set_clock_ahead(0);
                told
            }
            _ => panic!("how is \"{how}\" provoked?"),
        }
    }
}

fn nothing_listens(world: &World, tell: impl FnOnce() -> Told) -> Told {
    let nobody = Refuses::start().unwrap();
    with_setting(world, "managed_identity.imds_endpoint", &format!("http://{}", nobody.address()), tell)
}

fn no_connection(world: &World, tell: impl FnOnce() -> Told) -> Told {
    let silent = NeverAccepts::start().unwrap();
    by_way_of(world, &silent.address().to_string(), tell)
}

fn by_way_of(world: &World, address: &str, tell: impl FnOnce() -> Told) -> Told {
    with_setting(world, "managed_identity.connect_timeout", "200ms", || {
        with_setting(world, "managed_identity.imds_endpoint", &format!("http://{address}"), tell)
    })
}
