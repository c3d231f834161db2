//! An account and a response, for tests.

use tokio::time::Instant;

use crate::{
    demand::{Account, Keys},
    http::{HeaderName, Response, StatusCode},
};

pub(super) fn account() -> Account {
    let keys = Keys::Pair { api: "the-api-key".into(), app: "the-app-key".into() };
    Account::new("https://api.datadoghq.eu".parse().unwrap(), keys)
}

pub(super) fn response(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Response {
    let headers = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
        .collect();
    let status = StatusCode::from_u16(status).unwrap();
    Response { status, headers, answered_at: Instant::now(), body: body.to_vec() }
}
