//! A watch: what happens from a version on, a line for each event.

use std::{convert::Infallible, future::pending, time::Duration};

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Asked, Gone, Trouble,
    api::status,
    store::{Kind, Selection, Store, What},
};

pub(super) struct Watching {
    kind: Kind,
    selection: Selection,
    bookmarks: bool,
    /// The newest version that the client knows.
    version: u64,
    /// Of the store when it began.
    cuts: u64,
    ends_at: Option<Instant>,
    /// What is sent first, whatever happens.
    first: String,
    /// Ends after that.
    is_over: bool,
}

/// The store counts it for as long as it lives.
struct Open(watch::Sender<Store>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|store| store.open_watches -= 1);
    }
}

/// What there is for the client now.
enum News {
    Lines(String),
    Nothing,
    /// Nothing, and the watch does not even end in time.
    Silence,
    End,
}

impl Watching {
    /// Or the status that the client gets.
    pub(super) fn start(
        store: &Store,
        asked: &Asked,
        kind: Kind,
        selection: Selection,
    ) -> Result<Self, Value> {
        let says = |key: &str| asked.query.get(key).map_or("", String::as_str);
        let bookmarks = says("allowWatchBookmarks") == "true";
        let lists = says("sendInitialEvents") == "true";
        if lists != (says("resourceVersionMatch") == "NotOlderThan") {
            let message = "sendInitialEvents and resourceVersionMatch are for each other";
            return Err(status(422, "Invalid", message));
        }
        let seconds = says("timeoutSeconds").parse().ok();
        let mut watching = Self {
            kind,
            selection,
            bookmarks,
            version: store.version,
            cuts: store.cuts,
            ends_at: seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
            first: String::new(),
            is_over: false,
        };
        let from = says("resourceVersion");
        if lists || from.is_empty() || from == "0" {
            for object in store.objects(&watching.kind, &watching.selection) {
                watching.first += &line("ADDED", object);
            }
            if lists && bookmarks {
                watching.first += &watching.bookmark(store.version, true);
            }
            return Ok(watching);
        }
        let Ok(from) = from.parse() else {
            return Err(status(400, "BadRequest", "invalid resource version"));
        };
        watching.version = from;
        if from >= store.oldest {
            return Ok(watching);
        }
        let message = format!("too old resource version: {from} ({})", store.oldest);
        let status = status(410, "Expired", &message);
        if store.gone == Gone::Status {
            return Err(status);
        }
        watching.first = line("ERROR", &status);
        watching.is_over = true;
        Ok(watching)
    }

    pub(super) fn into_response(self, store: &watch::Sender<Store>) -> Response {
        let watching = (self, store.subscribe(), Open(store.clone()));
        let lines = stream::unfold(watching, |(mut watching, mut changes, open)| async move {
            let lines = watching.next(&mut changes).await?;
            Some((Ok::<_, Infallible>(lines), (watching, changes, open)))
        });
        ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
    }

    async fn next(&mut self, changes: &mut watch::Receiver<Store>) -> Option<String> {
        loop {
            let ends_at = match self.look(&changes.borrow_and_update()) {
                News::Lines(lines) => return Some(lines),
                News::Nothing => self.ends_at,
                News::Silence => None,
                News::End => return None,
            };
            let end = async {
                match ends_at {
                    Some(ends_at) => sleep_until(ends_at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                news = changes.changed() => news.ok()?,
                () = end => return None,
            }
        }
    }

    fn look(&mut self, store: &Store) -> News {
        match store.trouble(&self.kind.names.plural) {
            Some(Trouble::Hangs) => return News::Silence,
            Some(Trouble::Fails(_) | Trouble::Garbage(_)) => return News::End,
            None => {}
        }
        if !self.first.is_empty() {
            return News::Lines(std::mem::take(&mut self.first));
        }
        if self.is_over || self.cuts != store.cuts {
            return News::End;
        }
        let lines: String = store
            .since(self.version)
            .iter()
            .filter_map(|change| match &change.what {
                What::Bookmark => self.bookmarks.then(|| self.bookmark(change.version, false)),
                What::Object { event, group, plural, object } => {
                    let names = &self.kind.names;
                    let of_kind = *group == names.group && *plural == names.plural;
                    (of_kind && self.selection.has(object)).then(|| line(event, object))
                }
            })
            .collect();
        self.version = store.version.max(self.version);
        if !lines.is_empty() {
            return News::Lines(lines);
        }
        let is_known = store.kinds.iter().any(|known| known.names == self.kind.names);
        if is_known { News::Nothing } else { News::End }
    }

    fn bookmark(&self, version: u64, ends_list: bool) -> String {
        let mut object = json!({
            "apiVersion": self.kind.names.api_version,
            "kind": self.kind.names.kind,
            "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
        });
        if ends_list {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        line("BOOKMARK", &object)
    }
}

fn line(event: &str, object: &Value) -> String {
    let mut line = json!({"type": event, "object": object}).to_string();
    line.push('\n');
    line
}
