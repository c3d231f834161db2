//! `cargo bench --bench economy [-- NAME]`: how few requests it takes, and at what age the readings
//! are served. Hours of KEDA's calls in virtual time, with the real engine in front of a simulated
//! Datadog that counts. NAME picks the cases whose name has it in it.

#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::{
    env,
    num::NonZero,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

mod load;
mod start;
mod isolation;
mod table;
mod world;
mod keda;
mod datadog;
mod corpus;

use table::{Row, Table};

/// A row to be.
type Case = (&'static str, Box<dyn Fn() -> Row + Sync>);

fn main() {
    corpus::check();
    let filter = env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let of_loads = |loads: Vec<load::Load>| -> Vec<Case> {
        let case = |load: load::Load| (load.name, Box::new(move || load.run()) as _);
        loads.into_iter().map(case).collect()
    };
    let starts = start::starts().into_iter();
    let starts = starts.map(|start| (start.name, Box::new(move || start.run()) as _));
    let isolations = isolation::isolations().into_iter();
    let isolations = isolations.map(|case| (case.name, Box::new(move || case.run()) as _));
    for (title, head, cases) in [
        ("Two hours at KEDA's pace", &load::HEAD[..], of_loads(load::sizes())),
        ("Hard cases, two hours each", &load::HEAD, of_loads(load::hard_cases())),
        ("After a restart, with an untouched limit", &start::HEAD, starts.collect()),
        ("Isolation, with a limit that is no matter", &isolation::HEAD, isolations.collect()),
    ] {
        let is_wanted = |(name, _): &Case| filter.as_ref().is_none_or(|part| name.contains(part));
        let cases: Vec<Case> = cases.into_iter().filter(is_wanted).collect();
        let mut table = Table::new(title, head);
        for row in run(&cases) {
            table.push(row);
        }
        if !table.is_empty() {
            println!("{table}");
        }
    }
}

/// Each on a thread of its own, as many at once as there are cores; the rows in their order.
fn run(cases: &[Case]) -> Vec<Row> {
    let next = AtomicUsize::new(0);
    let rows = Mutex::new(vec![Row::default(); cases.len()]);
    let work = || {
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some((_, case)) = cases.get(place) else { return };
            let row = case();
            rows.lock().unwrap()[place] = row;
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    rows.into_inner().unwrap()
}
