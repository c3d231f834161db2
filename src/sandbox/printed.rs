//! What the sandbox prints when it runs: what there is, and lines to try it with, each of which
//! works as it stands.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use super::{
    AGENT_TOKEN, API_KEY, APP_KEY, broken::Faults, catalogue::METRICS, metric, state::Addresses,
};
use crate::{serve, words::shorten};

/// Most characters that are told of one fault, for lines of 100 columns.
const MAX_SHOWN: usize = 90;

/// What the scaler is asked for.
struct Asked {
    /// As `GetMetricSpec` calls it.
    metric: &'static str,
    /// `scalerMetadata`.
    metadata: &'static str,
}

const QUERY: Asked = Asked {
    metric: "datadog-avg-sandbox-steps",
    metadata: r#"{"query": "avg:sandbox.steps{*}", "queryValue": "5"}"#,
};
const METRIC: Asked = Asked {
    metric: "datadogmetric@demo:steps",
    metadata: r#"{"useClusterAgentProxy": "true", "datadogMetricNamespace": "demo",
     "datadogMetricName": "steps", "targetValue": "5"}"#,
};

/// What is told of the simulation.
pub(super) struct Simulated<'a> {
    pub(super) addresses: Addresses,
    pub(super) rate_limit: u32,
    /// From the start.
    pub(super) faults: &'a Faults,
}

pub(super) fn tell(
    out: &mut impl Write,
    simulated: &Simulated<'_>,
    program: &str,
    serve::Addresses { grpc, admin, status }: serve::Addresses,
) -> io::Result<()> {
    tell_simulated(out, simulated)?;
    writeln!(out, "The real scaler            {grpc} (gRPC), http://{admin}/metrics")?;
    tell_metrics(out)?;
    writeln!(out, "\nPlay KEDA against it; `--watch` goes on doing so:\n")?;
    writeln!(out, "  {program} check --through {grpc} \\")?;
    writeln!(out, "    --metadata 'query=avg:sandbox.steps{{*}}' --metadata queryValue=5\n")?;
    writeln!(out, "The same with grpcurl (https://github.com/fullstorydev/grpcurl):\n")?;
    tell_call(out, grpc, "Should it run at all?", "IsActive", &QUERY)?;
    tell_call(
        out,
        grpc,
        "What is its metric called, and what is the target?",
        "GetMetricSpec",
        &QUERY,
    )?;
    tell_call(out, grpc, "What is the value now?", "GetMetrics", &QUERY)?;
    tell_call(
        out,
        grpc,
        "Tell me when that changes, and each minute that it is active (Ctrl-C ends it):",
        "StreamIsActive",
        &QUERY,
    )?;
    writeln!(out, "The Cluster Agent in place of Datadog, for a DatadogMetric:\n")?;
    writeln!(out, "  {program} check --through {grpc} \\")?;
    writeln!(
        out,
        "    --metadata useClusterAgentProxy=true --metadata datadogMetricName=steps \\"
    )?;
    writeln!(out, "    --metadata datadogMetricNamespace=demo --metadata targetValue=5\n")?;
    tell_call(out, grpc, "Should it run at all?", "IsActive", &METRIC)?;
    tell_call(out, grpc, "What is the value now?", "GetMetrics", &METRIC)?;
    tell_agents_own(out, simulated)?;
    writeln!(
        out,
        "What the scaler knows of each query that was asked for, and of the rate limit:\n"
    )?;
    writeln!(out, "  curl -s http://{status}/api/status\n")?;
    tell_faults(out, simulated)?;
    end(out)
}

pub(super) fn tell_datadog_only(
    out: &mut impl Write,
    simulated: &Simulated<'_>,
    program: &str,
) -> io::Result<()> {
    tell_simulated(out, simulated)?;
    tell_metrics(out)?;
    writeln!(out, "\nA server of your own in front of them:\n")?;
    let Addresses { datadog, agent } = simulated.addresses;
    writeln!(out, "  printf {AGENT_TOKEN} >{AGENT_TOKEN}")?;
    writeln!(out, "  DD_API_KEY={API_KEY} DD_APP_KEY={APP_KEY} DATADOG_HOST=http://{datadog} \\")?;
    writeln!(out, "    {program} serve --cluster-agent-url https://{agent} \\")?;
    writeln!(
        out,
        "    --cluster-agent-token-file {AGENT_TOKEN} --cluster-agent-namespaces '*' \\"
    )?;
    writeln!(out, "    --cluster-agent-unsafe-ssl\n")?;
    tell_agents_own(out, simulated)?;
    tell_faults(out, simulated)?;
    end(out)
}

fn tell_simulated(out: &mut impl Write, simulated: &Simulated<'_>) -> io::Result<()> {
    let Simulated { addresses, rate_limit, .. } = simulated;
    let Addresses { datadog, agent } = addresses;
    writeln!(out, "A simulated Datadog        http://{datadog}  ({rate_limit} requests an hour)")?;
    writeln!(out, "A simulated Cluster Agent  https://{agent}")
}

fn tell_metrics(out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "\nTheir metrics, and what they are called as DatadogMetrics, in every namespace:\n"
    )?;
    for metric in &METRICS {
        for (place, of_it) in metric::of(metric).iter().enumerate() {
            // What follows the first is a part of it.
            let (name, about) = if place == 0 { (metric.name, metric.about) } else { ("", "") };
            let line = format!("  {name:<22} {:<21} {about}", of_it.name);
            writeln!(out, "{}", line.trim_end())?;
        }
    }
    Ok(())
}

/// A line for grpcurl.
fn tell_call(
    out: &mut impl Write,
    grpc: SocketAddr,
    what: &str,
    method: &str,
    Asked { metric, metadata }: &Asked,
) -> io::Result<()> {
    let object = format!(
        "{{\"name\": \"shop\", \"namespace\": \"demo\", \"scalerMetadata\":\n    {metadata}}}"
    );
    let message = if method == "GetMetrics" {
        format!("{{\"metricName\": \"{metric}\",\n    \"scaledObjectRef\": {object}}}")
    } else {
        object
    };
    writeln!(out, "  # {what}")?;
    writeln!(out, "  grpcurl -plaintext -emit-defaults -d '{message}' \\")?;
    writeln!(out, "    {grpc} externalscaler.ExternalScaler/{method}\n")
}

fn tell_agents_own(out: &mut impl Write, simulated: &Simulated<'_>) -> io::Result<()> {
    let agent = simulated.addresses.agent;
    writeln!(out, "The Cluster Agent itself (`-k`, for nobody vouches for its certificate):\n")?;
    writeln!(out, "  curl -sk -H 'Authorization: Bearer {AGENT_TOKEN}' \\")?;
    let path = "apis/external.metrics.k8s.io/v1beta1/namespaces/demo/datadogmetric@demo:steps";
    writeln!(out, "    https://{agent}/{path}\n")
}

fn tell_faults(out: &mut impl Write, simulated: &Simulated<'_>) -> io::Result<()> {
    let Simulated { addresses: Addresses { datadog, .. }, faults, .. } = simulated;
    writeln!(out, "Break them, and mend them:\n")?;
    writeln!(out, "  # For all queries and DatadogMetrics")?;
    writeln!(out, "  curl -X PUT http://{datadog}/faults/504\n")?;
    writeln!(out, "  # For one query")?;
    writeln!(out, "  curl -X PUT -G --data-urlencode 'query=avg:sandbox.steps{{*}}' \\")?;
    writeln!(out, "    http://{datadog}/faults/empty\n")?;
    writeln!(out, "  # For one DatadogMetric")?;
    writeln!(out, "  curl -X PUT -G --data-urlencode 'query=datadogmetric@demo:steps' \\")?;
    writeln!(out, "    http://{datadog}/faults/stale\n")?;
    writeln!(out, "  # Mend all")?;
    writeln!(out, "  curl -X DELETE http://{datadog}/faults\n")?;
    writeln!(
        out,
        "Their page           http://{datadog}/  (all faults, and what they were asked)"
    )?;
    writeln!(out, "What is broken       http://{datadog}/faults")?;
    for on in faults.iter() {
        writeln!(out, "  {}", shorten(&on.breakage.to_string(), MAX_SHOWN))?;
    }
    writeln!(out)
}

fn end(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Ctrl-C stops the sandbox.")?;
    out.flush()
}
