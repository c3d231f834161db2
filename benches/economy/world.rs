//! Real engines, a simulated Datadog and KEDA on a paused clock.

use std::{sync::Arc, time::Duration};

use clap::Parser as _;
use keda_datadog_scaler::{
    cli::{Cli, Command, Environment},
    demand::{Account, Demand, Keys},
    refresh::{self, Refresher},
    scaler, serve,
    trigger::Subject,
};
use tokio::{runtime, task::JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    corpus,
    datadog::{Datadog, Headers, Organisation, Others},
    keda::{History, Keda, Object, Role},
};

pub(crate) struct World {
    pub(crate) datadog: Datadog,
    pub(crate) keda: Keda,
    scalers: Vec<Refresher>,
    rules: scaler::Config,
    _workers: JoinSet<()>,
    _stop: DropGuard,
}

/// One trigger, and who asks for it.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    /// In the corpus.
    pub(crate) number: usize,
    pub(crate) api_key: String,
    pub(crate) app_key: String,
    pub(crate) namespace: String,
    /// Which of the scalers is asked.
    pub(crate) scaler: usize,
    /// `age` and `timeWindowOffset`.
    pub(crate) window: (u64, u64),
    /// What is wrong with it.
    pub(crate) fault: Option<&'static str>,
    pub(crate) role: Role,
}

impl Want {
    /// Of the one account that there is by default.
    pub(crate) fn new(number: usize) -> Self {
        Self {
            number,
            api_key: API_KEY.to_owned(),
            app_key: "app".to_owned(),
            namespace: format!("team-{}", number % 50),
            scaler: 0,
            window: (90, 0),
            fault: None,
            role: Role::Subject,
        }
    }
}

const API_KEY: &str = "api";

/// The one organisation that there is by default, with nobody else in it.
pub(crate) fn organisation(limit: u64) -> Organisation {
    Organisation {
        api_keys: vec![API_KEY.to_owned()],
        limit,
        period: Duration::from_hours(1),
        others: Others::None,
        headers: Headers::Exact,
    }
}

/// Runs it on a clock of its own, which jumps whenever nobody has anything to do.
pub(crate) fn on_virtual_time<T>(life: impl Future<Output = T>) -> T {
    let runtime = runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(life)
}

impl World {
    pub(crate) fn new(
        organisations: Vec<Organisation>,
        offends_after: Duration,
        scalers: usize,
        refresh: Duration,
    ) -> Self {
        let datadog = Datadog::new(organisations, offends_after);
        let serve::Config { refresh, scaler: rules, .. } = defaults(refresh);
        let stop = CancellationToken::new();
        let mut workers = JoinSet::new();
        let scalers = (0..scalers).map(|_| {
            let (refresher, worker) = refresh::new(refresh, datadog.clone());
            workers.spawn(worker.run(stop.clone()));
            refresher
        });
        let scalers = scalers.collect();
        let (keda, stop) = (Keda::new(), stop.drop_guard());
        Self { datadog, keda, scalers, rules, _workers: workers, _stop: stop }
    }

    pub(crate) fn object(&self, want: &Want) -> Object {
        let (age, offset) = want.window;
        let trigger = corpus::trigger(&corpus::text(want.number, want.fault), age, offset);
        let Subject::Query(query) = trigger.subject.clone() else { panic!("it has a query") };
        let (api, app) = (want.api_key.clone().into(), want.app_key.clone().into());
        let base_url = "https://api.datadoghq.com".parse().unwrap();
        let account = Arc::new(Account::new(base_url, Keys::Pair { api, app }));
        Object {
            trigger,
            demand: Demand { account, query },
            namespace: want.namespace.clone(),
            refresher: self.scalers[want.scaler].clone(),
            rules: self.rules,
            role: want.role,
            history: History::default(),
        }
    }

    pub(crate) fn add(&mut self, want: &Want) {
        let object = self.object(want);
        self.keda.add(object);
    }
}

/// `serve` as it is by default.
fn defaults(refresh: Duration) -> serve::Config {
    let refresh = format!("{}s", refresh.as_secs());
    let arguments = ["keda-datadog-scaler", "serve", "--refresh", &refresh];
    let Command::Serve(serve) = Cli::parse_from(arguments).command else { panic!("it is `serve`") };
    serve.config(Environment::read(|_| None)).unwrap()
}
