//! Crypto provider, logging, dispatch, signal → token, exit code.

use std::{env, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use keda_datadog_scaler::{
    cli::{Cli, Command, Environment, LogFormat, Serve, UsageError},
    sandbox,
    serve::{self, Listeners, Shutdown},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}

#[expect(clippy::print_stderr, reason = "a person reads it who may not read JSON logs")]
fn report(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

async fn run(command: Command) -> anyhow::Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider was installed before"))?;
    let shutdown = Shutdown::default();
    let mut signals = tokio::task::JoinSet::new();
    signals.spawn(follow_signals(shutdown.clone()));
    let aborted = shutdown.abort.clone();
    match command {
        Command::Serve(options) => {
            log_to_stderr(options.log_format())?;
            serve(&options, shutdown).await?;
        }
        Command::Sandbox(options) => {
            log_to_stderr(options.log_format())?;
            sandbox::run(options.config(), &mut std::io::stdout(), shutdown).await?;
        }
    }
    anyhow::ensure!(!aborted.is_cancelled(), "aborted by a second signal");
    Ok(())
}

async fn serve(options: &Serve, shutdown: Shutdown) -> anyhow::Result<()> {
    let config = options.config(Environment::read(|name| env::var_os(name)))?;
    let (grpc, admin) = options.addresses();
    let bind = async |address, flag| {
        TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}; choose another `{flag}`"))
    };
    let listeners = Listeners {
        grpc: bind(grpc, "--listen").await?,
        admin: bind(admin, "--admin-listen").await?,
    };
    serve::run(config, listeners, shutdown).await
}

/// The first SIGTERM or SIGINT drains, the second aborts.
async fn follow_signals(shutdown: Shutdown) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    for token in [shutdown.leave, shutdown.abort] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    }
    Ok(())
}

fn log_to_stderr(format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .from_env()
        .context("`RUST_LOG` is not understood")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
