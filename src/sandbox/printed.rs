//! What the sandbox prints when it runs: what there is, and lines to try it with, each of which
//! works as it stands.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use super::{API_KEY, APP_KEY, broken::Faults, catalogue::METRICS};
use crate::{serve::Addresses, words::shorten};

/// Most characters that are told of one fault, for lines of 100 columns.
const MAX_SHOWN: usize = 90;

/// What is told of the simulated Datadog.
pub(super) struct Simulated<'a> {
    pub(super) address: SocketAddr,
    pub(super) rate_limit: u32,
    /// From the start.
    pub(super) faults: &'a Faults,
}

pub(super) fn tell(
    out: &mut impl Write,
    datadog: &Simulated<'_>,
    program: &str,
    Addresses { grpc, admin, status }: Addresses,
) -> io::Result<()> {
    tell_datadog(out, datadog)?;
    writeln!(out, "The real scaler      {grpc} (gRPC), http://{admin}/metrics")?;
    tell_metrics(out)?;
    writeln!(out, "\nPlay KEDA against it; `--watch` goes on doing so:\n")?;
    writeln!(out, "  {program} check --through {grpc} \\")?;
    writeln!(out, "    --metadata 'query=avg:sandbox.steps{{*}}' --metadata queryValue=5\n")?;
    writeln!(out, "The same with grpcurl (https://github.com/fullstorydev/grpcurl):\n")?;
    let object = concat!(
        "{\"name\": \"shop\", \"namespace\": \"demo\", \"scalerMetadata\":\n",
        "    {\"query\": \"avg:sandbox.steps{*}\", \"queryValue\": \"5\"}}",
    );
    let metric = format!(
        "{{\"metricName\": \"datadog-avg-sandbox-steps\",\n    \"scaledObjectRef\": {object}}}"
    );
    for (what, method, message) in [
        ("Should it run at all?", "IsActive", object),
        ("What is its metric called, and what is the target?", "GetMetricSpec", object),
        ("What is the value now?", "GetMetrics", &metric),
        (
            "Tell me when that changes, and each minute that it is active (Ctrl-C ends it):",
            "StreamIsActive",
            object,
        ),
    ] {
        writeln!(out, "  # {what}")?;
        writeln!(out, "  grpcurl -plaintext -emit-defaults -d '{message}' \\")?;
        writeln!(out, "    {grpc} externalscaler.ExternalScaler/{method}\n")?;
    }
    writeln!(
        out,
        "What the scaler knows of each query that was asked for, and of the rate limit:\n"
    )?;
    writeln!(out, "  curl -s http://{status}/api/status\n")?;
    tell_faults(out, datadog)?;
    end(out)
}

pub(super) fn tell_datadog_only(
    out: &mut impl Write,
    datadog: &Simulated<'_>,
    program: &str,
) -> io::Result<()> {
    tell_datadog(out, datadog)?;
    tell_metrics(out)?;
    writeln!(out, "\nA server of your own in front of it:\n")?;
    let address = datadog.address;
    writeln!(out, "  DD_API_KEY={API_KEY} DD_APP_KEY={APP_KEY} DATADOG_HOST=http://{address} \\")?;
    writeln!(out, "    {program} serve\n")?;
    tell_faults(out, datadog)?;
    end(out)
}

fn tell_datadog(out: &mut impl Write, datadog: &Simulated<'_>) -> io::Result<()> {
    let Simulated { address, rate_limit, .. } = datadog;
    writeln!(out, "A simulated Datadog  http://{address}  ({rate_limit} requests an hour)")
}

fn tell_metrics(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\nIts metrics:\n")?;
    for metric in &METRICS {
        writeln!(out, "  {:<22} {}", metric.name, metric.about)?;
    }
    Ok(())
}

fn tell_faults(out: &mut impl Write, datadog: &Simulated<'_>) -> io::Result<()> {
    let Simulated { address, faults, .. } = datadog;
    writeln!(out, "Break the simulated Datadog, and mend it:\n")?;
    writeln!(out, "  # For all queries")?;
    writeln!(out, "  curl -X PUT http://{address}/faults/504\n")?;
    writeln!(out, "  # For one")?;
    writeln!(out, "  curl -X PUT -G --data-urlencode 'query=avg:sandbox.steps{{*}}' \\")?;
    writeln!(out, "    http://{address}/faults/empty\n")?;
    writeln!(out, "  # Mend all")?;
    writeln!(out, "  curl -X DELETE http://{address}/faults\n")?;
    writeln!(out, "Its page             http://{address}/  (all faults, and what it was asked)")?;
    writeln!(out, "What is broken       http://{address}/faults")?;
    for on in faults.iter() {
        writeln!(out, "  {}", shorten(&on.breakage.to_string(), MAX_SHOWN))?;
    }
    writeln!(out)
}

fn end(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Ctrl-C stops the sandbox.")?;
    out.flush()
}
