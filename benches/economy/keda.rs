//! KEDA, as it calls: each trigger every 30 s (the scale loop) and every 15 s (the HPA), GetMetrics
//! and then IsActive, and once more at once when that fails. GetMetricSpec goes before them, but
//! never asks the engine for anything. It remembers what it was told, and how old that was.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use keda_datadog_scaler::{
    demand::Demand,
    refresh::{Asker, Latest, Refresher, Unread},
    scaler,
    trigger::{PointOffset, Trigger, Unanswered},
};
use tokio::time::{Instant, sleep_until};

/// Calls are made at multiples of it.
const TICK: Duration = Duration::from_millis(100);
/// `pollingInterval`, in ticks.
const POLL: u64 = 300;
/// `--horizontal-pod-autoscaler-sync-period`, in ticks.
const SYNC: u64 = 150;
/// Ages are told apart to this.
const BIN: Duration = TICK;

pub(crate) struct Keda {
    started_at: Instant,
    objects: Vec<Rc<Object>>,
    /// Which objects are polled in each tick of a period, and which are the HPA's.
    polled: Vec<Vec<usize>>,
    synced: Vec<Vec<usize>>,
    ticks: u64,
    waiting: FuturesUnordered<Pin<Box<dyn Future<Output = ()>>>>,
    tally: Rc<RefCell<Tally>>,
    random: fastrand::Rng,
}

/// A ScaledObject with one trigger.
pub(crate) struct Object {
    pub(crate) trigger: Trigger,
    pub(crate) demand: Demand,
    pub(crate) namespace: String,
    /// The scaler that it is asked of.
    pub(crate) refresher: Refresher,
    pub(crate) rules: scaler::Config,
    pub(crate) role: Role,
    pub(crate) history: History,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// The goals are about it.
    #[default]
    Subject,
    /// It makes trouble for the others.
    Offender,
}

/// When what came of asking for one object.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) first_asked: Cell<Option<Instant>>,
    pub(crate) first_value: Cell<Option<Instant>>,
    pub(crate) newest_value: Cell<Option<Instant>>,
    pub(crate) newest_error: Cell<Option<Instant>>,
}

/// What KEDA was told.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) subjects: Told,
    pub(crate) offenders: Told,
}

#[derive(Default)]
pub(crate) struct Told {
    pub(crate) values: u64,
    pub(crate) errors: BTreeMap<&'static str, Errors>,
    pub(crate) ages: Ages,
}

/// RPCs that failed for one kind of reason.
#[derive(Default)]
pub(crate) struct Errors {
    pub(crate) count: u64,
    /// What the first of them was told.
    pub(crate) first: String,
}

/// How old the readings were that values were made of.
#[derive(Default)]
pub(crate) struct Ages {
    bins: Vec<u64>,
    pub(crate) oldest: Duration,
}

impl Keda {
    pub(crate) fn new() -> Self {
        let slots = |period: u64| (0..period).map(|_| Vec::new()).collect();
        Self {
            started_at: Instant::now(),
            objects: Vec::new(),
            polled: slots(POLL),
            synced: slots(SYNC),
            ticks: 0,
            waiting: FuturesUnordered::new(),
            tally: Rc::default(),
            random: fastrand::Rng::with_seed(7),
        }
    }

    /// From now on it is asked for, at its own times.
    pub(crate) fn add(&mut self, object: Object) {
        let place = self.objects.len();
        for slots in [&mut self.polled, &mut self.synced] {
            let slot = self.random.usize(..slots.len());
            slots[slot].push(place);
        }
        self.objects.push(Rc::new(object));
    }

    pub(crate) fn objects(&self) -> &[Rc<Object>] {
        &self.objects
    }

    /// Its author wrote another one.
    pub(crate) fn replace(&mut self, place: usize, object: Object) {
        self.objects[place] = Rc::new(object);
    }

    /// What was told since it was last asked.
    pub(crate) fn take_tally(&mut self) -> Tally {
        self.tally.take()
    }

    /// All at once, as after a reconnect.
    pub(crate) async fn ask_all(&mut self) {
        for place in 0..self.objects.len() {
            self.ask(place).await;
        }
    }

    /// Calls until then, since the start.
    pub(crate) async fn run(&mut self, until: Duration) {
        loop {
            let elapsed = TICK * u32::try_from(self.ticks).unwrap();
            if elapsed >= until {
                return;
            }
            let tick = sleep_until(self.started_at + elapsed);
            tokio::pin!(tick);
            loop {
                tokio::select! {
                    biased;
                    () = &mut tick => break,
                    Some(()) = self.waiting.next() => {}
                }
            }
            for (slots, period) in [(&self.polled, POLL), (&self.synced, SYNC)] {
                let slot = usize::try_from(self.ticks % period).unwrap();
                for place in slots[slot].clone() {
                    self.ask(place).await;
                }
            }
            self.ticks += 1;
        }
    }

    async fn ask(&self, place: usize) {
        let mut pass = Box::pin(pass(self.objects[place].clone(), self.tally.clone()));
        // Most are answered at once, and millions of them.
        let ended = poll_fn(|context| Poll::Ready(pass.as_mut().poll(context).is_ready())).await;
        if !ended {
            self.waiting.push(pass);
        }
    }
}

/// `GetMetricsAndActivityForScaler`, `pkg/scaling/cache/scalers_cache.go`
async fn pass(object: Rc<Object>, tally: Rc<RefCell<Tally>>) {
    for _attempt in 0..2 {
        // IsActive is asked only after GetMetrics had a value.
        if object.ask(&tally).await && object.ask(&tally).await {
            return;
        }
    }
}

impl Object {
    /// One RPC; whether there is a value.
    async fn ask(&self, tally: &RefCell<Tally>) -> bool {
        let asked_at = Instant::now();
        let taken_at = Cell::new(asked_at);
        let needs_step = self.trigger.reckoning.offset == PointOffset::Auto;
        let asker = Asker { namespace: &self.namespace, needs_step };
        let deadline = asked_at + self.rules.patience;
        let judge = |latest: &Latest, now| {
            if let Some(newest) = latest.readings.first() {
                taken_at.set(newest.taken_at);
            }
            self.trigger.judge(latest, now, self.rules.hold)
        };
        let answer = self.refresher.read(&self.demand, asker, deadline, judge).await;

        let now = Instant::now();
        let history = &self.history;
        if history.first_asked.get().is_none() {
            history.first_asked.set(Some(asked_at));
        }
        let mut tally = tally.borrow_mut();
        let told = match self.role {
            Role::Subject => &mut tally.subjects,
            Role::Offender => &mut tally.offenders,
        };
        match &answer {
            Ok(_measure) => {
                if history.first_value.get().is_none() {
                    history.first_value.set(Some(now));
                }
                history.newest_value.set(Some(now));
                told.values += 1;
                told.ages.note(now.saturating_duration_since(taken_at.get()));
            }
            Err(unread) => {
                history.newest_error.set(Some(now));
                let errors = told.errors.entry(name(unread)).or_default();
                errors.count += 1;
                if let Unread::Failed(why) = unread
                    && errors.first.is_empty()
                {
                    errors.first = why.to_string();
                }
            }
        }
        answer.is_ok()
    }
}

fn name(unread: &Unread<Unanswered>) -> &'static str {
    match unread {
        Unread::Failed(Unanswered::Source(error)) => error.outcome(),
        Unread::Failed(Unanswered::NoData { .. } | Unanswered::NoneLeft { .. }) => "no_data",
        Unread::Failed(_) => "unusable",
        Unread::TimedOut => "no_answer_in_time",
        Unread::Withdrawn => "withdrawn",
    }
}

impl Told {
    pub(crate) fn failed(&self) -> u64 {
        self.errors.values().map(|errors| errors.count).sum()
    }
}

impl Ages {
    fn note(&mut self, age: Duration) {
        let bin = usize::try_from(age.as_millis() / BIN.as_millis()).unwrap();
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, 0);
        }
        self.bins[bin] += 1;
        self.oldest = self.oldest.max(age);
    }

    pub(crate) fn median(&self) -> Duration {
        let half = self.bins.iter().sum::<u64>() / 2;
        let mut seen = 0;
        let below = self.bins.iter().take_while(|count| {
            seen += **count;
            seen <= half
        });
        BIN * u32::try_from(below.count()).unwrap()
    }
}
