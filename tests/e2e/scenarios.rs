//! What is tried, each by itself.

use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use crate::{cluster::Cluster, stage::Stage, wait::seconds};

mod life;
mod examples;
mod side_by_side;
mod outage;
mod push;
mod tls;
mod cluster_agent;
mod credentials;
mod features;
mod restarts;
mod strangers;
mod economy;
mod chart;

/// What was seen, in a line; or what went wrong.
pub(crate) type Outcome = anyhow::Result<String>;
type Running = Pin<Box<dyn Future<Output = Outcome>>>;

#[derive(Clone)]
pub(crate) struct Scenario {
    /// Also of its namespace.
    pub(crate) name: &'static str,
    /// Whether it runs without `--all`.
    pub(crate) is_core: bool,
    /// Whether it harms what runs at the same time.
    pub(crate) is_alone: bool,
    pub(crate) bound: Duration,
    pub(crate) run: fn(Scene) -> Running,
}

/// Where a scenario takes place.
#[derive(Clone)]
pub(crate) struct Scene {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) binary: PathBuf,
    pub(crate) name: &'static str,
    /// As the scenario's.
    pub(crate) is_alone: bool,
}

impl Scene {
    /// With a site of its own.
    async fn stage(&self) -> anyhow::Result<Stage> {
        self.stage_at(&format!("{}.datadoghq.com", self.name)).await
    }

    /// With a site that KEDA's built-in scaler knows. A site is of one scenario.
    async fn stage_at(&self, site: &str) -> anyhow::Result<Stage> {
        let mut stage = Stage::set(&self.cluster, &self.binary, self.name, site).await?;
        // Else a scaler would see the triggers of other scenarios, and read them as it starts.
        stage.is_of_all_namespaces = self.is_alone;
        Ok(stage)
    }
}

/// The flags of a scaler that is quick to read and to give up.
const QUICK: [&str; 2] = ["--refresh=1s", "--hold=8s"];

/// A name, a bound in seconds, and what is done.
macro_rules! scenario {
    ($name:literal, $seconds:literal, $run:path) => {
        Scenario {
            name: $name,
            is_core: false,
            is_alone: false,
            bound: seconds($seconds),
            run: |scene| Box::pin($run(scene)),
        }
    };
}

/// What takes long first, since others run beside it.
pub(crate) fn all() -> Vec<Scenario> {
    let core = |scenario| Scenario { is_core: true, ..scenario };
    let alone = |scenario| Scenario { is_alone: true, ..scenario };
    vec![
        scenario!("cluster-agent-watch", 720, cluster_agent::watch),
        core(scenario!("side-by-side", 400, side_by_side::metrics)),
        core(scenario!("outage", 300, outage::outage)),
        core(scenario!("scaled-object", 240, life::scaled_object)),
        core(scenario!("push", 240, push::push)),
        core(scenario!("tls", 240, tls::tls)),
        core(scenario!("examples", 120, examples::dry_run)),
        scenario!("rotated-keys", 400, credentials::rotated),
        scenario!("scaler-restarts", 300, restarts::scaler),
        scenario!("cluster-agent-https", 240, cluster_agent::https),
        scenario!("throttled", 300, outage::throttled),
        scenario!("unprocessable", 240, outage::unprocessable),
        scenario!("one-bad-trigger", 240, outage::one_bad),
        scenario!("who-answers", 240, examples::who_answers),
        scenario!("bad-neighbour", 240, outage::bad_neighbour),
        scenario!("push-in-outage", 240, push::in_outage),
        scenario!("scaled-job", 240, life::scaled_job),
        scenario!("at-least-one", 240, life::at_least_one),
        scenario!("cached-metrics", 240, features::cached),
        scenario!("modifiers", 240, features::modifiers),
        scenario!("value-metric", 240, features::value_metric),
        scenario!("strangers", 120, strangers::strangers),
        scenario!("paused", 240, features::paused),
        core(scenario!("chart", 240, chart::renderings)),
        alone(scenario!("rights", 400, chart::rights)),
        alone(scenario!("api-server-away", 300, restarts::api_server)),
        alone(scenario!("two-hundred", 1_500, economy::two_hundred)),
    ]
}
