//! Crypto provider, logging, dispatch, signal → token, exit code.

use std::{
    env,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use keda_datadog_scaler::{
    check::{self, InputError},
    cli::{Cli, Command, Environment, LogFormat, Serve, UsageError},
    sandbox,
    serve::{self, Listeners, Shutdown},
    words::shorten,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tracing::{Metadata, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::filter_fn, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

const ABORTED: &str = "aborted by a second signal";
/// Most characters of an error.
const MAX_SHOWN: usize = 4_000;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            report(&error.into());
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(cli.command));
    // Not its drop, which waits for threads that resolve a name, as long as that takes.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            ExitCode::from(if is_usage(&error) { 2 } else { 1 })
        }
    }
}

/// For a person who may not read JSON logs; if nobody does, the exit code has to say it.
fn report(error: &anyhow::Error) {
    // `check | head`: whoever read has enough.
    let of_writing = error.downcast_ref::<std::io::Error>();
    if of_writing.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
        return;
    }
    let text = shorten(&format!("{error:#}"), MAX_SHOWN);
    let _ = writeln!(std::io::stderr(), "error: {text}");
}

fn is_usage(error: &anyhow::Error) -> bool {
    let of_check = error.downcast_ref::<InputError>();
    error.is::<UsageError>() || of_check.is_some_and(InputError::is_usage)
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider was installed before"))?;
    let shutdown = Shutdown::default();
    let signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let mut follower = JoinSet::new();
    follower.spawn(follow(signals, shutdown.clone()));
    let aborted = shutdown.abort.clone();
    match command {
        Command::Serve(options) => {
            log_to_stderr(options.log_format(), LevelFilter::INFO)?;
            serve(&options, shutdown).await?;
        }
        Command::Check(options) => {
            log_to_stderr(LogFormat::Text, LevelFilter::WARN)?;
            let config = options.config(environment())?;
            let leave = shutdown.leave.clone();
            let mut checking = JoinSet::new();
            checking.spawn(async move {
                // In colour on a terminal, unless `NO_COLOR` or `CLICOLOR` say otherwise.
                check::run(config, &mut anstream::stdout(), leave).await
            });
            // It may be writing to somebody who does not read.
            let fine = tokio::select! {
                Some(done) = checking.join_next() => done.context("it panicked")??,
                () = aborted.cancelled() => anyhow::bail!(ABORTED),
            };
            return Ok(ExitCode::from(u8::from(!fine)));
        }
        Command::Sandbox(options) => {
            log_to_stderr(options.log_format(), LevelFilter::INFO)?;
            let program = env::args().next().unwrap_or_default();
            sandbox::run(options.config(program), &mut std::io::stdout(), shutdown).await?;
        }
    }
    anyhow::ensure!(!aborted.is_cancelled(), ABORTED);
    Ok(ExitCode::SUCCESS)
}

async fn serve(options: &Serve, shutdown: Shutdown) -> anyhow::Result<()> {
    let config = options.config(environment())?;
    let listeners = Listeners::bind(options.addresses()).await?;
    serve::run(config, listeners, shutdown).await
}

fn environment() -> Environment {
    Environment::read(|name| env::var_os(name))
}

/// The first signal drains, the second aborts.
async fn follow([mut terminate, mut interrupt]: [Signal; 2], shutdown: Shutdown) {
    for token in [shutdown.leave, shutdown.abort] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    }
}

fn log_to_stderr(format: LogFormat, least: LevelFilter) -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_default_directive(least.into())
        .from_env()
        .context("`RUST_LOG` is not understood")?;
    let in_colour = std::io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none();
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(in_colour)
        // It would be told on the same stderr, with a panic if nobody reads that.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    let layer = match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // At no level: kube logs bodies that it does not understand, and there may be a secret in them;
    // rustls logs each certificate that nobody vouches for. What fails is said by us.
    let is_discreet = |metadata: &Metadata<'_>| {
        let target = metadata.target();
        !target.starts_with("kube_") && !target.starts_with("rustls_platform_verifier")
    };
    let registry = tracing_subscriber::registry().with(filter).with(filter_fn(is_discreet));
    registry.with(layer).init();
    Ok(())
}
