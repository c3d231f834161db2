//! The pinned corpus: triggers as people write them, each a function of its number.

use keda_datadog_scaler::trigger::Trigger;
use url::form_urlencoded::byte_serialize;

const METRICS: [&str; 5] = [
    "trace.http.request.hits",
    "aws.sqs.approximate_number_of_messages_visible",
    "kafka.consumer_lag",
    "rabbitmq.queue.messages_ready",
    "nginx.net.request_per_s",
];
const ENVIRONMENTS: [&str; 3] = ["production", "staging", "live"];
const TAILS: [&str; 4] = [
    ".rollup(avg, 60)",
    ".as_rate().rollup(sum, 30)",
    ".rollup(max, 60)",
    ".fill(last).rollup(30)",
];

/// What the corpus is pinned to: escaped bytes of the median query of the first thousand.
const MEDIAN: usize = 120;

/// One trigger's text; `mark` is put among its tags.
pub(crate) fn text(number: usize, mark: Option<&str>) -> String {
    let several = number % 20 == 7;
    if several {
        let [hits, errors] = ["hits", "errors"].map(|name| {
            let tags = tags(number, mark);
            format!("sum:trace.http.request.{name}{{{tags}}}.as_rate().rollup(sum, 60)")
        });
        return format!("{hits},{errors}");
    }
    let metric = METRICS[number % METRICS.len()];
    let by = if is_grouped(number) { " by {queue}" } else { "" };
    let tail = TAILS[number % TAILS.len()];
    format!("avg:{metric}{{{}}}{by}{tail}", tags(number, mark))
}

/// The trigger of that text, which looks back `age` seconds from `offset` seconds ago.
pub(crate) fn trigger(text: &str, age: u64, offset: u64) -> Trigger {
    let (age, offset) = (age.to_string(), offset.to_string());
    let metadata = [
        ("query", text),
        ("queryValue", "20"),
        ("activationQueryValue", "5"),
        // Not all need it, and it does no harm.
        ("queryAggregator", "max"),
        ("age", &age),
        ("timeWindowOffset", &offset),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    Trigger::parse(&metadata, true).unwrap().0
}

/// That it is what it is said to be.
pub(crate) fn check() {
    let mut lengths: Vec<usize> = (0..1_000).map(|number| escaped(&text(number, None))).collect();
    lengths.sort_unstable();
    assert_eq!(lengths[500], MEDIAN, "the corpus is not what the goals were set for");
    let mut texts: Vec<String> = (0..10_000).map(|number| text(number, None)).collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), 10_000, "there are equal queries in the corpus");
}

fn is_grouped(number: usize) -> bool {
    number % 10 == 3
}

fn tags(number: usize, mark: Option<&str>) -> String {
    let environment = ENVIRONMENTS[number % ENVIRONMENTS.len()];
    let mark = mark.map(|mark| format!(",{mark}")).unwrap_or_default();
    format!("env:{environment},service:checkout-{number},team:orders{mark}")
}

fn escaped(text: &str) -> usize {
    byte_serialize(text.as_bytes()).map(str::len).sum()
}
