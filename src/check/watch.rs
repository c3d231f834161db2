//! Follows triggers through a running scaler: KEDA's poll, and StreamIsActive beside it for
//! triggers that push.

use std::{
    io::{self, Write},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{
    Output, json,
    manifest::Selected,
    report::{Event, Examined, Happening, Outcome},
    text,
    through::{Keda, in_words},
};
use crate::{proto::IsActiveResponse, scaler::code_name, source::datadog::wall_clock};

/// KEDA opens a stream that ended again after this, and after twice as long each time it failed
/// (`runStreamIsActive`, `pkg/scalers/external_scaler.go`).
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Nobody waits for a poll for longer.
const LONGEST_INTERVAL: Duration = Duration::from_hours(24);
/// Most events that wait to be written.
const QUEUE: usize = 64;

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
    pushes: bool,
    /// Whether the last poll had an answer.
    is_answered: bool,
}

impl Watched {
    pub(super) fn new(selected: &Selected<'_>, keda: Keda, examined: &Examined) -> Self {
        Self {
            label: examined.label(),
            keda,
            polling_interval: polling_interval(selected.manifest.spec.polling_interval),
            pushes: selected.pushes(),
            is_answered: matches!(examined.outcome, Some(Outcome::Answered { .. })),
        }
    }
}

fn polling_interval(seconds: u64) -> Duration {
    Duration::from_secs(seconds.max(1)).min(LONGEST_INTERVAL)
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
        if one.pushes {
            tasks.spawn(stream(index, one.keda.clone(), sender.clone()));
        }
    }
    loop {
        let (index, happening) = tokio::select! {
            () = shutdown.cancelled() => return Ok(watched.iter().all(|one| one.is_answered)),
            Some(event) = events.recv() => event,
            Some(ended) = tasks.join_next() => {
                return Err(io::Error::other(match ended {
                    Ok(()) => "a trigger is no longer followed".to_owned(),
                    Err(error) => error.to_string(),
                }));
            }
        };
        let one = &mut watched[index];
        if let Happening::Poll { outcome, .. } = &happening {
            one.is_answered = matches!(outcome, Outcome::Answered { .. });
        }
        let at_ms = wall_clock().as_millisecond();
        let event = Event { at_ms, trigger: one.label.clone(), happening };
        match output {
            Output::Json => out.write_all(&json::line(&event)?)?,
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
        let poll = keda.poll().await;
        let took_ms = poll.calls.iter().map(|call| call.took_ms).sum();
        let happening = Happening::Poll { outcome: poll.outcome, took_ms };
        if events.send((index, happening)).await.is_err() {
            return;
        }
    }
}

async fn stream(index: usize, mut keda: Keda, events: Events) {
    let mut pause = FIRST_PAUSE;
    loop {
        let ended = follow(index, &mut keda, &events).await;
        let code = ended.as_ref().map_or_else(Status::code, |()| Code::Ok);
        let message = ended.err().map(|status| in_words(&status)).unwrap_or_default();
        let happening = Happening::Ended { code: code_name(code), message };
        if events.send((index, happening)).await.is_err() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_polling_interval_can_be_waited_for() {
        for (seconds, expected) in [(0, 1), (30, 30), (u64::MAX, 86_400)] {
            assert_eq!(polling_interval(seconds), Duration::from_secs(expected));
        }
    }
}
