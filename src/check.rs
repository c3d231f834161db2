//! Explains triggers: reads each once, through the same rooms as the server, or plays KEDA
//! against a running one, and tells every step.

use std::{collections::BTreeMap, io::Write, path::PathBuf, time::Duration};

use anyhow::Context as _;
use tokio::task::{spawn_blocking, yield_now};
use tokio_util::sync::CancellationToken;

use crate::{
    credentials::{AgentSource, Pattern},
    demand::Service,
    kubernetes::Kind,
    source::Source,
    words::{json, shorten},
};

mod ask;
mod examine;
mod live;
mod watched;
mod keys;
mod settings;
mod reading;
mod agent;
mod watch;
mod through;
mod presence;
mod replicas;
mod compare;
mod text;
mod report;
mod comparison;
mod input;
mod manifest;

pub use ask::Ask;
pub use input::InputError;
pub use live::Live;
pub use through::Tls;
pub use watch::Follow;

use ask::Respondent;
use input::Found;
use keys::{Asked, Keys};
use live::Cluster;
use manifest::Selected;
use report::{Evidence, Examined, Failed, Level, Outcome, Report, Step};
use through::{Keda, Pool, Security, Unconnected};
use watch::Watched;

/// Most characters of somebody's text that a message repeats.
const MAX_SHOWN: usize = 100;

#[derive(Clone, Debug)]
pub struct Config {
    pub triggers: Triggers,
    /// Index or name of the triggers to look at.
    pub only: Option<String>,
    /// Replicas that there are, for what the HPA would ask for.
    pub replicas: u32,
    pub output: Output,
    pub server: Server,
    /// The namespaces whose `DatadogMetric`s are for all; none if that is not known.
    pub agent_namespaces: Vec<Pattern>,
    /// How it reads `DatadogMetric`s.
    pub agent_source: AgentSource,
    pub ask: Ask,
}

/// As the server runs, or would.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub refresh: Duration,
    pub hold: Duration,
    pub patience: Duration,
    /// How old a value of a Cluster Agent may be.
    pub max_age: Duration,
    pub batch_queries: usize,
    pub strict_metadata: bool,
}

impl Server {
    /// As it answers an object of this kind; Kubernetes tells it. See `Shared::hold` in the scaler.
    fn towards(self, kind: Kind) -> Self {
        let hold = if kind == Kind::ScaledJob { Duration::ZERO } else { self.hold };
        Self { hold, ..self }
    }
}

/// Where the triggers are written down.
#[derive(Clone, Debug)]
pub enum Triggers {
    /// `-` is the standard input.
    Files(Vec<PathBuf>),
    /// One trigger of a ScaledObject that there need not be.
    Metadata(BTreeMap<String, String>),
    /// Those of an object that is there.
    Live(Live),
    /// There are none: whether the scaler serves is all that is asked.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Lines of at most this many columns.
    Text {
        width: usize,
    },
    Json,
}

/// Tells on `out`, and says whether everything is fine. An error is one of the command line, of
/// the files, or of writing.
pub async fn run(
    config: Config,
    out: &mut impl Write,
    shutdown: CancellationToken,
) -> anyhow::Result<bool> {
    let (fine, respondent) = tokio::select! {
        told = async {
            let mut respondent = Respondent::new(&config.ask).await?;
            if let (Triggers::None, Respondent::Scaler { pool, .. }) =
                (&config.triggers, &mut respondent)
            {
                let fine = presence::tell(pool, config.output, out).await?;
                return anyhow::Ok((fine, respondent));
            }
            let (found, mut cluster) = find(&config.triggers).await?;
            if let Some(cluster) = &mut cluster {
                cluster.rules.agent_ca = config.ask.agent_ca().await?.into();
            }
            match respondent {
                Respondent::Datadog(asking) if config.ask.compares() => {
                    let asking = asking.at(compare::settled_at());
                    let fine = compare::run(&config, &found, &asking, out).await?;
                    Ok((fine, Respondent::Nobody))
                }
                mut respondent => {
                    let fine = tell_all(&config, &found, cluster.as_ref(), &mut respondent, out).await?;
                    Ok((fine, respondent))
                }
            }
        } => told?,
        () = shutdown.cancelled() => anyhow::bail!("interrupted"),
    };
    match respondent {
        Respondent::Scaler { follow: Some(follow), watched, .. } if !watched.is_empty() => {
            let answered = watch::run(watched, follow, config.output, out, shutdown).await?;
            Ok(fine && answered)
        }
        _ => Ok(fine),
    }
}

/// With the triggers, where they were found, if they are those of Kubernetes.
async fn find(triggers: &Triggers) -> anyhow::Result<(Found, Option<Cluster>)> {
    let found = match triggers.clone() {
        // Standard input may take its time, and Ctrl-C is to end that.
        Triggers::Files(files) => spawn_blocking(move || input::find(&files))
            .await
            .context("reading the files panicked")??,
        Triggers::Metadata(metadata) => Found::of_metadata(&metadata),
        Triggers::None => Found::default(),
        Triggers::Live(live) => {
            let (found, cluster) = Box::pin(live::find(live)).await?;
            return Ok((found, Some(cluster)));
        }
    };
    Ok((found, None))
}

async fn tell_all<S: Source>(
    config: &Config,
    found: &Found,
    cluster: Option<&Cluster>,
    respondent: &mut Respondent<S>,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let (selected, others) = found.select(config.only.as_deref())?;
    let unreadable = found.odd.clone();
    let mut report =
        Report { fine: unreadable.is_empty(), unreadable, others, triggers: Vec::new() };
    for selected in selected {
        // Ctrl-C is heard.
        yield_now().await;
        let mut examined = one(config, &selected, cluster, respondent).await;
        report.fine &= examined.is_fine();
        if let Output::Text { width } = config.output {
            let gap = if report.triggers.is_empty() { "" } else { "\n\n" };
            write!(out, "{gap}{}", text::trigger(&examined, width))?;
            out.flush()?;
            // It has been told, and may be large.
            examined.evidence = Evidence::Nobody {};
        }
        report.triggers.push(examined);
    }
    match config.output {
        Output::Text { .. } => write!(out, "{}", text::summary(&report))?,
        // One line, as those that follow.
        Output::Json if respondent.is_followed() => out.write_all(&json::line(&report)?)?,
        Output::Json => out.write_all(&json::document(&report)?)?,
    }
    out.flush()?;
    Ok(report.fine)
}

/// Every step of one trigger.
async fn one<S: Source>(
    config: &Config,
    selected: &Selected<'_>,
    cluster: Option<&Cluster>,
    respondent: &mut Respondent<S>,
) -> Examined {
    let asked = respondent.asked();
    let server = config.server.towards(selected.manifest.kind);
    // How a running scaler runs is not known here.
    let known = (asked != Asked::Scaler).then_some(&server);
    let (mut examined, trigger) = examine::examine(selected, known);
    if let Some(trigger) = &trigger {
        agent::question(selected, trigger, config.agent_source, asked, &mut examined);
    }
    let unneeded = match (cluster, &trigger) {
        (Some(cluster), Some(trigger)) if asked != Asked::Scaler => {
            Box::pin(cluster.watched(selected, trigger, &mut examined)).await
        }
        _ => None,
    };
    let mut keys = match (unneeded, cluster) {
        (Some(unneeded), _) => unneeded,
        (None, None) => {
            note_on_authentication(selected, asked, &mut examined);
            Keys::OfShell
        }
        (None, Some(cluster)) => Box::pin(cluster.explain(selected, asked, &mut examined)).await,
    };
    // One that is not resolved here has a token of its own.
    let has_own = cluster.is_none() && selected.spec.authentication().is_some();
    if let (Keys::OfShell, false, Some(trigger)) = (&keys, has_own, &trigger)
        && !agent::question_namespace(selected, trigger, &config.agent_namespaces, &mut examined)
    {
        keys = Keys::None;
    }
    match respondent {
        Respondent::Nobody => {}
        Respondent::Datadog(asking) => {
            if let Some(trigger) = &trigger {
                asking.explain(trigger, keys, &server, &mut examined).await;
            }
        }
        // Whatever we make of the metadata, it is the scaler's answer that counts.
        Respondent::Scaler { pool, follow, watched } => {
            let keda = ask_scaler(selected, pool, &mut examined).await;
            watched.extend(
                keda.filter(|_| follow.is_some())
                    .map(|keda| Watched::new(selected, keda, &examined)),
            );
        }
    }
    if let Some(Outcome::Answered { value, active, target }) = examined.outcome {
        examined.scaling = replicas::scaling(selected, value, active, target, config.replicas);
    }
    examine::question_scaling(selected, &mut examined);
    if let (Some(trigger), Some(server)) = (&trigger, known) {
        examine::question_hold(selected, trigger, server, &mut examined);
        // What reads Kubernetes here is taken for what the scaler does, too.
        if cluster.is_none() {
            examine::question_job(selected, trigger, &config.server, &mut examined);
        }
    }
    examined
}

/// `None` if nothing can be asked that way.
async fn ask_scaler(
    selected: &Selected<'_>,
    pool: &mut Pool,
    examined: &mut Examined,
) -> Option<Keda> {
    let object = selected.reference();
    let security = Security::of(&object);
    let (channel, reached) = match pool.channel(security).await {
        Ok(channel) => channel,
        Err(error) => {
            tell_unconnected(&error, examined);
            return None;
        }
    };
    if pool.is_disarmed(security) {
        examined.find(
            Level::Warning,
            Step::Calls,
            "`unsafeSsl` takes any certificate, in spite of `--ca-cert`, here as in KEDA; take it \
             out",
        );
    }
    let mut keda = Keda::new(channel, object, pool.address());
    if let Err(error) = reached {
        tell_unconnected(&error, examined);
        return Some(keda);
    }
    let seen = keda.poll().await;
    if let Outcome::Failed(failed) = &seen.outcome {
        let message = format!("KEDA gets {}: {}", failed.gets(), failed.message);
        examined.find(Level::Error, Step::Calls, message);
    }
    for odd in seen.odd {
        examined.find(Level::Warning, Step::Calls, odd);
    }
    examined.outcome = Some(seen.outcome);
    examined.evidence = Evidence::Scaler { calls: seen.calls };
    Some(keda)
}

fn tell_unconnected(error: &Unconnected, examined: &mut Examined) {
    let message = error.to_string();
    examined.find(Level::Error, Step::Calls, message.clone());
    let (rpc, code) = ("GetMetricSpec", "UNAVAILABLE");
    examined.outcome = Some(Outcome::Failed(Failed { rpc, code, message }));
}

/// What becomes of the `authenticationRef` of a trigger that is not that of Kubernetes.
fn note_on_authentication(selected: &Selected<'_>, asked: Asked, examined: &mut Examined) {
    let Some(reference) = selected.spec.authentication() else { return };
    let name = shorten(&reference.name, MAX_SHOWN);
    let used = match asked {
        Asked::Nobody => "nobody is asked",
        Asked::Datadog if examined.service == Service::ClusterAgent => {
            "your `--cluster-agent-url` stands for it"
        }
        Asked::Datadog => "the keys of your shell are used",
        Asked::Scaler => "the scaler does that, or uses its own keys if it has no Kubernetes",
    };
    let here = match examined.service {
        Service::DatadogApi => "here",
        // There is more to it than keys.
        Service::ClusterAgent => "here, but with `-n`",
    };
    let message = format!("`authenticationRef` \"{name}\" is not resolved {here}; {used}");
    examined.find(Level::Note, Step::Trigger, message);
}

#[cfg(test)]
mod tests;
