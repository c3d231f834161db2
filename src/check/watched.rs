//! A `DatadogMetric` that the scaler reads as its watch tells it: what is in it is asked of Kubernetes.

use super::{
    keys::Keys,
    live::Cluster,
    manifest::Selected,
    reading::fail,
    report::{Examined, Level, Step},
};
use crate::{
    credentials::AgentSource,
    kubernetes::{NoWatch, ReadError},
    scaler::Failure,
    source::SourceError,
    trigger::{Subject, Trigger, Unanswered},
};

impl Cluster {
    /// What the scaler has by its watch, if it reads the metric so, as far as that can be told here.
    pub(super) async fn watched(
        &self,
        selected: &Selected<'_>,
        trigger: &Trigger,
        examined: &mut Examined,
    ) -> Option<Keys> {
        let Subject::DatadogMetric { namespace: of, name, .. } = &trigger.subject else {
            return None;
        };
        let has_token = selected.spec.authentication().is_some();
        match self.rules.may_watch(&self.namespace, of, has_token) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => {
                fail(examined, Step::Credentials, &Failure::Credentials(error));
                return Some(Keys::None);
            }
        }
        let (of, name) = (of.to_lowercase(), name.to_lowercase());
        let insists = self.rules.agent_source == AgentSource::Crd;
        let mut note = |level, message: String| examined.find(level, Step::Credentials, message);
        match self.kubernetes.read_datadog_metric(&of, &name).await {
            Ok(metric) => {
                let message = "the scaler reads the DatadogMetric in Kubernetes, for which no token is \
                               needed, if it may `list` and `watch` them; else it asks the Cluster \
                               Agent, unless `--cluster-agent-source` says otherwise";
                note(Level::Note, message.to_owned());
                return Some(Keys::Unneeded(metric));
            }
            Err(ReadError::Absent) if insists => {
                let why = SourceError::Unwatched { why: NoWatch::Absent };
                fail(examined, Step::Request, &Failure::Unanswered(Unanswered::Source(why)));
            }
            Err(ReadError::Absent) => {}
            Err(error) => note(
                Level::Warning,
                format!(
                    "{}, so that it is not known here what the scaler reads there",
                    self.in_words(&error)
                ),
            ),
        }
        insists.then_some(Keys::None)
    }
}
