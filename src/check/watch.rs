//! Follows triggers through a running scaler: KEDA's poll, and StreamIsActive beside it.

use std::{
    io::{self, Write},
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{
    Output,
    manifest::Manifest,
    report::{Examined, Outcome},
    text,
    through::Keda,
};
use crate::{
    proto::IsActiveResponse, scaler::code_name, source::datadog::wall_clock, words::shorten,
};

/// KEDA's default of `pollingInterval`, in seconds.
const POLLING_INTERVAL: u64 = 30;
/// KEDA opens a stream that ended again after this, and after twice as long each time it failed
/// (`runStreamIsActive`, `pkg/scalers/external_scaler.go`).
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Most events that wait to be written.
const QUEUE: usize = 64;
const MAX_SHOWN: usize = 1_000;

/// How to follow.
#[derive(Clone, Copy, Debug)]
pub struct Follow {
    /// In place of each object's `pollingInterval`.
    pub interval: Option<Duration>,
}

/// A trigger to follow.
pub(super) struct Watched {
    label: String,
    keda: Keda,
    polling_interval: Duration,
    /// Whether the last poll had an answer.
    is_answered: bool,
}

/// One thing that KEDA sees.
#[derive(Debug, Serialize)]
pub(super) struct Event {
    /// RFC 3339.
    pub(super) at: Timestamp,
    /// Which trigger.
    pub(super) trigger: String,
    #[serde(flatten)]
    pub(super) seen: Happening,
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(super) enum Happening {
    Poll {
        #[serde(flatten)]
        outcome: Outcome,
        took_ms: f64,
    },
    Push {
        active: bool,
    },
    /// The stream ended, with this code.
    Ended {
        code: &'static str,
        #[serde(skip_serializing_if = "String::is_empty")]
        message: String,
    },
}

impl Watched {
    pub(super) fn new(manifest: &Manifest, keda: Keda, examined: &Examined) -> Self {
        let seconds = manifest.spec.polling_interval.unwrap_or(POLLING_INTERVAL).max(1);
        Self {
            label: text::label(examined),
            keda,
            polling_interval: Duration::from_secs(seconds),
            is_answered: matches!(examined.outcome, Some(Outcome::Value { .. })),
        }
    }
}

/// Until `shutdown`; true if every trigger's last poll had an answer.
pub(super) async fn run(
    mut watched: Vec<Watched>,
    follow: Follow,
    output: Output,
    out: &mut impl Write,
    shutdown: CancellationToken,
) -> io::Result<bool> {
    let (sender, mut events) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    for (index, one) in watched.iter().enumerate() {
        let every = follow.interval.unwrap_or(one.polling_interval);
        tasks.spawn(poll(index, one.keda.clone(), every, sender.clone()));
        tasks.spawn(stream(index, one.keda.clone(), sender.clone()));
    }
    loop {
        let (index, seen) = tokio::select! {
            () = shutdown.cancelled() => return Ok(watched.iter().all(|one| one.is_answered)),
            Some(event) = events.recv() => event,
        };
        if let Happening::Poll { outcome, .. } = &seen {
            watched[index].is_answered = matches!(outcome, Outcome::Value { .. });
        }
        let event = Event { at: wall_clock(), trigger: watched[index].label.clone(), seen };
        match output {
            Output::Json => {
                serde_json::to_writer(&mut *out, &event)?;
                writeln!(out)?;
            }
            Output::Text { .. } => writeln!(out, "{}", text::event(&event))?,
        }
        out.flush()?;
    }
}

type Events = mpsc::Sender<(usize, Happening)>;

/// Both loops end when nobody listens any more.
async fn poll(index: usize, mut keda: Keda, every: Duration, events: Events) {
    // The first was made when the trigger was explained.
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (calls, outcome) = keda.poll().await;
        let took_ms = calls.iter().map(|call| call.took_ms).sum();
        if events.send((index, Happening::Poll { outcome, took_ms })).await.is_err() {
            return;
        }
    }
}

async fn stream(index: usize, mut keda: Keda, events: Events) {
    let mut pause = FIRST_PAUSE;
    loop {
        let ended = follow(index, &mut keda, &events).await;
        let code = ended.as_ref().map_or_else(Status::code, |()| Code::Ok);
        let message = ended.err().map(|status| shorten(status.message(), MAX_SHOWN));
        let message = message.unwrap_or_default();
        let ended = Happening::Ended { code: code_name(code), message };
        if events.send((index, ended)).await.is_err() {
            return;
        }
        if code == Code::Ok {
            pause = FIRST_PAUSE;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One StreamIsActive, until it ends.
async fn follow(index: usize, keda: &mut Keda, events: &Events) -> Result<(), Status> {
    let mut messages = keda.client.stream_is_active(keda.object.clone()).await?.into_inner();
    while let Some(IsActiveResponse { result }) = messages.message().await? {
        if events.send((index, Happening::Push { active: result })).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
