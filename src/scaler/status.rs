//! What failed → the gRPC status that KEDA shows its user, and one line in the log. The only
//! match on gRPC codes.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    credentials::CredentialsError,
    proto::ScaledObjectRef,
    source::SourceError,
    trigger::{Advice, MetadataError, Unanswered},
};

/// Why an RPC has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the request names no ScaledObject")]
    NoScaledObject,
    #[error(transparent)]
    Metadata(MetadataError),
    #[error(
        "`useClusterAgentProxy` is not served by this version; take it out and give a `query`, \
         which is read from the Datadog API"
    )]
    ClusterAgent,
    #[error(transparent)]
    Credentials(CredentialsError),
    #[error(transparent)]
    Unanswered(Unanswered),
    #[error("no reading from {host} within {patience:?}; it is still being fetched")]
    TimedOut { host: String, patience: Duration },
    #[error("the credentials changed while the query was read; ask again")]
    Withdrawn,
}

impl Failure {
    pub(super) fn code(&self) -> Code {
        match self {
            Self::NoScaledObject | Self::Metadata(_) => Code::InvalidArgument,
            Self::ClusterAgent => Code::Unimplemented,
            Self::Credentials(error) => match error {
                CredentialsError::None
                | CredentialsError::Half { .. }
                | CredentialsError::NotAKey { .. }
                | CredentialsError::Site { .. }
                | CredentialsError::File { .. } => Code::FailedPrecondition,
            },
            Self::Unanswered(unanswered) => match unanswered {
                Unanswered::Source(error) => match error {
                    SourceError::Malformed { .. } | SourceError::TooLarge { .. } => {
                        Code::InvalidArgument
                    }
                    SourceError::Refused { .. } | SourceError::Misdirected { .. } => {
                        Code::FailedPrecondition
                    }
                    SourceError::Throttled { .. } => Code::ResourceExhausted,
                    SourceError::Unprocessable
                    | SourceError::Outage { .. }
                    | SourceError::Unreachable { .. }
                    | SourceError::TimedOut { .. } => Code::Unavailable,
                    SourceError::NotUnderstood { .. } => Code::Internal,
                },
                Unanswered::NoData { .. } | Unanswered::NoneLeft { .. } => Code::NotFound,
                Unanswered::SeveralSeries { .. } | Unanswered::NotFinite { .. } => {
                    Code::InvalidArgument
                }
            },
            Self::TimedOut { .. } => Code::DeadlineExceeded,
            Self::Withdrawn => Code::Unavailable,
        }
    }

    pub(super) fn status(&self) -> Status {
        Status::new(self.code(), self.to_string())
    }

    /// Whether the worker says so, once for all triggers that are affected.
    fn is_told_elsewhere(&self) -> bool {
        matches!(self, Self::Unanswered(Unanswered::Source(error)) if error.concerns_account())
    }
}

/// As metrics and gRPC's documentation spell it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Most triggers that are remembered as failing, and as advised. Beyond that, the log is silent:
/// KEDA's events still tell.
const MAX_REMEMBERED: usize = 10_000;
/// What did not fail again in this time is gone; KEDA polls each 30 s by default.
const MEMORY: Duration = Duration::from_mins(30);
/// How often what is gone is looked for, once there is no room.
const SWEEP_EVERY: Duration = Duration::from_mins(1);

/// Says that a trigger fails when it starts and when it ends, however often KEDA asks.
#[derive(Default)]
pub(super) struct Journal {
    hasher: RandomState,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// What was last said of a trigger, and when it last failed.
    failing: HashMap<u64, (Code, Instant)>,
    /// When a trigger that was advised last came.
    advised: HashMap<u64, Instant>,
    swept_at: Option<Instant>,
}

impl Journal {
    pub(super) fn succeeded(&self, object: &ScaledObjectRef) {
        if self.memory().failing.is_empty() {
            return;
        }
        let key = self.key(object);
        if self.memory().failing.remove(&key).is_some() {
            tracing::info!(
                trigger.namespace = object.namespace,
                trigger.name = object.name,
                "a trigger is answered again"
            );
        }
    }

    pub(super) fn failed(&self, object: &ScaledObjectRef, failure: &Failure) {
        let is_news = !failure.is_told_elsewhere() && {
            let key = self.key(object);
            self.memory().note_failure(key, failure.code(), Instant::now())
        };
        if is_news {
            tracing::warn!(
                trigger.namespace = object.namespace,
                trigger.name = object.name,
                code = code_name(failure.code()),
                error = %failure,
                "a trigger cannot be answered"
            );
        }
    }

    pub(super) fn advise(&self, object: &ScaledObjectRef, advice: &[Advice]) {
        if advice.is_empty() {
            return;
        }
        let key = self.key(object);
        let is_news = self.memory().note_advice(key, Instant::now());
        if is_news {
            for advice in advice {
                tracing::warn!(
                    trigger.namespace = object.namespace,
                    trigger.name = object.name,
                    %advice,
                    "a metadata key has no effect"
                );
            }
        }
    }

    /// One trigger of one object: the map has no order.
    fn key(&self, object: &ScaledObjectRef) -> u64 {
        let metadata = object.scaler_metadata.iter().map(|entry| self.hasher.hash_one(entry));
        let metadata = metadata.fold(0, u64::wrapping_add);
        self.hasher.hash_one((&object.namespace, &object.name, metadata))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// Whether it is to be said.
    fn note_failure(&mut self, key: u64, code: Code, now: Instant) -> bool {
        self.sweep(now);
        let has_room = self.failing.len() < MAX_REMEMBERED || self.failing.contains_key(&key);
        has_room && self.failing.insert(key, (code, now)).is_none_or(|(said, _)| said != code)
    }

    /// Whether it is to be said.
    fn note_advice(&mut self, key: u64, now: Instant) -> bool {
        self.sweep(now);
        let has_room = self.advised.len() < MAX_REMEMBERED || self.advised.contains_key(&key);
        has_room && self.advised.insert(key, now).is_none()
    }

    fn sweep(&mut self, now: Instant) {
        let is_full = self.failing.len().max(self.advised.len()) >= MAX_REMEMBERED;
        let swept_lately = self.swept_at.is_some_and(|at| now < at + SWEEP_EVERY);
        if is_full && !swept_lately {
            self.swept_at = Some(now);
            self.failing.retain(|_, (_, seen_at)| now < *seen_at + MEMORY);
            self.advised.retain(|_, seen_at| now < *seen_at + MEMORY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_said_once_and_again_when_it_changes() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        assert!(memory.note_failure(1, Code::NotFound, now));
        assert!(!memory.note_failure(1, Code::NotFound, now));
        assert!(memory.note_failure(2, Code::NotFound, now));
        assert!(memory.note_failure(1, Code::InvalidArgument, now));
        assert!(memory.note_advice(1, now) && !memory.note_advice(1, now));
    }

    #[test]
    fn a_flood_of_failing_triggers_is_not_remembered_without_end() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let said = (0..20_000).filter(|key| memory.note_failure(*key, Code::NotFound, now)).count();
        assert_eq!((said, memory.failing.len()), (MAX_REMEMBERED, MAX_REMEMBERED));
        assert!(!memory.note_failure(0, Code::NotFound, now + MEMORY / 2));
        // What stayed away makes room, what still fails is remembered.
        let later = now + MEMORY + SWEEP_EVERY;
        assert!(memory.note_failure(20_001, Code::NotFound, later));
        assert_eq!(memory.failing.len(), 2);
        assert!(!memory.note_failure(0, Code::NotFound, later));
    }
}
