//! Control over http, for those who run the emulator stand-alone: a thin layer over the library's calls.

mod requests;

use std::sync::Arc;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::fault::Faults;
use crate::http::{Body, Handler, Server, Service, json_response};
use crate::log::{Log, Record};
use crate::{Emulator, Error, Proxy};
use requests::{
    AddFault, Assign, ChangeKey, Named, OneOrMore, Permission, Selection, SetNetwork, ShowDisabledKeys, TokenLife,
};

const LARGEST_REQUEST: usize = 16 << 20;

/// The running control endpoint.
pub struct Control {
    server: Server,
}

impl Control {
    /// Listens on loopback; port 0 is any free one.
    pub fn start(emulator: Arc<Emulator>, proxy: Option<Arc<Proxy>>, port: u16) -> Result<Self, Error> {
        // Its own requests are nobody's concern, and no fault may lock the operator out.
        let (log, faults) = (Log::new("control"), Faults::default());
        let service = Service::new(Commands { emulator, proxy }, &log, &faults);
        let server = Server::start(port, None, service)?;
        Ok(Self { server })
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}/control", self.server.address())
    }
}

struct Commands {
    emulator: Arc<Emulator>,
    proxy: Option<Arc<Proxy>>,
}

/// A command that cannot be carried out.
struct Refused(StatusCode, String);

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl Commands {
    async fn run(&self, request: Request<Incoming>) -> Result<Value, Refused> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default();
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        let asked = pairs.find(|(name, _)| name == "service");
        let asked = asked.map(|(_, value)| value.into_owned());
        match (method, path.as_str()) {
            (Method::GET, "/control/log") => {
                let logs = self.services(asked.as_deref())?.into_iter();
                let requests = logs.map(|(log, _)| (log.service().to_owned(), json!(log.requests())));
                Ok(Value::Object(requests.collect()))
            }
            (Method::GET, "/control/counters") => {
                let logs = self.services(asked.as_deref())?.into_iter();
                let counters = logs.map(|(log, _)| (log.service().to_owned(), json!(log.counters())));
                Ok(Value::Object(counters.collect()))
            }
            (Method::POST, command) => self.change(command, read(request).await?),
            _ => Err(unknown(&path)),
        }
    }

    fn change(&self, path: &str, body: Value) -> Result<Value, Refused> {
        let mut result = json!({});
        match path {
            "/control/faults" => {
                for add in parse::<OneOrMore<AddFault>>(body)?.into_vec() {
                    for (_, faults) in self.services(Some(&add.service))? {
                        faults.add(add.rule.clone());
                    }
                }
            }
            "/control/clear_faults" => {
                for (_, faults) in self.selected(body)? {
                    faults.clear();
                }
            }
            "/control/release" => {
                for (_, faults) in self.selected(body)? {
                    faults.release();
                }
            }
            "/control/clear_log" => {
                for (log, _) in self.selected(body)? {
                    log.clear();
                }
            }
            "/control/identities" => {
                let identity = self.emulator.identity();
                identity.assign(parse::<Assign>(body)?.identities())?;
                result = json!(identity.identities());
            }
            "/control/secrets" => {
                let secrets = parse::<OneOrMore<_>>(body)?.into_vec().into_iter();
                let versions = secrets.map(|secret| self.emulator.vault().put(secret));
                result = json!(versions.collect::<Result<Vec<_>, _>>()?);
            }
            "/control/keys" => {
                let keys = parse::<OneOrMore<_>>(body)?.into_vec().into_iter();
                let versions = keys.map(|key| self.emulator.vault().put_key(key));
                result = json!(versions.collect::<Result<Vec<_>, _>>()?);
            }
            "/control/change_key" => {
                let change: ChangeKey = parse(body)?;
                let vault = self.emulator.vault();
                vault.change_key(&change.name, change.version.as_deref(), |attributes| change.apply(attributes))?;
            }
            "/control/delete_key" => self.emulator.vault().delete_key(&parse::<Named>(body)?.name)?,
            "/control/recover_key" => self.emulator.vault().recover_key(&parse::<Named>(body)?.name)?,
            "/control/purge_key" => self.emulator.vault().purge_key(&parse::<Named>(body)?.name)?,
            "/control/deny" => {
                let Permission { identity, operations } = parse(body)?;
                operations.into_iter().for_each(|operation| self.emulator.vault().deny(&identity, operation));
            }
            "/control/allow_again" => {
                let Permission { identity, operations } = parse(body)?;
                operations.into_iter().for_each(|operation| self.emulator.vault().allow_again(&identity, operation));
            }
            "/control/network" => self.emulator.vault().set_network(parse::<SetNetwork>(body)?.network),
            "/control/show_disabled_keys" => {
                self.emulator.vault().set_shows_disabled_keys(parse::<ShowDisabledKeys>(body)?.show);
            }
            "/control/require_new_tokens" => self.emulator.require_new_tokens(),
            "/control/token_life" => {
                let TokenLife { seconds } = parse(body)?;
                self.emulator.identity().set_token_life(seconds);
            }
            _ => return Err(unknown(path)),
        }
        Ok(result)
    }

    fn selected(&self, body: Value) -> Result<Vec<(&Log, &Faults)>, Refused> {
        let Selection { service } = parse(body)?;
        self.services(service.as_deref())
    }

    /// The service of this name, or all.
    fn services(&self, name: Option<&str>) -> Result<Vec<(&Log, &Faults)>, Refused> {
        let (identity, vault) = (self.emulator.identity(), self.emulator.vault());
        let documents = self.emulator.documents();
        let mut services = vec![
            (identity.log(), identity.faults()),
            (vault.log(), vault.faults()),
            (documents.log(), documents.faults()),
        ];
        services.extend(self.proxy.iter().map(|proxy| (proxy.log(), proxy.faults())));
        if let Some(name) = name {
            services.retain(|(log, _)| log.service() == name);
            if services.is_empty() {
                let why = format!("no service {name:?}: identity, vault, issuer, proxy");
                return Err(Refused(StatusCode::BAD_REQUEST, why));
            }
        }
        Ok(services)
    }
}

impl Handler for Commands {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, _: Arc<Record>) -> Response<Body> {
        match self.run(request).await {
            Ok(result) => json_response(StatusCode::OK, &result),
            Err(Refused(status, why)) => json_response(status, &json!({"error": why})),
        }
    }
}

/// The body as JSON; none is the empty object.
async fn read(request: Request<Incoming>) -> Result<Value, Refused> {
    let refused = |why: String| Refused(StatusCode::BAD_REQUEST, why);
    let body = Limited::new(request.into_body(), LARGEST_REQUEST).collect();
    let body = body.await.map_err(|error| refused(error.to_string()))?;
    let body = body.to_bytes();
    if body.is_empty() {
        return Ok(json!({}));
    }
    serde_json::from_slice(&body).map_err(|error| refused(error.to_string()))
}

fn parse<T: DeserializeOwned>(body: Value) -> Result<T, Refused> {
    serde_json::from_value(body).map_err(|error| Refused(StatusCode::BAD_REQUEST, error.to_string()))
}

fn unknown(path: &str) -> Refused {
    Refused(StatusCode::NOT_FOUND, format!("no command {path}"))
}
