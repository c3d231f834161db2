//! `check` in front of a scripted Datadog, on a paused clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anstream::adapter::strip_str;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    agent::Agents,
    reading::{Asking, Own},
    *,
};
use crate::{
    credentials::{AgentSource, CredentialsError},
    demand::{Account, Keys, Point, Series, Trust},
    source::{Answer, Batch, Reply, SourceError},
};

mod good;
mod wrong;
mod agent;
mod told;
mod asked;
mod comparison;

/// 2026-11-22 12:00:00 UTC
const NOW_MS: i64 = 1_795_348_800_000;

type Script = fn() -> Result<Vec<Series>, SourceError>;

/// Answers as if it were always noon, and counts the requests.
struct Scripted {
    script: Script,
    takes: Duration,
    requests: Arc<AtomicUsize>,
}

impl Source for Scripted {
    async fn fetch(&self, batch: &Batch) -> Reply {
        self.requests.fetch_add(1, Ordering::Relaxed);
        sleep(self.takes).await;
        let answer = |series: Vec<Series>| Answer { series: series.into(), window_end_ms: NOW_MS };
        let outcomes = batch.queries.iter().map(|_| (self.script)().map(answer)).collect();
        Reply { outcomes, rate_limit: None }
    }
}

/// A point every 10 s, the newest of which is `late` buckets old.
fn series(scope: &str, late: i64, values: &[f64]) -> Series {
    let oldest = i64::try_from(values.len()).unwrap() + late;
    let points = (0..)
        .zip(values)
        .map(|(n, value)| Point { at_ms: NOW_MS - (oldest - n) * 10_000, value: *value });
    Series {
        scope: scope.into(),
        step: Some(Duration::from_secs(10)),
        nulls: usize::try_from(late).unwrap(),
        points: points.collect(),
    }
}

fn one_series() -> Vec<Series> {
    vec![series("*", 0, &[1.0, 2.0, 4.0, 7.0, 8.0, 8.0, 6.0, 12.0, 11.5])]
}

fn two_series() -> Vec<Series> {
    vec![
        series("queue:mails", 0, &[3.0, 3.0, 4.0, 2.5, 2.0, 0.0]),
        series("queue:orders", 1, &[20.0, 21.0, 23.0, 26.0, 30.0]),
    ]
}

fn config() -> Config {
    Config {
        triggers: Triggers::Files(Vec::new()),
        only: None,
        replicas: 2,
        output: Output::Text { width: 80 },
        server: Server {
            refresh: Duration::from_secs(15),
            hold: Duration::from_mins(1),
            patience: Duration::from_millis(2_500),
            max_age: Duration::from_mins(16),
            batch_queries: 35,
            strict_metadata: false,
        },
        agent_namespaces: Vec::new(),
        agent_source: AgentSource::default(),
        ask: Ask::Nobody,
    }
}

/// With this account of Datadog, and a Cluster Agent whose token is in a file.
fn asking<S: Source>(source: S, account: Result<Arc<Account>, CredentialsError>) -> Asking<S> {
    let url = "https://127.0.0.1:8443".parse().unwrap();
    let agent = Account::of_agent(url, "the-agents-token".into(), Trust::Anybody);
    let agents = Agents {
        own: Own { account: Ok(Arc::new(agent)), from: "/run/token".to_owned() },
        forwards: Vec::new(),
        is_in_pod: false,
        source: AgentSource::default(),
    };
    Asking::new(source, Own { account, from: "the environment".to_owned() }, agents)
}

struct Told {
    /// Without colour.
    text: String,
    fine: bool,
    requests: usize,
}

/// What is told of a file.
async fn told(config: &Config, yaml: &str, script: Script) -> Told {
    told_after(Duration::ZERO, config, yaml, script).await
}

/// The same of a Datadog that takes its time.
async fn told_after(takes: Duration, config: &Config, yaml: &str, script: Script) -> Told {
    let mut found = Found::default();
    found.add("shop.yaml", yaml).unwrap();
    let keys = Keys::Pair { api: "the-api-key".into(), app: "the-app-key".into() };
    let account = Account::new("https://api.datadoghq.eu".parse().unwrap(), keys);
    let requests = Arc::new(AtomicUsize::new(0));
    let source = Scripted { script, takes, requests: requests.clone() };
    let asking = asking(source, Ok(Arc::new(account)));
    let mut respondent = Respondent::Datadog(asking);
    let mut out = Vec::new();
    let fine = tell_all(config, &found, None, &mut respondent, &mut out).await.unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(!out.contains("the-a"), "a key is told");
    let requests = requests.load(Ordering::Relaxed);
    Told { text: strip_str(&out).to_string(), fine, requests }
}

/// These sections of it.
fn sections(text: &str, headings: &[&str]) -> String {
    let mut chosen = String::new();
    for section in text.split("\n\n") {
        let heading = section.lines().next().unwrap_or_default();
        // A chart belongs to the series.
        let is_chart = section.contains('└') && chosen.contains("Series\n");
        if headings.contains(&heading) || is_chart {
            chosen.push_str(section);
            chosen.push_str("\n\n");
        }
    }
    chosen
}

/// A sound ScaledObject with this metadata added or, where the value is "-", taken away.
fn with(changes: &Value) -> Value {
    let mut metadata =
        json!({"scalerAddress": "a:1", "query": "avg:shop.orders{*}", "queryValue": "5"});
    for (key, value) in changes.as_object().unwrap() {
        metadata[key] = value.clone();
    }
    metadata.as_object_mut().unwrap().retain(|_, value| value != "-");
    json!({
        "kind": "ScaledObject",
        "metadata": {"name": "checkout"},
        "spec": {"triggers": [{"type": "external", "metadata": metadata}]},
    })
}
