//! The places where a session can hang, made by endpoints that hold on.

use std::fs;
use std::net::TcpStream;
use std::time::Duration;

use emulator::{Fault, Filter, Identity, NeverAccepts, Rule, TlsNeverAnswers};
use server_tests::{ACCOUNT, Options, Session, World, wait};

use crate::hang::{End, Hang, Running, lives};
use crate::resolver::Resolver;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Resolving,
    Connecting,
    Handshake,
    Headers,
    Body,
    /// For the fetch of another session.
    Waiting,
    CopyFromHandshake,
    CopyFromHeaders,
    /// With rows flowing before.
    CopyFromBody,
    CopyToOnePut,
    CopyToBlock,
}

pub const TOKEN_PLACES: [Place; 6] =
    [Place::Headers, Place::Body, Place::Waiting, Place::Handshake, Place::Connecting, Place::Resolving];
pub const COPY_PLACES: [Place; 5] =
    [Place::CopyFromHandshake, Place::CopyFromHeaders, Place::CopyFromBody, Place::CopyToOnePut, Place::CopyToBlock];

/// A server whose own patience never ends a wait, and endpoints that hold on.
pub struct Stage {
    pub world: World,
    connecting: NeverAccepts,
    silent: TlsNeverAnswers,
    resolver: Resolver,
}

impl Stage {
    pub fn new() -> Self {
        Self::build(|options| World::with(options, vec![Identity::system(), Identity::user("keys")]))
    }

    /// With a table `t`, and blobs in container `box`.
    pub fn with_storage() -> Self {
        let stage = Self::build(World::with_storage_and);
        let azurite = stage.world.azurite();
        azurite.put("box/body.csv", format!("{}\n", "x".repeat(99)).repeat(20 * 10_486));
        for name in ["headers", "blocks"] {
            azurite.put(&format!("box/{name}.csv"), "old\n");
        }
        stage.world.session().run(&format!(
            "CREATE TABLE t (a text); CREATE SERVER silent FOREIGN DATA WRAPPER azure_storage
                 OPTIONS (account '{ACCOUNT}', endpoint '{}/{ACCOUNT}')",
            stage.silent.endpoint()
        ));
        stage
    }

    fn build(world: impl FnOnce(Options) -> World) -> Self {
        let resolver = Resolver::new();
        let mut options = resolver.preloaded(Options::default());
        for name in ["acquire_timeout", "connect_timeout", "request_timeout"] {
            options = options.conf(format!("managed_identity.{name} = '10min'"));
        }
        let connecting = NeverAccepts::start().unwrap();
        let silent = TlsNeverAnswers::start().unwrap();
        Self { world: world(options), connecting, silent, resolver }
    }

    /// Where tokens come from in this place; elsewhere it is the emulator, by its address.
    fn endpoint(&self, place: Place) -> String {
        let emulator = self.world.emulator.imds_endpoint();
        match place {
            Place::Resolving => emulator.replace("127.0.0.1", "slow.hang.test"),
            Place::Connecting => format!("http://{}", self.connecting.address()),
            Place::Handshake => self.silent.endpoint(),
            _ => emulator,
        }
    }

    pub fn point(&self, place: Place) {
        self.world.set("managed_identity.imds_endpoint", &self.endpoint(place));
    }

    fn prepare(&self, place: Place, name: &str) {
        self.point(place);
        let identity = |fault| {
            self.world.emulator.identity().faults().add(Rule::new(fault).when(Filter::query(name)));
        };
        let storage = |fault, filter| self.world.proxy().faults().add(Rule::new(fault).when(filter));
        match place {
            Place::Resolving => self.resolver.hold(),
            Place::Headers => identity(Fault::HangBeforeHeaders),
            Place::Body => identity(Fault::HangInBody { after: 5 }),
            Place::CopyFromHeaders => storage(Fault::HangBeforeHeaders, Filter::path("/headers.csv")),
            // Not the first range, which is not pinned.
            Place::CopyFromBody => {
                let pinned = Filter::path("/body.csv").and_header("if-match", "");
                storage(Fault::HangInBody { after: 1000 }, pinned);
            }
            Place::CopyToOnePut => storage(Fault::HangBeforeHeaders, Filter::path("/one-").and_method("PUT")),
            Place::CopyToBlock => {
                storage(Fault::HangBeforeHeaders, Filter::path("/blocks.csv").and_query("comp=block"))
            }
            Place::Connecting | Place::Handshake | Place::Waiting | Place::CopyFromHandshake => {}
        }
    }

    fn statement(&self, place: Place, name: &str) -> String {
        match place {
            Place::CopyFromHandshake => format!("COPY t FROM '{}/{ACCOUNT}/box/a.csv'", self.silent.endpoint()),
            Place::CopyFromHeaders => format!("COPY t FROM '{}'", self.world.url("box/headers.csv")),
            Place::CopyFromBody => format!("COPY t FROM '{}'", self.world.url("box/body.csv")),
            Place::CopyToOnePut => format!("COPY (SELECT 'new') TO '{}'", self.world.url(&one_put(name))),
            Place::CopyToBlock => format!(
                "COPY (SELECT repeat('x', 999) FROM generate_series(1, 30000)) TO '{}'",
                self.world.url("box/blocks.csv")
            ),
            _ => call(name),
        }
    }

    /// How many have come to this place, seen where it can be seen at once.
    fn arrived(&self, place: Place) -> usize {
        match place {
            Place::Connecting => self.attempts(),
            Place::Waiting => {
                let waiting = "SELECT coalesce(sum(waiting), 0) FROM managed_identity.cached_tokens";
                self.world.session().value(waiting).parse().unwrap()
            }
            _ => self.held(place),
        }
    }

    /// What the endpoint holds on to, whether or not a client is still there.
    pub fn held(&self, place: Place) -> usize {
        match place {
            Place::Resolving => self.resolver.held(),
            Place::Connecting => {
                let again = TcpStream::connect_timeout(&self.connecting.address(), Duration::from_millis(100));
                usize::from(again.is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut))
            }
            Place::Handshake | Place::CopyFromHandshake => self.silent.log().held(),
            Place::Headers | Place::Body | Place::Waiting => self.world.emulator.identity().log().held(),
            _ => self.world.proxy().log().held(),
        }
    }

    /// Connections to the full listener that have been asked for and not granted.
    pub fn attempts(&self) -> usize {
        let asked = format!("0100007F:{:04X} 02 ", self.connecting.address().port());
        fs::read_to_string("/proc/net/tcp").unwrap().lines().filter(|line| line.contains(&asked)).count()
    }

    /// Whether the session in this place has what it is to have before.
    fn is_deep_in(&self, place: Place, pid: i32) -> bool {
        let rows = format!("SELECT 1 FROM pg_stat_progress_copy WHERE pid = {pid} AND tuples_processed > 0");
        place != Place::CopyFromBody || !self.world.session().rows(&rows).is_empty()
    }

    /// Leads a new session to a place; `name` is the resource it asks a token for.
    pub fn hang(&self, place: Place, name: &str) -> Hang {
        self.hang_until(place, name, None)
    }

    /// The same, to be ended like this: a timeout must be set before.
    pub fn hang_until(&self, place: Place, name: &str, end: Option<End>) -> Hang {
        let leader = (place == Place::Waiting).then(|| Box::new(self.hang(Place::Headers, name)));
        self.prepare(place, name);
        let mut session = self.world.session();
        session.run("SET azure_storage.blob_block_size_mb = 1");
        let mut milliseconds = 1000;
        loop {
            if end == Some(End::StatementTimeout) {
                session.run(&format!("SET statement_timeout = {milliseconds}"));
            }
            let before = self.arrived(place);
            let running = Running::start(session, &self.statement(place, name));
            let mut reached = false;
            wait::until(&format!("{place:?} hangs"), || {
                reached |= self.arrived(place) > before && self.is_deep_in(place, running.pid);
                reached || running.is_over()
            });
            if reached {
                return Hang { place, running, leader };
            }
            // On a busy machine it did not come so far.
            let (_, said, back) = running.end();
            assert_eq!(end, Some(End::StatementTimeout), "{place:?} does not hang: {said:?}");
            session = back;
            milliseconds *= 2;
        }
    }

    /// Ends a hanging statement; gives back its session, if that lives, and its leader, while the endpoint
    /// still holds on.
    pub fn interrupt(&self, hang: Hang, end: End) -> (Option<Session>, Option<Hang>) {
        let Hang { place, running, leader } = hang;
        let (pid, held) = (running.pid, self.held(place));
        assert_ne!(held, 0, "{place:?} {end:?}");
        match end {
            End::Cancel => self.world.session().run(&format!("SELECT pg_cancel_backend({pid})")),
            End::Terminate => self.world.session().run(&format!("SELECT pg_terminate_backend({pid})")),
            End::StatementTimeout => {}
        }
        let (succeeded, said, mut session) = running.end();
        assert!(!succeeded, "{place:?} {end:?}");
        match said {
            Some((sqlstate, message)) => {
                assert_eq!(sqlstate, end.says().0, "{place:?} {end:?}: {message}");
                assert!(message.contains(end.says().1), "{place:?} {end:?}: {message}");
            }
            // A client may notice the end of the connection before the server's last word.
            None => assert_eq!(end, End::Terminate, "{place:?}"),
        }
        let session = if end == End::Terminate {
            wait::until("the backend is gone", || !lives(pid));
            let word = format!("[{pid}] FATAL:  terminating connection due to administrator command");
            assert!(self.world.cluster.log().contains(&word), "{place:?}");
            None
        } else {
            session.run("RESET statement_timeout");
            assert_eq!(session.value("SELECT 6 * 7"), "42");
            Some(session)
        };
        // More of a download's requests may have come meanwhile.
        assert!(self.held(place) >= held, "{place:?} {end:?}: the endpoint still holds its connection");
        (session, leader.map(|leader| *leader))
    }

    /// The endpoints let go all that they hold, and hold on to nothing that comes.
    pub fn release(&self) {
        self.resolver.release();
        self.resolver.hold();
        self.silent.release();
        self.world.emulator.identity().faults().clear();
        self.world.emulator.identity().faults().release();
        self.world.emulator.identity().log().wait_until("none held", wait::LONG, |state| state.held() == 0).unwrap();
    }

    /// The same for the storage service.
    pub fn release_storage(&self) {
        self.world.proxy().faults().clear();
        self.world.proxy().faults().release();
        self.world.proxy().log().wait_until("none held", wait::LONG, |state| state.held() == 0).unwrap();
    }

    /// Looks names up without delay from now on, until something is to hang there.
    pub fn let_names_be_found(&self) {
        self.resolver.release();
    }

    /// Says that no slot of the cache is owned or waited for.
    pub fn assert_no_slot_is_owned(&self) {
        let owned = "SELECT resource, state, waiting FROM managed_identity.cached_tokens
                     WHERE state = 'fetching' OR waiting <> 0";
        assert_eq!(self.world.session().rows(owned), [""; 0]);
    }

    /// Says that no process has crashed.
    pub fn assert_no_crash(&self) {
        let log = self.world.cluster.log();
        let bad = ["terminated by signal", "was terminated", "not properly shut down", "PANIC", "recovery in progress"];
        for line in log.lines() {
            assert!(!bad.iter().any(|bad| line.contains(bad)), "{line}");
        }
    }
}

/// The blob that is written in one request, which may yet be served when the service lets go.
pub fn one_put(name: &str) -> String {
    format!("box/one-{name}.csv")
}

/// A token for a resource of this name.
pub fn call(name: &str) -> String {
    format!("SELECT managed_identity.access_token('https://{name}.example.com')")
}
