//! Whether a scaler is there, lets us in, and serves: its gRPC health service.

use std::{error::Error as _, io::Write};

use serde::Serialize;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    Output, text,
    through::{PATIENCE, Pool, Security, in_words},
};
use crate::{scaler::code_name, words::json};

/// In JSON, `error` says why it is not fine.
#[derive(Debug, Serialize)]
pub(super) struct Presence {
    pub(super) fine: bool,
    /// Host and port.
    pub(super) scaler: String,
    pub(super) took_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// Tells on `out`, and says whether it serves.
pub(super) async fn tell(
    pool: &mut Pool,
    output: Output,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let started_at = Instant::now();
    let error = look(pool).await.err();
    let presence = Presence {
        fine: error.is_none(),
        scaler: pool.address().to_owned(),
        took_ms: started_at.elapsed().as_secs_f64() * 1_000.0,
        error,
    };
    match output {
        Output::Text { width } => write!(out, "{}", text::presence::summary(&presence, width))?,
        Output::Json => out.write_all(&json::document(&presence)?)?,
    }
    out.flush()?;
    Ok(presence.fine)
}

/// Else why it is as good as away.
async fn look(pool: &mut Pool) -> Result<(), String> {
    let connected = pool.channel(Security::default()).await;
    let (channel, reached) = connected.map_err(|error| error.to_string())?;
    reached.map_err(|error| error.to_string())?;
    let mut client = HealthClient::new(channel);
    let asked = client.check(HealthCheckRequest::default());
    let answered = timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
        Err(Status::deadline_exceeded(format!("no answer within {PATIENCE:?}")))
    });
    match answered {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
        Ok(_) => Err("it does not serve: it is starting, or about to end".to_owned()),
        Err(status) => Err(failure(&status, pool.uses_tls(Security::default()))),
    }
}

fn failure(status: &Status, uses_tls: bool) -> String {
    if status.code() == Code::Unimplemented {
        return "it has no gRPC health service; is it another scaler?".to_owned();
    }
    let failed = format!("{}: {}", code_name(status.code()), in_words(status));
    // Nobody said it: the connection broke off.
    match status.source() {
        Some(_) if !uses_tls => format!("{failed}; if it speaks TLS, give `--ca-cert`"),
        _ => failed,
    }
}
