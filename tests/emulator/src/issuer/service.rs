//! Serves what a verifier needs to know of the issuer: the JWKS document and where it is.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde_json::json;

use crate::Error;
use crate::fault::Faults;
use crate::http::{Body, Handler, Server, Service, json_response};
use crate::issuer::Issuer;
use crate::log::{Log, Record};

const KEYS: &str = "/discovery/keys";
const CONFIGURATION: &str = "/.well-known/openid-configuration";

/// The issuer's documents over http on loopback.
pub struct IssuerService {
    server: Server,
    log: Log,
    faults: Faults,
}

impl IssuerService {
    pub fn start(issuer: Issuer, port: u16) -> Result<Self, Error> {
        let (log, faults) = (Log::new("issuer"), Faults::default());
        let service = Service::new(Documents { issuer }, &log, &faults);
        let server = Server::start(port, None, service)?;
        Ok(Self { server, log, faults })
    }

    pub fn jwks_uri(&self) -> String {
        format!("http://{}{KEYS}", self.server.address())
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

struct Documents {
    issuer: Issuer,
}

impl Handler for Documents {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, record: Arc<Record>) -> Response<Body> {
        let address: SocketAddr = record.local();
        match request.uri().path() {
            KEYS => json_response(StatusCode::OK, &self.issuer.jwks()),
            CONFIGURATION => json_response(
                StatusCode::OK,
                &json!({
                    "issuer": self.issuer.issuer(),
                    "jwks_uri": format!("http://{address}{KEYS}"),
                    "id_token_signing_alg_values_supported": ["RS256"],
                }),
            ),
            _ => json_response(StatusCode::NOT_FOUND, &json!({"error": "not_found"})),
        }
    }
}
