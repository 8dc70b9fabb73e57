//! One blob behind object_store's Azure client, with our transport and our failures.

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::azure::{AzureCredential, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::path::Path;
use object_store::{BackoffConfig, RetryConfig, StaticCredentialProvider};

use super::credential::Bearer;
use super::refusal::{Operation, Refusal};
use super::service::{Connector, NoSuchRange, Service};
use super::url::Blob;
use crate::http::client::{self, Purpose};
use crate::http::destination::Destination;
use crate::http::failure::{Failure, Kind};
use crate::http::traffic::Traffic;

/// Which blob is to be moved, and how it is reached.
#[derive(Debug, Clone)]
pub struct Target {
    pub destination: Destination,
    pub blob: Blob,
    pub http: client::Options,
    pub traffic: Arc<Traffic>,
}

/// The blob as object_store sees it. Lives on the helper's runtime, as its client does.
#[derive(Debug)]
pub struct Store {
    pub azure: MicrosoftAzure,
    pub path: Path,
    operation: Operation,
    last: Arc<Mutex<Option<Refusal>>>,
}

impl Store {
    pub fn open(target: &Target, bearer: Bearer, operation: Operation) -> Result<Self, Failure> {
        let mut http = target.http.clone();
        let patience = http.request_timeout;
        if operation == Operation::Write {
            // The service watches a request's progress; the client's limit would count from its start.
            http.request_timeout = Duration::from_secs(24 * 60 * 60);
        }
        let last = Arc::new(Mutex::new(None));
        let service = Service {
            client: client::build(&http, Purpose::Transfer, target.destination.base().scheme() == "http")?,
            destination: target.destination.clone(),
            bearer,
            patience,
            last: last.clone(),
            traffic: target.traffic.clone(),
        };
        let azure = MicrosoftAzureBuilder::new()
            // Only a shared key's signature needs the account; the endpoint says it all.
            .with_account("account")
            .with_container_name(&target.blob.container)
            .with_endpoint(target.destination.base().as_str().trim_end_matches('/').into())
            // Without a provider the builder makes one that asks the metadata service by itself.
            .with_credentials(Arc::new(StaticCredentialProvider::new(AzureCredential::BearerToken(String::new()))))
            .with_skip_signature(true)
            .with_retry(retry())
            .with_http_connector(Connector(service))
            .build()
            .map_err(|_| Failure::new(Kind::Local, "could not set up the storage client"))?;
        let path = Path::parse(&target.blob.name)
            .map_err(|_| Failure::new(Kind::InvalidValue, "the blob's name cannot be used"))?;
        if path.as_ref() != target.blob.name {
            return Err(Failure::new(Kind::InvalidValue, "the blob's name cannot be used")
                .detail("The storage client would ask for another name than the one that was checked."));
        }
        Ok(Self { azure, path, operation, last })
    }

    /// What an error of object_store means. Its own text is not used: it quotes the service.
    pub fn failure(&self, error: &object_store::Error) -> Failure {
        let mut at: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(error) = at {
            if let Some(failure) = error.downcast_ref::<Failure>() {
                return failure.clone();
            }
            if let Some(refusal) = error.downcast_ref::<Refusal>() {
                return refusal.failure(self.operation);
            }
            at = error.source();
        }
        // The tries are used up on answers that passed through, or an answer made no sense.
        match &*self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Some(refusal) => refusal.failure(self.operation),
            None => Failure::new(Kind::Protocol, "the storage service's answer is not what its protocol says"),
        }
    }
}

/// Whether the service said that the blob has no such range.
pub fn is_no_such_range(error: &object_store::Error) -> bool {
    let mut at: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = at {
        if error.is::<NoSuchRange>() {
            return true;
        }
        at = error.source();
    }
    false
}

/// For one request, or one range as long as nothing of it arrives: about 5 s of pauses, which outlast a
/// connection that was cut and a service that moves. A statement can be cancelled at any moment.
fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            base: 3.0,
        },
        max_retries: 7,
        retry_timeout: Duration::from_secs(180),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::credential;
    use crate::token::AccessToken;
    use object_store::ObjectStoreExt;
    use std::io::{Read, Write};

    /// A server that gives these answers, the last one again and again, and tells the requests.
    fn server(answers: &'static [&'static str]) -> (Target, std::sync::mpsc::Receiver<String>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (seen, requests) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let last = answers.last().into_iter().cycle();
            for (stream, answer) in listener.incoming().zip(answers.iter().chain(last)) {
                let Ok(mut stream) = stream else { return };
                let mut request = [0; 4096];
                let read = stream.read(&mut request).unwrap_or(0);
                let _ = seen.send(String::from_utf8_lossy(&request[..read]).into_owned());
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        let target = Target {
            destination: Destination::parse(&format!("http://127.0.0.1:{port}/acct"), "endpoint")
                .expect("a destination"),
            blob: Blob { container: "inbox".into(), name: "ä b/50%25#1?.csv".into() },
            http: client::Options {
                connect_timeout: Duration::from_secs(1),
                request_timeout: Duration::from_secs(1),
                ca_file: None,
            },
            traffic: Arc::default(),
        };
        (target, requests)
    }

    fn ask(target: &Target, operation: Operation) -> Failure {
        let (_renewer, bearer) = credential::cell(AccessToken::for_test("canary"));
        let store = Store::open(target, bearer, operation).expect("a store");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let error = runtime.block_on(store.azure.get(&store.path)).expect_err("refused");
        store.failure(&error)
    }

    #[test]
    fn the_name_is_encoded_once_and_version_and_bearer_are_sent() {
        let (target, requests) = server(&[
            "HTTP/1.1 404 Not Found\r\nx-ms-error-code: ContainerNotFound\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        ]);
        let failure = ask(&target, Operation::Read);
        assert_eq!(failure.kind, Kind::NotFound);
        assert_eq!(failure.message, "azure_storage: container with the given name does not exist");
        let request = requests.recv().expect("a request");
        assert!(request.starts_with("GET /acct/inbox/%C3%A4%20b/50%2525%231%3F.csv HTTP/1.1"), "{request}");
        assert!(request.to_ascii_lowercase().contains("\r\nx-ms-version: 20"), "{request}");
        assert!(request.to_ascii_lowercase().contains("\r\nauthorization: bearer canary"), "{request}");
    }

    #[test]
    fn a_refusal_keeps_its_code_and_loses_its_text() {
        let (target, requests) =
            server(&["HTTP/1.1 403 Forbidden\r\nx-ms-error-code: AuthorizationFailure\r\nx-ms-request-id: 12-ab\r\n\
             content-length: 6\r\nconnection: close\r\n\r\ncanary"]);
        let failure = ask(&target, Operation::Read);
        assert_eq!(failure.kind, Kind::NotAuthorized);
        assert!(!format!("{failure:?}").contains("canary"), "{failure:?}");
        assert!(failure.detail.is_some_and(|detail| detail.contains("AuthorizationFailure, request id 12-ab")));
        assert_eq!(requests.try_iter().count(), 1, "the token lives, so another try would be refused, too");
    }

    #[test]
    fn a_refusal_of_a_token_at_its_end_is_repeated_once_with_a_new_one() {
        const REFUSED: &str = "HTTP/1.1 401 Unauthorized\r\nx-ms-error-code: InvalidAuthenticationInfo\r\n\
                               content-length: 0\r\nconnection: close\r\n\r\n";
        const FOUND: &str = "HTTP/1.1 200 OK\r\netag: \"1\"\r\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                             content-length: 2\r\nconnection: close\r\n\r\nok";
        for (answers, tries) in [(&[REFUSED, FOUND][..], 2), (&[REFUSED], 2)] {
            let (target, requests) = server(answers);
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_secs() as i64;
            let ends = |secret: &str| AccessToken::new(String::from(secret).into(), now + 5, now).expect("a token");
            let (renewer, bearer) = credential::cell(ends("old"));
            let store = Store::open(&target, bearer, Operation::Read).expect("a store");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let backend = async {
                loop {
                    renewer.wanted().await;
                    renewer.renew(ends("new"));
                }
            };
            let got = runtime.block_on(async {
                tokio::select! {
                    got = store.azure.get(&store.path) => got,
                    () = backend => unreachable!(),
                }
            });
            let requests: Vec<String> = requests.try_iter().collect();
            assert_eq!(requests.len(), tries);
            let counts = target.traffic.take();
            assert_eq!((counts.requests, counts.retries), (tries as u64, 1));
            assert!(requests[0].contains("Bearer old") && requests[1].contains("Bearer new"), "{requests:?}");
            match got {
                Ok(found) => assert_eq!((answers.len(), found.meta.size), (2, 2)),
                Err(error) => assert_eq!((answers.len(), store.failure(&error).kind), (1, Kind::NotAuthorized)),
            }
        }
    }

    #[test]
    fn a_state_that_passes_is_waited_out_and_one_that_stays_is_told_with_its_code() {
        const BUSY: &str =
            "HTTP/1.1 503 Busy\r\nx-ms-error-code: ServerBusy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        const MISSING: &str =
            "HTTP/1.1 404 Gone\r\nx-ms-error-code: BlobNotFound\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let (target, _requests) = server(&[BUSY, BUSY, MISSING]);
        assert_eq!(ask(&target, Operation::Read).kind, Kind::NotFound);
        let counts = target.traffic.take();
        assert_eq!((counts.requests, counts.retries, counts.throttled), (3, 2, 2));
        let (target, requests) = server(&[BUSY]);
        let failure = ask(&target, Operation::Read);
        assert_eq!(failure.kind, Kind::Unavailable);
        assert!(failure.detail.is_some_and(|detail| detail.contains("503, error code ServerBusy")));
        assert_eq!(requests.try_iter().count(), 8);
    }
}
