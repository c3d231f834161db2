//! Explains triggers: reads each once, through the same rooms as the server, or plays KEDA
//! against a running one, and tells every step.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    path::PathBuf,
    sync::Arc,
};

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::{
    credentials::{self, Origin},
    demand::Demand,
    http,
    metrics::Metrics,
    proto::external_scaler_client::ExternalScalerClient,
    scaler::Failure,
    source::{Source, datadog::Datadog},
    trigger::{Subject, Trigger},
    words::shorten,
};

mod manifest;
mod examine;
mod settings;
mod reading;
mod replicas;
mod through;
mod watch;
mod report;
mod text;

pub use examine::Server;
pub use manifest::ManifestError;
pub use through::Tls;
pub use watch::Follow;

use examine::examine;
use manifest::{Manifest, Written};
use reading::{Asked, Seen};
use report::{Examined, Level, Outcome, Report, Step};
use through::{Keda, Pool, Security};
use watch::Watched;

#[derive(Clone, Debug)]
pub struct Config {
    pub triggers: Triggers,
    /// Index or name of the one trigger to look at.
    pub only: Option<String>,
    /// Replicas that there are, for what the HPA would ask for.
    pub replicas: u32,
    pub output: Output,
    pub server: Server,
    pub whom: Whom,
}

/// Where the triggers are written down.
#[derive(Clone, Debug)]
pub enum Triggers {
    /// `-` is the standard input.
    Files(Vec<PathBuf>),
    /// One trigger of a ScaledObject that there need not be.
    Metadata(BTreeMap<String, String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Lines of at most this many columns.
    Text {
        width: usize,
    },
    Json,
}

/// Whom to ask for a reading.
#[derive(Clone, Debug)]
pub enum Whom {
    /// Only what can be told without.
    Nobody,
    Datadog {
        credentials: credentials::Config,
        http: http::Config,
    },
    /// A running scaler.
    Scaler {
        /// Host and port.
        address: String,
        tls: Tls,
        follow: Option<Follow>,
    },
}

/// Most characters of a name that a finding repeats.
const MAX_SHOWN: usize = 100;

/// Where readings come from.
enum Asking<S> {
    Nobody,
    Datadog { source: S, asked: Option<Asked>, seen: HashMap<Demand, Seen> },
    Scaler { pool: Pool, follow: Option<Follow>, watched: Vec<Watched> },
}

impl<S> Asking<S> {
    /// What becomes of the trigger's `authenticationRef`.
    fn note_on(&self, written: &Written) -> Option<String> {
        let name = shorten(&written.authentication_ref.as_ref()?.name, MAX_SHOWN);
        let used = match self {
            Self::Nobody => return None,
            Self::Datadog { .. } => "the keys given to `check` are used",
            Self::Scaler { .. } => "this version of the scaler uses its own keys",
        };
        Some(format!("`authenticationRef` \"{name}\" is not resolved here; {used}"))
    }
}

/// Tells on `out`, and says whether everything is fine. An error is one of the command line, of
/// the files, or of writing.
pub async fn run(
    config: Config,
    out: &mut impl Write,
    shutdown: CancellationToken,
) -> anyhow::Result<bool> {
    let mut asking = asking(&config.whom)?;
    let fine = tokio::select! {
        told = async {
            let manifests = manifests(&config.triggers).await?;
            tell_all(&config, &manifests, &mut asking, out).await
        } => told?,
        () = shutdown.cancelled() => anyhow::bail!("interrupted"),
    };
    match asking {
        Asking::Scaler { follow: Some(follow), watched, .. } if !watched.is_empty() => {
            Ok(watch::run(watched, follow, config.output, out, shutdown).await?)
        }
        _ => Ok(fine),
    }
}

async fn tell_all<S: Source>(
    config: &Config,
    manifests: &[Manifest],
    asking: &mut Asking<S>,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let selected = select(manifests, config.only.as_deref())?;
    let mut report = Report { fine: true, triggers: Vec::new() };
    for (manifest, index) in selected {
        let examined = one(config, manifest, index, asking).await;
        report.fine &= examined.is_fine();
        if let Output::Text { width } = config.output {
            let gap = if report.triggers.is_empty() { "" } else { "\n\n" };
            write!(out, "{gap}{}", text::trigger(&examined, width))?;
            out.flush()?;
        }
        report.triggers.push(examined);
    }
    match config.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &report)?;
            writeln!(out)?;
        }
        Output::Text { .. } if report.triggers.len() > 1 => {
            write!(out, "\n{}", text::summary(&report))?;
        }
        Output::Text { .. } => {}
    }
    out.flush()?;
    Ok(report.fine)
}

/// Every step of one trigger.
async fn one<S: Source>(
    config: &Config,
    manifest: &Manifest,
    index: usize,
    asking: &mut Asking<S>,
) -> Examined {
    let (mut examined, trigger) = examine(manifest, index, &config.server);
    let written = &manifest.spec.triggers[index];
    if let Some(note) = asking.note_on(written) {
        examined.find(Level::Note, Step::Trigger, note);
    }
    match asking {
        Asking::Nobody => {}
        Asking::Datadog { source, asked, seen } => {
            if let Some(trigger) = &trigger {
                if asked.is_none() {
                    *asked = asked_of(&config.whom, &mut examined).await;
                }
                if let Some(asked) = asked {
                    read(config, trigger, source, asked, seen, &mut examined).await;
                }
            }
        }
        // Whatever we make of the metadata, it is the scaler's answer that counts.
        Asking::Scaler { pool, follow, watched } => {
            let connected = keda(manifest, written, pool).await;
            match connected {
                Ok(mut keda) => {
                    let (calls, outcome) = keda.poll().await;
                    if let Outcome::Failed { code, message } = &outcome {
                        let message = format!("KEDA gets {code}: {message}");
                        examined.find(Level::Error, Step::Calls, message);
                    }
                    (examined.calls, examined.outcome) = (calls, Some(outcome));
                    if follow.is_some() {
                        watched.push(Watched::new(manifest, keda, &examined));
                    }
                }
                Err(error) => examined.find(Level::Error, Step::Calls, error.to_string()),
            }
        }
    }
    if let Some(Outcome::Value { value, target, .. }) = examined.outcome {
        let replicas = replicas::asked_for(manifest, written, value, target, config.replicas);
        examined.replicas = Some(replicas);
    }
    examined
}

/// `None` without keys; that is then told.
async fn asked_of(whom: &Whom, examined: &mut Examined) -> Option<Asked> {
    let Whom::Datadog { credentials, .. } = whom else { return None };
    let keys = match &credentials.origin {
        Origin::Given(_) => "the environment".to_owned(),
        Origin::Directory(directory) => directory.display().to_string(),
    };
    let own = match credentials::load(credentials.clone()).await {
        Ok((credentials, _)) => credentials.own(),
        Err(error) => Err(error),
    };
    match own {
        Ok(account) => Some(Asked { account, keys }),
        Err(error) => {
            reading::fail(examined, Step::Request, &Failure::Credentials(error));
            None
        }
    }
}

/// Equal demands are one request, here as in the server.
async fn read(
    config: &Config,
    trigger: &Trigger,
    source: &impl Source,
    asked: &Asked,
    known: &mut HashMap<Demand, Seen>,
    examined: &mut Examined,
) {
    let Subject::Query(query) = &trigger.subject else {
        reading::fail(examined, Step::Request, &Failure::ClusterAgent);
        return;
    };
    let demand = Demand { account: asked.account.clone(), query: query.clone() };
    let seen = match known.get(&demand) {
        Some(seen) => seen.clone(),
        None => reading::ask(source, &demand, config.server.refresh).await,
    };
    reading::explain(trigger, query, asked, &seen, config.server.hold, examined);
    known.insert(demand, seen);
}

async fn keda(
    manifest: &Manifest,
    written: &Written,
    pool: &mut Pool,
) -> Result<Keda, through::Unconnected> {
    let object = through::reference(manifest, written, pool.address());
    let channel = pool.connect(Security::of(&object.scaler_metadata)).await?;
    Ok(Keda { client: ExternalScalerClient::new(channel), object })
}

fn asking(whom: &Whom) -> anyhow::Result<Asking<Datadog>> {
    Ok(match whom.clone() {
        Whom::Nobody => Asking::Nobody,
        Whom::Datadog { http, .. } => {
            let source = Datadog::new(http::Client::new(&http)?, Arc::new(Metrics::new()));
            Asking::Datadog { source, asked: None, seen: HashMap::new() }
        }
        Whom::Scaler { address, tls, follow } => {
            Asking::Scaler { pool: Pool::new(address, tls), follow, watched: Vec::new() }
        }
    })
}

async fn manifests(triggers: &Triggers) -> anyhow::Result<Vec<Manifest>> {
    match triggers {
        Triggers::Files(files) => {
            let files = files.clone();
            // Standard input may take its time, and Ctrl-C is to end that.
            Ok(spawn_blocking(move || manifest::read(&files)).await??)
        }
        Triggers::Metadata(metadata) => Ok(vec![Manifest::of_metadata(metadata)]),
    }
}

/// The triggers that are this scaler's, or the one of them that is wanted.
fn select<'a>(
    manifests: &'a [Manifest],
    only: Option<&str>,
) -> Result<Vec<(&'a Manifest, usize)>, ManifestError> {
    let all: Vec<(&Manifest, usize)> = manifests
        .iter()
        .flat_map(|manifest| {
            let triggers = manifest.spec.triggers.iter().enumerate();
            triggers.filter(|(_, t)| t.is_ours()).map(move |(index, _)| (manifest, index))
        })
        .collect();
    if all.is_empty() {
        return Err(ManifestError::NoneOurs);
    }
    let Some(wanted) = only else { return Ok(all) };
    let name = |(manifest, index): &(&Manifest, usize)| manifest.spec.triggers[*index].name.clone();
    let is_wanted = |trigger: &(&Manifest, usize)| {
        name(trigger).as_deref() == Some(wanted) || trigger.1.to_string() == wanted
    };
    let found: Vec<_> = all.iter().copied().filter(is_wanted).collect();
    if found.is_empty() {
        let there = all.iter().map(|trigger| match name(trigger) {
            Some(name) => format!("{} ({name})", trigger.1),
            None => trigger.1.to_string(),
        });
        return Err(ManifestError::NoTrigger { wanted: wanted.to_owned(), there: there.collect() });
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
