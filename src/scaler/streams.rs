//! The two streams of an `external-push` trigger. Both end with OK when the server drains and at
//! an age of their own: KEDA is back in two seconds, on a connection to whichever pod is there.
//! (After an error it waits longer each time: `runStreamIsActive`, `pkg/scalers/external_scaler.go`.)

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::yield_now,
    time::{Instant, sleep_until},
};
use tonic::Code;

use super::{Shared, asker, code_name, demand};
use crate::{
    credentials::{CredentialsError, Grant},
    kubernetes::ClaimError,
    metrics::{Method, Metrics},
    proto::ScaledObjectRef,
    refresh::{Latest, Verdict},
    trigger::Trigger,
};

/// The age at which a stream ends, more or less.
const AGE: Duration = Duration::from_mins(10);
/// How often it is repeated that a trigger is active, more or less: KEDA drops a message that
/// comes before the object's HPA exists (`status.externalMetricNames`, since v2.20.0).
const REPEAT: Duration = Duration::from_mins(1);

/// Says whether a trigger is active: at once, on change, and now and then while it is. Silent
/// while nobody knows.
pub(super) struct ActiveStream {
    open: OpenStream,
    object: ScaledObjectRef,
    trigger: Trigger,
    shared: Arc<Shared>,
    grant: Grant,
    end_at: Instant,
    repeat_at: Instant,
    told: Option<bool>,
    /// `None` while there are no credentials.
    latest: Option<watch::Receiver<Arc<Latest>>>,
}

/// Says what the metric and its target are: once, since they come from metadata that does not
/// change while the stream is open.
pub(super) struct SpecStream {
    open: OpenStream,
    trigger: Trigger,
    shared: Arc<Shared>,
    end_at: Instant,
    told: bool,
}

/// A stream that counts as open until it is dropped.
pub(super) struct OpenStream {
    method: Method,
    metrics: Arc<Metrics>,
    /// How it would end now: cancelled by the client, unless it ends by itself.
    code: Code,
}

enum Event {
    Ended,
    CredentialsChanged,
    MayBeNews,
}

impl ActiveStream {
    pub(super) fn new(
        open: OpenStream,
        object: ScaledObjectRef,
        trigger: Trigger,
        grant: Grant,
        shared: Arc<Shared>,
    ) -> Self {
        let now = Instant::now();
        let mut stream = Self {
            open,
            object,
            trigger,
            grant,
            end_at: now + jittered(AGE),
            // It is admitted, and says what it knows at once.
            repeat_at: now + jittered(REPEAT),
            told: None,
            latest: None,
            shared,
        };
        stream.follow();
        stream
    }

    /// The next message; `None` ends the stream with OK.
    pub(super) async fn next(&mut self) -> Option<bool> {
        loop {
            let now = Instant::now();
            let repeats = now >= self.repeat_at;
            if repeats {
                self.repeat_at = now + jittered(REPEAT);
                if !self.renew().await {
                    self.open.code = Code::Ok;
                    return None;
                }
            }
            if let Some(active) = self.active(now)
                && (self.told != Some(active) || (active && repeats))
            {
                self.told = Some(active);
                return Some(active);
            }
            match self.wait().await {
                Event::Ended => {
                    self.open.code = Code::Ok;
                    return None;
                }
                Event::CredentialsChanged => {
                    // Whoever publishes the successor needs a turn for it.
                    yield_now().await;
                    self.follow();
                }
                Event::MayBeNews => {}
            }
        }
    }

    fn active(&mut self, now: Instant) -> Option<bool> {
        let latest = self.latest.as_mut()?.borrow_and_update().clone();
        match self.trigger.judge(&latest, now, self.shared.hold(&self.grant)) {
            Verdict::Known(measure) => Some(measure.active),
            Verdict::Failed(_) | Verdict::Awaited { .. } => None,
        }
    }

    async fn wait(&mut self) -> Event {
        let changed = async {
            match &mut self.latest {
                Some(latest) => latest.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.shared.draining.cancelled() => Event::Ended,
            () = sleep_until(self.end_at) => Event::Ended,
            () = self.grant.changed() => Event::CredentialsChanged,
            result = changed => match result {
                Ok(()) => Event::MayBeNews,
                // The account is no longer used.
                Err(_closed) => Event::CredentialsChanged,
            },
            () = sleep_until(self.repeat_at) => Event::MayBeNews,
        }
    }

    /// The interest is told again, and who was refused for want of room may have it now. False if
    /// the trigger is no longer what the stream was opened for: KEDA opens another.
    async fn renew(&mut self) -> bool {
        let deadline = Instant::now() + self.shared.config.patience;
        match self.shared.grant(&self.object, &self.trigger, deadline).await {
            Ok(grant) => self.grant = grant,
            Err(CredentialsError::Claim { error: ClaimError::Unverified(_) }) => {}
            Err(_) => return false,
        }
        self.follow();
        true
    }

    /// Declares interest for as long as the stream lives.
    fn follow(&mut self) {
        let account = self.grant.account_now().ok();
        let demand = account.and_then(|account| demand(&self.trigger, account).ok());
        let asker = asker(&self.object.namespace, &self.trigger);
        self.latest = demand.map(|demand| self.shared.refresher.watch(&demand, asker));
    }
}

impl SpecStream {
    pub(super) fn new(open: OpenStream, trigger: Trigger, shared: Arc<Shared>) -> Self {
        let end_at = Instant::now() + jittered(AGE);
        Self { open, trigger, shared, end_at, told: false }
    }

    /// The next message; `None` ends the stream with OK.
    pub(super) async fn next(&mut self) -> Option<Trigger> {
        if !self.told {
            self.told = true;
            return Some(self.trigger.clone());
        }
        tokio::select! {
            () = self.shared.draining.cancelled() => {}
            () = sleep_until(self.end_at) => {}
        }
        self.open.code = Code::Ok;
        None
    }
}

impl OpenStream {
    pub(super) fn new(method: Method, metrics: Arc<Metrics>) -> Self {
        metrics.stream_opened(method);
        Self { method, metrics, code: Code::Cancelled }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.metrics.stream_ended(self.method, code_name(self.code));
    }
}

/// ±20 %, so that what was opened together does not end together.
fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.8 + 0.4 * fastrand::f64())
}
